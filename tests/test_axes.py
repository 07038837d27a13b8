"""Every strategy of every op, run on shards in one process, gives the op's own result and gradients."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.utils._pytree as pytree
from op_examples import Example, examples
from shards import cut, join
from torch import Tensor, fx
from torch._subclasses.fake_tensor import FakeTensorMode

from autoplan.graph.analysis import analyse
from autoplan.graph.axes import strategies
from autoplan.graph.axes.spec import _RULES
from autoplan.graph.ir import Block, Op
from autoplan.graph.layout import REPLICATE, Layout
from autoplan.graph.strategy import Strategy
from autoplan.rewrite.local_graph import LocalBlock, local_call

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


def test_every_rule_has_an_example() -> None:
    assert {str(target) for target in _RULES} == {str(example.target) for example in _EXAMPLES}


def test_examples_have_names_of_their_own() -> None:
    names = [example.name for example in _EXAMPLES]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize("example", _EXAMPLES, ids=lambda example: example.name)
def test_an_op_on_shards_is_the_op(example: Example) -> None:
    found: set[str] = set()
    for call in variants(example.name):
        for degree in (2, 4):
            for strategy in strategies(call.block, call.op, degree):
                if strategy.kernel is None:
                    check(call, strategy, degree)
                if degree == 2 and strategy.name.startswith("cut ") and strategy.kernel is None:
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
        self.graph = fx.Graph()
        self.graded = iter(graded)
        self.inputs: dict[int, fx.Node] = {}
        self.real: dict[fx.Node, Any] = {}
        self.trainable: set[str] = set()
        self.node = self._add(example)
        self.graph.output((self.node,))
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

    def run(self, values: list[Whole], strategy: Strategy, degree: int) -> tuple[list[Tensor], list[Whole]]:
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
        function, args, kwargs = local_call(self.node, strategy, args, kwargs, local)
        torch.manual_seed(0)
        return pytree.tree_leaves(function(*args, **kwargs)), leaves


@functools.cache
def variants(name: str) -> list[Call]:
    """The example of that name with each choice of which floating inputs need a gradient."""
    example = next(example for example in _EXAMPLES if example.name == name)
    count = len({id(leaf) for leaf in _tensors(example) if leaf.is_floating_point()}) - len(example.constant)
    return [Call(example, graded) for graded in itertools.product((True, False), repeat=count)]


def _tensors(example: Example) -> list[Tensor]:
    found = []
    for leaf in pytree.tree_leaves((example.args, example.kwargs)):
        found += _tensors(leaf) if isinstance(leaf, Example) else [leaf] if isinstance(leaf, Tensor) else []
    return found


def check(call: Call, strategy: Strategy, degree: int) -> None:
    """Run ``strategy`` on each rank's shards; compare value and gradients with the op on whole tensors."""
    said = f"{call.op.target} by {strategy} on {degree} ranks"
    whole_out, whole_leaves = call.run(call.values, _WHOLE, degree)
    held = [_cut(value, layout, degree) for value, layout in zip(call.values, strategy.inputs, strict=True)]
    ranks = [call.run([value[rank] for value in held], strategy, degree) for rank in range(degree)]
    for index, expected in enumerate(whole_out):
        got = join([out[index].detach() for out, _ in ranks], strategy.output.value_kind, strategy.output)
        _close(got, expected.detach(), said)
    wanted = [position for position, out in enumerate(whole_out) if out.requires_grad]
    if not wanted:
        return
    generator = torch.Generator().manual_seed(1)
    grads = [torch.randn(whole_out[i].shape, generator=generator, dtype=torch.float64) for i in wanted]
    grads = [grad.to(whole_out[i].dtype) for grad, i in zip(grads, wanted, strict=True)]
    local_grads = [cut(grad, strategy.output.gradient_kind, strategy.output, degree) for grad in grads]
    expected = _gradients([whole_out[i] for i in wanted], whole_leaves, grads)
    got = [
        _gradients([out[i] for i in wanted], leaves, [grad[rank] for grad in local_grads])
        for rank, (out, leaves) in enumerate(ranks)
    ]
    owners = [i for i, leaf in enumerate(whole_leaves) for t in pytree.tree_leaves(leaf) if t.requires_grad]
    for index, owner in enumerate(owners):
        layout = strategy.inputs[owner]
        joined = join([grads_of[index] for grads_of in got], layout.gradient_kind, layout)
        _close(joined, expected[index], f"gradient of input {owner} of {said}")


_WHOLE = Strategy("R", (), REPLICATE, share=False)


def _cut(value: Whole, layout: Layout, degree: int) -> list[Whole]:
    if isinstance(value, list | tuple):
        pieces = [cut(item, layout.value_kind, layout, degree) for item in value]
        return [list(rank) for rank in zip(*pieces, strict=True)]
    return cut(value, layout.value_kind, layout, degree)  # type: ignore[return-value]


def _gradients(outputs: list[Tensor], leaves: list[Whole], grads: list[Tensor]) -> list[Tensor]:
    wanted = [leaf for leaf in pytree.tree_leaves(leaves) if leaf.requires_grad]
    return list(torch.autograd.grad(outputs, wanted, grads, allow_unused=True, materialize_grads=True))


def _close(got: Tensor, expected: Tensor, said: str) -> None:
    assert got.shape == expected.shape, f"{said}: shape {tuple(got.shape)}, expected {tuple(expected.shape)}"
    assert got.dtype == expected.dtype, f"{said}: {got.dtype}, expected {expected.dtype}"
    near = 1e-5 if expected.dtype == torch.float32 else 1e-6 if "to" in said.split(".")[1] else 1e-10
    torch.testing.assert_close(got, expected, rtol=near, atol=near, msg=lambda text: f"{said}\n{text}")
