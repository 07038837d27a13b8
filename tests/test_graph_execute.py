"""The traced graph, executed, is the model: the same loss and the same gradient for every parameter."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from equality import PlainGPT, gpt_loss, llama_loss, make, make_batch
from graph_runner import run
from torch import Tensor, nn

from autoplan.graph.ir import ModelGraph
from autoplan.graph.trace import flatten_batch, trace


def check(model: nn.Module, batch: Any, loss: Callable[[Any, Any], Tensor] | None) -> ModelGraph:
    """Trace, then run both; the graph is returned for further questions."""
    graph = trace(model, batch, loss)
    names, tensors, _ = flatten_batch(batch)
    parameters = {n: p for n, p in model.named_parameters() if p.requires_grad}

    def gradients(value: Tensor) -> tuple[Tensor, ...]:
        return torch.autograd.grad(
            value, list(parameters.values()), allow_unused=True, materialize_grads=True
        )

    torch.manual_seed(3)
    output = (
        model(**batch)
        if isinstance(batch, dict)
        else model(*batch)
        if isinstance(batch, tuple)
        else model(batch)
    )
    expected = loss(output, batch) if loss else output.loss
    torch.manual_seed(3)
    got = run(graph, model, dict(zip(names, tensors, strict=True)))[graph.loss]
    torch.testing.assert_close(got, expected, rtol=1e-6, atol=1e-6)
    for name, ours, theirs in zip(parameters, gradients(got), gradients(expected), strict=True):
        torch.testing.assert_close(
            ours, theirs, rtol=1e-5, atol=1e-6, msg=lambda text, n=name: f"{n}: {text}"
        )
    return graph


@pytest.mark.parametrize("name", ["gpt", "gpt-untied", "llama", "llama-tied"])
def test_the_model_s_loss_and_gradients(name: str) -> None:
    model, _ = make(name, "fp32")
    check(model, make_batch(name, 3, 0), gpt_loss if name.startswith("gpt") else llama_loss)


def test_a_loss_that_the_model_returns() -> None:
    model, loss = make("llama", "fp32")
    assert loss is None
    graph = check(model, make_batch("llama", 2, 0), None)
    assert graph.weight is not None


@pytest.mark.parametrize("training", [True, False])
def test_dropout_draws_the_same_numbers_and_only_in_training(training: bool) -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.Dropout(0.5), nn.Linear(8, 4)).train(training)
    graph = check(model, torch.randn(4, 8), lambda out, batch: out.square().mean())
    nodes = graph.kinds["model"].graph.nodes
    assert [node.args[2] for node in nodes if "dropout" in str(node.target)] == [training]


class Skips(nn.Module):
    """Wiring that is no chain: two outputs a block, a skip over blocks, a parameter and a buffer used twice."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.randn(8))
        self.register_buffer("table", torch.randn(8))
        self.layers = nn.ModuleList(TwoFaced() for _ in range(4))

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        x = first = x * self.scale + self.table
        side = y * self.table
        kept = []
        for index, layer in enumerate(self.layers):
            x, side = layer(x, side=side, factor=0.5)
            kept.append(x)
            if index == 1:
                x = x + first * self.scale
        return (x + kept[0] + side).square().mean()


class TwoFaced(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x: Tensor, side: Tensor, factor: float) -> tuple[Tensor, Tensor]:
        return torch.tanh(self.a(x)) * factor + side, self.b(side)


def test_skips_several_outputs_and_keyword_arguments() -> None:
    torch.manual_seed(0)
    batch = {"x": torch.randn(4, 8), "y": torch.randn(4, 8)}
    graph = check(Skips(), batch, lambda out, batch: out)
    assert [unit.name for unit in graph.units] == [
        "prologue", "layers.0", "layers.1", "between.1", "layers.2", "layers.3", "epilogue",
    ]  # fmt: skip
    assert graph.weight is None


@pytest.mark.parametrize("form", ["tensor", "tuple", "dict"])
def test_a_batch_may_be_a_tensor_a_tuple_or_a_dict(form: str) -> None:
    x, y = torch.randn(4, 8), torch.randn(4, 8)
    batch: Any = {"tensor": x, "tuple": (x, y), "dict": {"input": x, "other": y}}[form]
    model = nn.Linear(8, 8) if form != "tuple" else nn.Bilinear(8, 8, 8)
    if form == "dict":
        batch.pop("other")
    graph = check(model, batch, lambda out, batch: out.square().mean())
    assert (
        set(graph.batch_inputs)
        == {"tensor": {"input"}, "tuple": {"input_0", "input_1"}, "dict": {"input"}}[form]
    )


@pytest.mark.parametrize("blocks", [0, 1])
def test_models_without_repeats_are_one_unit(blocks: int) -> None:
    model: nn.Module = PlainGPT(layers=1) if blocks else nn.Linear(8, 8)
    batch: Any = make_batch("gpt", 2, 0) if blocks else torch.randn(4, 8)
    graph = check(model, batch, gpt_loss if blocks else lambda out, batch: out.square().mean())
    assert [unit.name for unit in graph.units] == ["model"]


def test_in_place_changes_of_what_forward_makes_itself() -> None:
    class InPlace(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(8, 8)

        def forward(self, x: Tensor) -> Tensor:
            y = self.linear(x)
            y.mul_(2).add_(1)
            y[:, :4] = 0
            return y * torch.tensor(2.0)

    check(InPlace(), torch.randn(4, 8), lambda out, batch: out.square().mean())


def test_what_no_grad_makes_carries_no_gradient() -> None:
    class Stopped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(8, 8), nn.Linear(8, 8)

        def forward(self, x: Tensor) -> Tensor:
            with torch.no_grad():
                target = self.a(x)
            return self.a(x) * self.b(target.detach())

    check(Stopped(), torch.randn(4, 8), lambda out, batch: out.square().mean())


def test_a_model_may_stand_in_eval_mode_in_part() -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8), nn.Linear(8, 4))
    model.train()
    model[1].eval()
    check(model, torch.randn(4, 8), lambda out, batch: out.square().mean())


def test_an_encoder_and_a_decoder() -> None:
    torch.manual_seed(0)
    model = nn.Transformer(16, 4, 2, 2, 32, dropout=0.0, batch_first=True)
    batch = {"src": torch.randn(2, 6, 16), "tgt": torch.randn(2, 5, 16)}
    graph = check(model, batch, lambda out, batch: F.mse_loss(out, batch["tgt"]))
    assert [unit.name for unit in graph.units if "layers" in unit.name] == [
        f"{side}.layers.{i}" for side in ("encoder", "decoder") for i in range(2)
    ]
