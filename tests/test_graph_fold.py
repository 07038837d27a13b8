"""Which blocks are copies of one another, and that nothing that tells them apart is folded away."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from graph_runner import run
from torch import Tensor, nn

from autoplan.errors import TraceError
from autoplan.graph.fold import find_repeats
from autoplan.graph.ir import ModelGraph
from autoplan.graph.trace import trace


class Layer(nn.Module):
    """``change`` of a value that the layer holds as ``**attributes``."""

    def __init__(
        self, change: Callable[[Any, Tensor], Tensor] = lambda layer, x: x, **attributes: Any
    ) -> None:
        super().__init__()
        self.linear, self.norm = nn.Linear(8, 8), nn.LayerNorm(8)
        vars(self).update(attributes)
        self._change = change

    def forward(self, x: Tensor) -> Tensor:
        return x + self._change(self, self.linear(self.norm(x)))


class Stack(nn.Module):
    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)
        return x


def kinds(*layers: nn.Module) -> list[str]:
    graph = traced(Stack(*layers))
    return [unit.kind for unit in graph.units if unit.name.startswith("layers.")]


def traced(model: nn.Module) -> ModelGraph:
    return trace(model, torch.empty(2, 4, 8), lambda out, batch: out.square().mean())


def scaled(layer: Any, x: Tensor) -> Tensor:
    return x * layer.factor


def numbered(layer: Any, x: Tensor) -> Tensor:
    return x / (layer.layer_idx + 1)


def test_siblings_that_differ_in_weights_only_are_one_kind() -> None:
    assert kinds(*(Layer() for _ in range(3))) == ["Layer_0"] * 3


def test_a_number_that_only_counts_the_siblings_does_not_part_them() -> None:
    assert kinds(*(Layer(layer_idx=i) for i in range(5))) == ["Layer_0"] * 5
    assert kinds(*(Layer(layer_idx=i) for i in range(3, 6))) == ["Layer_0"] * 3
    mixed = [Layer(layer_idx=i) if i % 3 == 2 else Layer() for i in range(9)]  # some are not numbered
    assert kinds(*mixed) == ["Layer_0", "Layer_0", "Layer_1"] * 3
    assert len(set(kinds(*(Layer(width=i * i) if i % 3 == 2 else Layer() for i in range(9))))) == 4


@pytest.mark.parametrize(
    "values",
    [(0.5, 2.0), (True, False), ("a", "b"), (None, 1), ((1, 2), (1, 3)), ({"a": 1}, {"a": 2}), (4, 8),
     (F.relu, F.gelu), (torch.float32, torch.float64), (nn.ReLU, nn.GELU)],
    ids=lambda pair: " ".join(getattr(one, "__name__", str(one)) for one in pair),
)  # fmt: skip
def test_attributes_that_differ_make_different_kinds(values: tuple[Any, Any]) -> None:
    one, other = values
    layers = [Layer(setting=one), Layer(setting=other), Layer(setting=one), Layer(setting=other)]
    assert kinds(*layers) == ["Layer_0", "Layer_1", "Layer_0", "Layer_1"]


def test_what_a_submodule_holds_counts_too() -> None:
    layers = [Layer() for _ in range(4)]
    for layer in layers[::2]:
        layer.norm.eps = 1e-3
    assert kinds(*layers) == ["Layer_0", "Layer_1", "Layer_0", "Layer_1"]


def test_frozen_shaped_or_typed_otherwise_is_another_kind() -> None:
    layers = [Layer() for _ in range(6)]
    for layer in layers[2:4]:
        layer.linear.weight.requires_grad_(False)
    for layer in layers[4:]:
        layer.linear.bias = None
    assert kinds(*layers) == ["Layer_0"] * 2 + ["Layer_1"] * 2 + ["Layer_2"] * 2


def test_training_and_evaluation_are_different_kinds() -> None:
    layers = [Layer() for _ in range(4)]
    layers[2].eval()
    layers[3].eval()
    assert kinds(*layers) == ["Layer_0"] * 2 + ["Layer_1"] * 2


def test_a_hook_on_one_copy_makes_it_another_kind() -> None:
    layers = [Layer() for _ in range(4)]

    def double(module: nn.Module, args: Any, out: Tensor) -> Tensor:
        return 2 * out

    for layer in layers[2:]:
        layer.register_forward_hook(double)
    assert kinds(*layers) == ["Layer_0"] * 2 + ["Layer_1", "Layer_2"]  # a hook is never like another


def test_alternating_kinds_give_the_model_s_numbers() -> None:
    torch.manual_seed(0)
    model = Stack(*(Layer(scaled, factor=1.0 + i % 2) for i in range(4)))
    graph = traced(model)
    batch = torch.randn(2, 4, 8)
    got = run(graph, model, {"input": batch})[graph.loss]
    torch.testing.assert_close(got, model(batch).square().mean())


@pytest.mark.parametrize("depth", [4, 5])
@pytest.mark.parametrize(
    "change",
    [
        numbered,
        lambda layer, x: F.relu(x) if layer.layer_idx % 2 else x,
        lambda layer, x: F.relu(x) if layer.layer_idx == 2 else x,
    ],
    ids=["as a factor", "by parity", "for one alone"],
)
def test_a_forward_that_depends_on_the_layer_s_number_is_refused(change: Any, depth: int) -> None:
    with pytest.raises(TraceError, match=r"copies whose graphs differ by layer_idx") as caught:
        kinds(*(Layer(change, layer_idx=i) for i in range(depth)))
    assert caught.value.field == "layers.0"


def test_a_forward_that_reads_its_number_to_no_effect_is_folded() -> None:
    def look(layer: Any, x: Tensor) -> Tensor:
        return x if layer.layer_idx >= 0 else -x

    assert kinds(*(Layer(look, layer_idx=i) for i in range(4))) == ["Layer_0"] * 4


def test_what_the_signature_cannot_see_is_seen_in_the_last_copy() -> None:
    class Config:
        factor = 1.0

    other = Config()
    other.factor = 3.0
    configs = [Config(), Config(), other]

    def configured(layer: Any, x: Tensor) -> Tensor:
        return x * layer.config.factor

    with pytest.raises(TraceError, match="copies whose graphs differ"):
        kinds(*(Layer(configured, config=config) for config in configs))


def test_functions_made_for_each_layer_part_them_only_by_what_they_hold() -> None:
    assert kinds(*(Layer(lambda layer, x: -x) for _ in range(3))) == ["Layer_0"] * 3
    assert kinds(*(Layer(lambda layer, x, by=float(i % 2): by * x) for i in range(4))) == [
        "Layer_0", "Layer_1", "Layer_0", "Layer_1",
    ]  # fmt: skip


def test_the_parent_may_read_a_layer_s_attributes() -> None:
    class Reads(Stack):
        def forward(self, x: Tensor) -> Tensor:
            for layer in self.layers:
                assert layer.linear.in_features == 8
                x = layer(x) * layer.factor + layer.layer_idx
            return x

    torch.manual_seed(0)
    model = Reads(*(Layer(factor=0.5, layer_idx=i) for i in range(3)))
    graph, batch = traced(model), torch.randn(2, 4, 8)
    assert graph.count("Layer_0") == 3
    got = run(graph, model, {"input": batch})[graph.loss]
    torch.testing.assert_close(got, model(batch).square().mean())


def test_blocks_that_share_a_parameter_with_another_are_not_copies() -> None:
    model = Stack(*(Layer() for _ in range(4)))
    model.layers[1].linear.weight = model.layers[0].linear.weight
    assert [repeat.paths for repeat in find_repeats(model)] == [("layers.2", "layers.3")]


def test_a_sibling_that_is_like_no_other_is_a_block_of_its_own() -> None:
    layers = [Layer(scaled, factor=factor) for factor in (3.0, 0.5, 0.5, 0.5, 2.0)]
    assert kinds(*layers) == ["Layer_0", "Layer_1", "Layer_1", "Layer_1", "Layer_2"]
    assert kinds(*(Layer(scaled, factor=1 / (i + 1)) for i in range(3))) == ["Layer_0", "Layer_1", "Layer_2"]
    model = Stack(nn.Sequential(nn.Linear(8, 8)), *layers[:2])  # of another class: no block
    assert [repeat.paths for repeat in find_repeats(model)] == [("layers.1",), ("layers.2",)]


def test_bare_ops_are_no_blocks_and_the_outermost_repeat_wins() -> None:
    assert find_repeats(nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))) == []
    nested = nn.Sequential(*(nn.Sequential(Layer(), Layer()) for _ in range(3)))
    assert [repeat.paths for repeat in find_repeats(nested)] == [("0", "1", "2")]
    alone = nn.Sequential(nn.Sequential(Layer(), Layer()))
    assert [repeat.paths for repeat in find_repeats(alone)] == [("0.0", "0.1")]


class Told(Stack):
    def forward(self, x: Tensor) -> Tensor:
        for index, layer in enumerate(self.layers):
            x = layer(x, index)
        return x


class Listens(Layer):
    def __init__(self, to: tuple[int, ...]) -> None:
        super().__init__()
        self.to = to

    def forward(self, x: Tensor, index: int) -> Tensor:  # type: ignore[override]
        return super().forward(x) * (1 + index if index in self.to else 1)


class Answers(Layer):
    def forward(self, x: Tensor, index: int) -> tuple[Tensor, int]:  # type: ignore[override]
        return super().forward(x), index + 1


class Asked(Stack):
    def forward(self, x: Tensor) -> Tensor:
        for index, layer in enumerate(self.layers):
            x, answer = layer(x, index)
            x = x * answer
        return x


def test_a_number_given_to_a_block_parts_nothing_unless_it_is_used() -> None:
    graph = traced(Told(*(Listens(()) for _ in range(4))))
    assert graph.count("Listens_0") == 4


@pytest.mark.parametrize("places", [(0, 1, 2, 3), (2,)])
def test_a_number_that_a_block_uses_is_told(places: tuple[int, ...]) -> None:
    with pytest.raises(TraceError, match=r"layers\.[12]: .*differ by the number that they are told"):
        traced(Told(*(Listens(places) for _ in range(4))))


def test_a_number_that_a_block_gives_back_is_its_own() -> None:
    torch.manual_seed(0)
    model, x = Asked(*(Answers() for _ in range(4))), torch.randn(2, 8, 8)
    graph = trace(model, x, lambda output, batch: output.square().mean())
    assert graph.count("Answers_0") == 4
    torch.testing.assert_close(run(graph, model, {"input": x})[graph.loss], model(x).square().mean())
