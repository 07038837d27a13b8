"""Axes of contractions: linear layers, matrix products, einsum, embedding."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import fx

from autoplan.graph.axes.spec import AxisSpec, Dims, named, plain, register, shape_of
from autoplan.graph.gemms import argument, tensor_arguments
from autoplan.graph.layout import PARTIAL, REPLICATE, shard
from autoplan.graph.strategy import Strategy

_aten = torch.ops.aten


@register(_aten.linear.default)
def linear(node: fx.Node) -> AxisSpec | None:
    """``… i, o i, o -> … o``."""
    x, w = shape_of(node.args[0]), shape_of(node.args[1])
    lead, sizes = plain(x[:-1])
    sizes = sizes | {"o": w[0], "i": w[1]}
    inputs: list[Dims] = [(*lead, ("i",)), (("o",), ("i",))]
    if len(tensor_arguments(node)) == 3:
        inputs.append((("o",),))
    roles = dict.fromkeys(sizes, "m") | {"o": "n", "i": "k"}
    return AxisSpec(tuple(inputs), (*lead, ("o",)), sizes, gemm=roles, added_once=frozenset({2}))


@register(_aten.addmm.default)
def addmm(node: fx.Node) -> AxisSpec | None:
    """``o, m i, i o -> m o`` (GPT-2's Conv1D)."""
    if len(shape_of(node.args[0])) != 1:
        return None
    m, n = shape_of(node)
    sizes = {"m": m, "o": n, "i": shape_of(node.args[1])[1]}
    inputs: tuple[Dims, ...] = ((("o",),), (("m",), ("i",)), (("i",), ("o",)))
    return AxisSpec(
        inputs, (("m",), ("o",)), sizes, gemm={"m": "m", "o": "n", "i": "k"}, added_once=frozenset({0})
    )


@register(_aten.mm.default, _aten.bmm.default, _aten.matmul.default, _aten.mv.default, _aten.dot.default)
def matmul(node: fx.Node) -> AxisSpec | None:
    """``… m k, … k n -> … m n`` with the leading dims broadcast; a vector lacks m or n."""
    return _matmul(shape_of(node.args[0]), shape_of(node.args[1]), shape_of(node))


@register(_aten.baddbmm.default)
def baddbmm(node: fx.Node) -> AxisSpec | None:
    """``b m n, b m k, b k n -> b m n``, the first added once."""
    x, shape = shape_of(node.args[0]), shape_of(node)
    spec = _matmul(shape_of(node.args[1]), shape_of(node.args[2]), shape)
    own = tuple(spec.output[i - len(x)] if n > 1 else () for i, n in enumerate(x))
    return replace(spec, inputs=(own, *spec.inputs), added_once=frozenset({0}))


def _matmul(a: tuple[int, ...], b: tuple[int, ...], shape: tuple[int, ...]) -> AxisSpec:
    m, n = len(a) > 1, len(b) > 1
    lead_shape = shape[: len(shape) - m - n]
    lead, sizes = plain(lead_shape)
    sizes = sizes | ({"m": a[-2]} if m else {}) | ({"n": b[-1]} if n else {}) | {"k": a[-1]}

    def leading(own: tuple[int, ...]) -> Dims:
        offset = len(lead) - len(own)
        return tuple(lead[offset + i] if extent > 1 else () for i, extent in enumerate(own))

    roles = dict.fromkeys(sizes, "batch" if len(b) > 2 else "m") | {"m": "m", "n": "n", "k": "k"}
    left: Dims = (*leading(a[:-2]), *((("m",),) if m else ()), ("k",))
    right: Dims = (*leading(b[:-2]), ("k",), *((("n",),) if n else ()))
    output: Dims = (*lead, *((("m",),) if m else ()), *((("n",),) if n else ()))
    return AxisSpec((left, right), output, sizes, gemm=roles)


@register(_aten.linalg_solve_triangular.default)
def solve_triangular(node: fx.Node) -> AxisSpec | None:
    """``… n n, … n k -> … n k`` (or ``… k n`` on the right): every right-hand side by itself."""
    matrix, sides, shape = shape_of(node.args[0]), shape_of(node.args[1]), shape_of(node)
    output, sizes = plain(shape)
    own = [
        tuple(output[i - len(given)] if n > 1 else () for i, n in enumerate(given))
        for given in (matrix, sides)
    ]
    solved = output[-2] if named(node, "left") else output[-1]
    return AxisSpec(
        (
            (*own[0][:-2], (), ()),
            own[1],
        ),
        output,
        sizes,
        fixed=frozenset(solved),
        linear=frozenset({1}),
    )


@register(_aten.outer.default, _aten.ger.default)
def outer(node: fx.Node) -> AxisSpec | None:
    """``m, n -> m n``."""
    sizes = dict(zip("mn", shape_of(node), strict=True))
    return AxisSpec(((("m",),), (("n",),)), (("m",), ("n",)), sizes)


@register(_aten.einsum.default)
def einsum(node: fx.Node) -> AxisSpec | None:
    """As its equation says. A letter twice in one operand (a diagonal) keeps the call whole."""
    equation = str(node.args[0]).replace(" ", "")
    shapes = [shape_of(source) for source in tensor_arguments(node)]
    left, arrow, right = equation.partition("->")
    terms = left.split(",")
    hidden = max(
        (len(shape) - len(term.replace("...", "")) for term, shape in zip(terms, shapes, strict=True)),
        default=0,
    )
    spelt = [
        _letters(term, len(shape) - len(term.replace("...", "")), hidden)
        for term, shape in zip(terms, shapes, strict=True)
    ]
    if any(len(set(term)) < len(term) for term in spelt):
        return None
    if arrow:
        result = _letters(right, hidden, hidden)
    else:
        flat = [letter for term in spelt for letter in term]
        once = sorted(letter for letter in set(flat) if flat.count(letter) == 1 and len(letter) == 1)
        result = [*_letters("..." if "..." in left else "", hidden, hidden), *once]
    sizes: dict[str, int] = {}
    for term, shape in zip(spelt, shapes, strict=True):
        for letter, extent in zip(term, shape, strict=True):
            sizes[letter] = max(extent, sizes.get(letter, 1))
    inputs = tuple(
        tuple((letter,) if extent > 1 else () for letter, extent in zip(term, shape, strict=True))
        for term, shape in zip(spelt, shapes, strict=True)
    )
    output = tuple((letter,) if sizes[letter] > 1 else () for letter in result)
    sizes = {letter: extent for letter, extent in sizes.items() if extent > 1}
    return AxisSpec(inputs, output, sizes, linear=frozenset({0}) if len(shapes) == 1 else None)


def _letters(term: str, own: int, hidden: int) -> list[str]:
    """The axes of a term; an ellipsis stands for the last ``own`` of ``hidden`` leading axes."""
    dots = [f"e{i}" for i in range(hidden - own, hidden)] if "..." in term else []
    before, _, after = term.partition("...")
    return [*before, *dots, *after]


@register(_aten.embedding.default)
def embedding(node: fx.Node) -> AxisSpec | None:
    """``v h, … -> … h``; cutting v needs a kernel that looks up only the rows a rank has."""
    if argument(node, 3, "scale_grad_by_freq", False) or argument(node, 4, "sparse", False):
        return None  # the gradient counts how often a row is read anywhere, or is not a plain tensor
    weight, index = shape_of(node.args[0]), shape_of(node.args[1])
    lead, sizes = plain(index)
    sizes = sizes | {"h": weight[1]}

    def rows(degree: int) -> Sequence[Strategy]:
        if weight[0] % degree:
            return ()
        return (Strategy("cut v", (shard(0), REPLICATE), PARTIAL, share=True, kernel="vocab_embedding"),)

    return AxisSpec(
        ((("v",), ("h",)), lead),
        (*lead, ("h",)),
        sizes | {"v": weight[0]},
        fixed=frozenset({"v"}),
        extra=rows,
    )
