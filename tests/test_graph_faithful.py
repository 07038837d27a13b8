"""What a capture could lose without a word: each is kept, which running the graph shows, or refused by name."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable

import numpy
import pytest
import torch
from graph_runner import run
from torch import Tensor, nn

from autoplan.errors import TraceError
from autoplan.graph import ModelGraph
from autoplan.graph.trace import trace


def mean_square(output: Tensor, batch: Tensor) -> Tensor:
    return output.square().mean()


def check(model: nn.Module) -> ModelGraph:
    """The graph gives the loss and every gradient that the model does."""
    batch = torch.randn(4, 8, generator=torch.Generator().manual_seed(0))
    graph = trace(model, batch, mean_square)
    twin = copy.deepcopy(model)
    expected = mean_square(model(batch), batch)
    got = run(graph, twin, {"input": batch})[graph.loss]
    torch.testing.assert_close(got, expected)
    ours = torch.autograd.grad(got, list(twin.parameters()), allow_unused=True, materialize_grads=True)
    theirs = torch.autograd.grad(
        expected, list(model.parameters()), allow_unused=True, materialize_grads=True
    )
    for (name, _), a, b in zip(model.named_parameters(), ours, theirs, strict=True):
        torch.testing.assert_close(a, b, msg=lambda text, name=name: f"{name}: {text}")
    return graph


class Frozen(nn.Module):
    """A part without gradient, beside something that is changed in place."""

    def __init__(self, last: nn.Module) -> None:
        super().__init__()
        self.first, self.second, self.last = nn.Linear(8, 8), nn.Linear(8, 8), last

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            fixed = self.first(x)
        return self.last(self.second(fixed + self.second(x))) + fixed


@pytest.mark.parametrize(
    "last", [nn.ReLU(inplace=True), nn.BatchNorm1d(8)], ids=["in-place", "running statistics"]
)
def test_no_grad_stays_when_the_graph_is_made_functional(last: nn.Module) -> None:
    check(Frozen(last))


def test_the_power_iteration_of_a_spectral_norm_has_no_gradient() -> None:
    check(nn.Sequential(nn.utils.parametrizations.spectral_norm(nn.Linear(8, 8)), nn.Tanh(), nn.Linear(8, 8)))


class Stack(nn.Module):
    def __init__(self, layers: list[nn.Module], shared: bool) -> None:
        super().__init__()
        self.embed = nn.Linear(8, 8)
        self.other_name = nn.ModuleDict({"embed": self.embed} if shared else {})
        self.layers = nn.ModuleList(layers)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        for layer in self.layers:
            x = layer(x)
        return x


@pytest.mark.parametrize("shared", [False, True], ids=["", "beside a module with two names"])
def test_blocks_are_called_whatever_else_is_shared(shared: bool) -> None:
    graph = check(Stack([nn.Sequential(nn.Linear(8, 8), nn.Tanh()) for _ in range(3)], shared))
    assert graph.count("Sequential_0") == 3
    assert not graph.unused


def test_one_block_under_three_names_is_called_three_times() -> None:
    block = nn.Sequential(nn.Linear(8, 8), nn.Tanh())
    graph = check(Stack([block, block, block], shared=False))
    assert graph.count("Sequential_0") == 3
    assert graph.parameter_count == 2 * (8 * 8 + 8)


class Opened(Stack):
    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            for part in layer:  # type: ignore[attr-defined]
                x = part(x)
        return self.embed(x)


def test_blocks_that_are_taken_apart_are_refused() -> None:
    layers: list[nn.Module] = [nn.Sequential(nn.Linear(8, 8), nn.Tanh()) for _ in range(3)]
    with pytest.raises(TraceError, match=r"layers\.0.*parts.*ModuleList"):
        trace(Opened(layers, shared=False), torch.randn(4, 8), mean_square)


class Doing(nn.Module):
    """A linear layer whose forward does ``what`` to its result."""

    def __init__(self, what: Callable[[Doing, Tensor], Tensor]) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 8)
        self.what = what

    def forward(self, x: Tensor) -> Tensor:
        return self.what(self, self.linear(x))


def in_inference(module: Doing, x: Tensor) -> Tensor:
    with torch.inference_mode():
        y = module.linear(x)
    return x + y.clone()


def in_autocast(module: Doing, x: Tensor) -> Tensor:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        return module.linear(x).float()


def with_hook(module: Doing, x: Tensor) -> Tensor:
    y = x * 2
    y.register_hook(lambda gradient: gradient * 2)
    return y


def clamping_weights(module: Doing, x: Tensor) -> Tensor:
    with torch.no_grad():
        module.linear.weight.clamp_(-1, 1)
    return module.linear(x)


@pytest.mark.parametrize(
    ("what", "message"),
    [
        (in_inference, "inference_mode.*torch.no_grad"),
        (in_autocast, "autocast.*precision"),
        (with_hook, "hook.*autograd.Function"),
        (clamping_weights, r"linear\.weight.*between optimizer steps"),
        (lambda module, x: x * random.random(), "drawn with random"),
        (lambda module, x: x * float(numpy.random.rand()), r"drawn with numpy\.random"),
        (lambda module, x: x * x.max().item(), r"item.*a number read from a tensor"),
    ],
    ids=[
        "inference mode",
        "autocast",
        "gradient hook",
        "changed weights",
        "random",
        "numpy.random",
        "item",
    ],
)
def test_what_the_graph_would_not_show_is_refused(
    what: Callable[[Doing, Tensor], Tensor], message: str
) -> None:
    with pytest.raises(TraceError, match=message):
        trace(Doing(what), torch.randn(4, 8), mean_square)


class Cell(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(x) + 1


def through_cells(module: Doing, x: Tensor) -> Tensor:
    cell = Cell()
    for _ in range(60):
        x = cell(x)
    return x


def by_steps(module: Doing, x: Tensor) -> Tensor:
    for _ in range(60):
        x = x + 1
    return x


def by_calls(module: Doing, x: Tensor) -> Tensor:
    return [x := step(x) for step in [torch.tanh] * 60][-1]


@pytest.mark.parametrize("looping", [by_steps, through_cells, by_calls])
def test_a_loop_over_time_steps_is_refused_before_it_fills_the_memory(
    looping: Callable[[Doing, Tensor], Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("autoplan.graph.long_loops.LONGEST_LOOP", 8)
    with pytest.raises(
        TraceError, match=r"loop of more than 8 steps at test_graph_faithful.py:\d+.*custom_op"
    ):
        trace(Doing(looping), torch.randn(4, 8), mean_square)


def test_more_calls_than_a_graph_should_hold_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("autoplan.graph.long_loops._MOST_CALLS", 50)
    with pytest.raises(TraceError, match=r"Doing: .*more than 50 calls of torch"):
        trace(Doing(by_steps), torch.randn(4, 8), mean_square)


def test_hooks_on_parameters_are_refused() -> None:
    model = nn.Linear(8, 8)
    model.weight.register_hook(lambda gradient: gradient * 2)
    with pytest.raises(TraceError, match=r"weight.*hook"):
        trace(model, torch.randn(4, 8), mean_square)


def test_a_loss_without_parameters_is_refused() -> None:
    with pytest.raises(TraceError, match="none of the 2 trainable parameters"):
        trace(nn.Linear(8, 8), torch.randn(4, 8), lambda output, batch: batch.square().mean())


def test_python_s_random_numbers_are_left_as_they_were() -> None:
    random.seed(3)
    state = random.getstate()
    trace(nn.Linear(8, 8), torch.randn(4, 8), mean_square)
    assert random.getstate() == state
