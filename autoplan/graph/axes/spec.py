"""The iteration axes of an op, written down for one call of it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import torch
from torch import fx

from autoplan.graph.functions import FunctionCall
from autoplan.graph.gemms import tensor_arguments
from autoplan.graph.strategy import Strategy

__all__ = [
    "AxisSpec",
    "Dims",
    "Rule",
    "along",
    "has_own_backward",
    "is_floating",
    "named",
    "plain",
    "register",
    "register_fallback",
    "rule_for",
    "shape_of",
]

Dims = tuple[tuple[str, ...], ...]
"""For each dim of a tensor, the axes it is the product of, the slowest first; () for a dim of size 1 or
one that is broadcast."""


@dataclass(frozen=True, slots=True)
class AxisSpec:
    """An op as einsum would write it.

    Args:
        inputs: the axes of each tensor argument, in argument order.
        output: the axes of the result (of each, for a list; of the first, for ``pieces``).
        sizes: the extent of each axis.
        fixed: axes that cannot be cut: what a softmax or a norm runs over.
        gemm: for a matrix product, which of its sizes an axis belongs to.
        added_once: positions of inputs that are added to a contraction's result (a bias).
        linear: positions of inputs in which the op is jointly linear: when all of these are partial sums, so is
            the result. None when there is no such set.
        extra: strategies that no axis gives, with kernels of their own.
        averaged: contracted axes over which the op takes a mean, not a sum.
        counts: arguments of the call that are the extent of an axis (``{"num_heads": "h"}``): a rank passes its share.
        pieces: the axes of every result, for a call that returns tensors of unlike shapes. A result that lacks an
            axis must not depend on it, nor carry a gradient.
    """

    inputs: tuple[Dims, ...]
    output: Dims
    sizes: dict[str, int]
    fixed: frozenset[str] = frozenset()
    gemm: Mapping[str, str] = field(default_factory=dict)
    added_once: frozenset[int] = frozenset()
    linear: frozenset[int] | None = None
    extra: Callable[[int], Sequence[Strategy]] | None = None
    averaged: frozenset[str] = frozenset()
    counts: Mapping[str, str] = field(default_factory=dict)
    pieces: tuple[Dims, ...] = ()


Rule = Callable[[fx.Node], AxisSpec | None]
_RULES: dict[object, Rule] = {}
_FALLBACKS: list[tuple[Callable[[object], bool], Rule]] = []


def register(*targets: object) -> Callable[[Rule], Rule]:
    """Give ops a rule: a function from the fx node of a call to its AxisSpec, or None to keep it whole.

    A target is an overload (``torch.ops.aten.mm.default``), or its name as text when its library may not be there.
    """

    def decorate(rule: Rule) -> Rule:
        for target in targets:
            _RULES[target] = rule
        return rule

    return decorate


def register_fallback(covers: Callable[[object], bool]) -> Callable[[Rule], Rule]:
    """Give a rule to every op that has none of its own and that ``covers`` says yes to."""

    def decorate(rule: Rule) -> Rule:
        _FALLBACKS.append((covers, rule))
        return rule

    return decorate


def rule_for(target: object) -> Rule | None:
    """The rule of an op, or None: such an op runs whole on every rank."""
    rule = _RULES.get(target)
    if rule is None:
        rule = _RULES.get(str(target))
    if rule is None:
        rule = next((rule for covers, rule in _FALLBACKS if covers(target)), None)
    return rule


def has_own_backward(target: object) -> bool:
    """True for an op of the user's: a ``torch.autograd.Function``, or an operator of another library."""
    if isinstance(target, torch._ops.OpOverload):
        return target.namespace not in ("aten", "prims", "autoplan")
    return isinstance(target, FunctionCall)


def shape_of(node: object) -> tuple[int, ...]:
    """The global shape of a node's value; of its first element for a list."""
    value = node.meta["val"]  # type: ignore[attr-defined]
    if isinstance(value, tuple | list):
        value = value[0]
    assert isinstance(value, torch.Tensor)
    return tuple(int(n) for n in value.shape)


def is_floating(node: object) -> bool:
    """True if a node's value (the first of a list) can carry a gradient."""
    value = node.meta["val"]  # type: ignore[attr-defined]
    value = value[0] if isinstance(value, tuple | list) else value
    return value.is_floating_point() or value.is_complex()


def named(node: fx.Node, name: str, default: Any = None) -> Any:
    """An argument of a call by its name in the op's schema, however it was passed, its default included.

    ``default`` is what comes back when the op has no such argument.
    """
    if name in node.kwargs:
        return node.kwargs[name]
    position, preset = _arguments(node.target).get(name, (len(node.args), default))
    return node.args[position] if position < len(node.args) else preset


@cache
def _arguments(target: Any) -> dict[str, tuple[int, Any]]:
    schema = target._schema.arguments
    return {a.name: (i, a.default_value) for i, a in enumerate(schema)}


def plain(shape: Sequence[int], letter: str = "d") -> tuple[Dims, dict[str, int]]:
    """One axis for each dim that is not of size one, and the axes' sizes."""
    axes = tuple((f"{letter}{i}",) if n > 1 else () for i, n in enumerate(shape))
    return axes, {f"{letter}{i}": n for i, n in enumerate(shape) if n > 1}


def along(node: fx.Node, whole: Iterable[int], linear: Iterable[int] | None = None) -> AxisSpec | None:
    """An op whose tensors all have the result's rank and go dim for dim, except in the dims that stay ``whole``.

    A dim in which two tensors differ stays whole too (a tensor of size one is broadcast). Numbers, which have no
    dims, go with anything. None when the ranks differ.
    """
    shapes = [shape_of(source) for source in tensor_arguments(node)]
    result = shape_of(node)
    rank = len(result)
    if any(len(shape) not in (0, rank) for shape in shapes):
        return None
    fixed_dims = {dim % rank for dim in whole} if rank else set()
    fixed_dims |= {i for i in range(rank) if any(s and s[i] not in (1, result[i]) for s in shapes)}
    output, sizes = plain(result)
    fixed = {f"d{i}" for i in fixed_dims if result[i] > 1}
    inputs = []
    for k, shape in enumerate(shapes):
        dims = []
        for i, n in enumerate(shape):
            name = f"d{i}" if n == result[i] else f"d{i}_{k}"
            dims.append((name,) if n > 1 else ())
            if n > 1 and n != result[i]:
                sizes[name] = n
                fixed.add(name)
        inputs.append(tuple(dims))
    return AxisSpec(
        tuple(inputs),
        output,
        sizes,
        fixed=frozenset(fixed),
        linear=None if linear is None else frozenset(linear),
    )
