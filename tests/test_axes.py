"""Every strategy of every op, run on shards in one process, gives the op's own result and gradients."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator
from typing import Any
from unittest.mock import Mock, patch

import pytest
import torch
import torch.utils._pytree as pytree
from op_examples import Example, examples
from shards import cut, join
from torch import Tensor, fx
from torch._subclasses.fake_tensor import FakeTensorMode

from autoplan.graph.analysis import analyse
from autoplan.graph.axes import piece_layouts, spec_of, strategies
from autoplan.graph.axes.spec import _RULES, rule_for
from autoplan.graph.ir import Block, Op
from autoplan.graph.layout import REPLICATE, Layout
from autoplan.graph.strategy import Strategy
from autoplan.rewrite.local_graph import LocalBlock, local_call
from autoplan.rewrite.random_calls import drawn_call_of
from autoplan.rewrite.random_kernels import sample_draws

_EXAMPLES = list(examples())
_MODE = FakeTensorMode()


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Tensors this small are quicker without a pool of threads."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


Whole = Tensor | list[Tensor]


ALIKE = {
    "aten.empty.memory_format": "aten.zeros.default",
    "aten.new_empty.default": "aten.new_zeros.default",
    "aten.empty_like.default": "aten.zeros_like.default",
    "aten._grouped_mm.default": "autoplan.grouped_mm.default",
}
"""Ops whose values cannot be compared (what is empty is anything; the last runs on GPUs only), and one of their rule
that stands for them."""
TALKING = {"vocab_cross_entropy"}
"""Kernels that send something themselves: tested on real ranks, in test_move."""


def test_every_rule_has_an_example() -> None:
    untested = {str(target) for target in _RULES} - {str(example.target) for example in _EXAMPLES}
    assert untested <= ALIKE.keys()
    for name, other in ALIKE.items():
        rules = {str(target): rule for target, rule in _RULES.items()}
        assert rules[name] is rules[other]


def test_examples_have_names_of_their_own() -> None:
    names = [example.name for example in _EXAMPLES]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize("example", _EXAMPLES, ids=lambda example: example.name)
def test_an_op_on_shards_is_the_op(example: Example) -> None:
    found: set[str] = set()
    for number, call in enumerate(variants(example.name)):
        for degree in (2, 4) if not number else (2,):
            for strategy in strategies(call.block, call.op, degree):
                assert bool(strategy.internal) == (strategy.kernel in TALKING)
                if strategy.kernel not in TALKING:
                    check(call, strategy, degree)
                if degree == 2 and strategy.name.startswith("cut "):
                    found.add(strategy.name.removeprefix("cut "))
    assert {name for name in found if "/" not in name} == set(example.cuts.split())


@pytest.mark.parametrize("example", _EXAMPLES, ids=lambda example: example.name)
def test_strategies_have_one_name_each_and_whole_comes_first(example: Example) -> None:
    for call in variants(example.name):
        for degree in (1, 2, 4):
            names = [strategy.name for strategy in strategies(call.block, call.op, degree)]
            assert names[0] == "R"
            assert len(set(names)) == len(names)
            assert degree > 1 or names == ["R"]


class Call:
    """An example as a block whose last op it is, with the whole values of that op's inputs."""

    def __init__(self, example: Example, graded: tuple[bool, ...]) -> None:
        self.mode = _MODE
        self.results = example.results
        self.graph = fx.Graph()
        self.graded = iter(graded)
        self.inputs: dict[int, fx.Node] = {}
        self.real: dict[fx.Node, Any] = {}
        self.trainable: set[str] = set()
        self.node = self._add(example)
        self.graph.output(())
        self.block: Block = analyse("example", "", self.graph, {}, {}, self.trainable, self.mode)
        self.op: Op = self.block.ops[-1]
        self.sources = [next(n for n in self.graph.nodes if n.name == name) for name in self.op.inputs]
        self.values: list[Whole] = [self.real[source] for source in self.sources]
        self.needs_grad = [self.block.values[name].requires_grad for name in self.op.inputs]

    def _add(self, example: Example) -> fx.Node:
        args, kwargs = pytree.tree_map(self._lift, (example.args, example.kwargs))
        node = self.graph.call_function(example.target, args, kwargs)
        fakes = fx.map_arg((args, kwargs), lambda n: n.meta["val"])
        reals = fx.map_arg((args, kwargs), lambda n: self.real[n])
        with self.mode:
            node.meta["val"] = example.target(*fakes[0], **fakes[1])
        torch.manual_seed(0)
        self.real[node] = pytree.tree_map(lambda x: x, example.target(*reals[0], **reals[1]))
        return node

    def _lift(self, leaf: Any) -> Any:
        if isinstance(leaf, Example):
            return self._add(leaf)
        if not isinstance(leaf, Tensor):
            return leaf
        if id(leaf) not in self.inputs:
            node = self.graph.placeholder(f"x{len(self.inputs)}")
            node.meta["val"] = self.mode.from_tensor(leaf)
            self.inputs[id(leaf)] = node
            self.real[node] = leaf
            if leaf.is_floating_point() and next(self.graded, False):
                self.trainable.add(node.name)
        return self.inputs[id(leaf)]

    def run(
        self, values: list[Whole], strategy: Strategy, degree: int, rank: int = 0
    ) -> tuple[list[Tensor], list[Whole]]:
        """(flat outputs, the leaves whose gradients can be asked for) of one rank."""
        leaves = [
            pytree.tree_map(
                lambda t, g=grad: t.detach().clone().requires_grad_(g and t.is_floating_point()), value
            )
            for value, grad in zip(values, self.needs_grad, strict=True)
        ]
        rest = iter(leaves)
        args, kwargs = fx.map_arg((self.node.args, self.node.kwargs), lambda n: next(rest))
        local = LocalBlock(self.block, {}, REPLICATE, degree, "")
        if self.op.random:
            places = ((str(strategy.output), "", False),)
            call = drawn_call_of(self.node, args, kwargs, _DRAWS, places)
        else:
            call = local_call(self.node, strategy, args, kwargs, local)
        function, args, kwargs = call
        torch.manual_seed(0)
        group = Mock(rank=lambda: rank, size=lambda: degree)
        with (
            patch("autoplan.rewrite.kernels.group_of", lambda name: group),
            patch("autoplan.rewrite.random_kernels.group_of", lambda name: group),
        ):
            return pytree.tree_leaves(function(*args, **kwargs)), leaves

    def laid(self, source: fx.Node, layout: Layout) -> tuple[Layout, ...]:
        """The layout of each tensor of an input in ``layout``."""
        value = self.real[source]
        rule = rule_for(source.target) if source.op == "call_function" else None
        spec = rule(source) if rule is not None else None
        if spec is not None and spec.pieces:
            return piece_layouts(spec, layout)
        return (layout,) * (len(value) if isinstance(value, tuple | list) else 1)

    def pieces(self, layout: Layout, count: int) -> tuple[Layout, ...]:
        """The layout of each of ``count`` results, when that of the call is ``layout``."""
        spec = spec_of(self.block, self.op)
        return piece_layouts(spec, layout) if spec is not None and spec.pieces else (layout,) * count


@functools.cache
def variants(name: str) -> list[Call]:
    """The example of that name with choices of which floating inputs need a gradient, all of them first."""
    example = next(example for example in _EXAMPLES if example.name == name)
    count = len({id(leaf) for leaf in _tensors(example) if leaf.is_floating_point()}) - len(example.constant)
    choices = list(itertools.product((True, False), repeat=count))
    if count > 2:  # all, each alone, and none
        choices = [graded for graded in choices if sum(graded) in (0, 1, count)]
    return [Call(example, graded) for graded in choices]


def _tensors(example: Example) -> list[Tensor]:
    found = []
    for leaf in pytree.tree_leaves((example.args, example.kwargs)):
        found += _tensors(leaf) if isinstance(leaf, Example) else [leaf] if isinstance(leaf, Tensor) else []
    return found


def check(call: Call, strategy: Strategy, degree: int) -> None:
    """Run ``strategy`` on each rank's shards; compare value and gradients with the op on whole tensors."""
    said = f"{call.op.target} by {strategy} on {degree} ranks"
    whole_out, whole_leaves = call.run(call.values, _WHOLE, degree)
    whole_out = whole_out[: call.results]
    held = [
        _cut(value, call.laid(source, layout), degree)
        for source, value, layout in zip(call.sources, call.values, strategy.inputs, strict=True)
    ]
    ranks = [call.run([value[rank] for value in held], strategy, degree, rank) for rank in range(degree)]
    layouts = call.pieces(strategy.output, len(whole_out))
    for index, expected in enumerate(whole_out):
        got = join([out[index].detach() for out, _ in ranks], layouts[index].value_kind, layouts[index])
        _close(got, expected.detach(), said)
    wanted = [position for position, out in enumerate(whole_out) if out.requires_grad]
    if not wanted:
        return
    generator = torch.Generator().manual_seed(1)
    grads = [torch.randn(whole_out[i].shape, generator=generator, dtype=torch.float64) for i in wanted]
    grads = [grad.to(whole_out[i].dtype) for grad, i in zip(grads, wanted, strict=True)]
    local_grads = [
        cut(grad, layouts[i].gradient_kind, layouts[i], degree) for grad, i in zip(grads, wanted, strict=True)
    ]
    expected = _gradients([whole_out[i] for i in wanted], whole_leaves, grads)
    got = [
        _gradients([out[i] for i in wanted], leaves, [grad[rank] for grad in local_grads])
        for rank, (out, leaves) in enumerate(ranks)
    ]
    tensors = [
        (i, place)
        for i, leaf in enumerate(whole_leaves)
        for place, tensor in enumerate(pytree.tree_leaves(leaf))
        if tensor.requires_grad
    ]
    owners, places = [i for i, _ in tensors], [place for _, place in tensors]
    for index, owner in enumerate(owners):
        layout = call.laid(call.sources[owner], strategy.inputs[owner])[places[index]]
        joined = join([grads_of[index] for grads_of in got], layout.gradient_kind, layout)
        _close(joined, expected[index], f"gradient of input {owner} of {said}")


_DRAWS: Any = sample_draws(0, "test", 0, 2)
_WHOLE = Strategy("R", (), REPLICATE, share=False)


def _cut(value: Whole, layouts: tuple[Layout, ...], degree: int) -> list[Whole]:
    if isinstance(value, list | tuple):
        pieces = [
            cut(item, layout.value_kind, layout, degree) for item, layout in zip(value, layouts, strict=True)
        ]
        return [list(rank) for rank in zip(*pieces, strict=True)]
    return cut(value, layouts[0].value_kind, layouts[0], degree)  # type: ignore[return-value]


def _gradients(outputs: list[Tensor], leaves: list[Whole], grads: list[Tensor]) -> list[Tensor]:
    wanted = [leaf for leaf in pytree.tree_leaves(leaves) if leaf.requires_grad]
    return list(torch.autograd.grad(outputs, wanted, grads, allow_unused=True, materialize_grads=True))


def _close(got: Tensor, expected: Tensor, said: str) -> None:
    assert got.shape == expected.shape, f"{said}: shape {tuple(got.shape)}, expected {tuple(expected.shape)}"
    assert got.dtype == expected.dtype, f"{said}: {got.dtype}, expected {expected.dtype}"
    near = (
        1e-5
        if expected.dtype in (torch.float32, torch.complex64)
        else 1e-6
        if said.split(".")[1] in ("to", "_to_copy", "type_as")
        else 1e-10
    )
    torch.testing.assert_close(got, expected, rtol=near, atol=near, msg=lambda text: f"{said}\n{text}")
