"""The iteration axes of an op, written down for one call of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import fx

from autoplan.graph.strategy import Strategy

__all__ = ["AxisSpec", "Dims", "Rule", "register", "rule_for", "shape_of"]

Dims = tuple[tuple[str, ...], ...]
"""For each dim of a tensor, the axes it is the product of, the slowest first; () for a dim of size 1 or
one that is broadcast."""


@dataclass(frozen=True, slots=True)
class AxisSpec:
    """An op as einsum would write it.

    Args:
        inputs: the axes of each tensor argument, in argument order.
        output: the axes of the result (of each, for a list).
        sizes: the extent of each axis.
        fixed: axes that cannot be cut: what a softmax or a norm runs over.
        gemm: for a matrix product, which of its sizes an axis belongs to.
        added_once: positions of inputs that are added to a contraction's result (a bias).
        linear: positions of inputs in which the op is jointly linear: when all of these are partial sums, so is
            the result. None when there is no such set.
        extra: strategies that no axis gives, with kernels of their own.
    """

    inputs: tuple[Dims, ...]
    output: Dims
    sizes: dict[str, int]
    fixed: frozenset[str] = frozenset()
    gemm: dict[str, str] = field(default_factory=dict)
    added_once: frozenset[int] = frozenset()
    linear: frozenset[int] | None = None
    extra: Callable[[int], Sequence[Strategy]] | None = None


Rule = Callable[[fx.Node], AxisSpec | None]
_RULES: dict[object, Rule] = {}


def register(*targets: object) -> Callable[[Rule], Rule]:
    """Give ops a rule: a function from the fx node of a call to its AxisSpec, or None to keep it whole."""

    def decorate(rule: Rule) -> Rule:
        for target in targets:
            _RULES[target] = rule
        return rule

    return decorate


def rule_for(target: object) -> Rule | None:
    """The rule of an op, or None: such an op runs whole on every rank."""
    return _RULES.get(target)


def shape_of(node: object) -> tuple[int, ...]:
    """The global shape of a node's value; of its first element for a list."""
    value = node.meta["val"]  # type: ignore[attr-defined]
    if isinstance(value, tuple | list):
        value = value[0]
    assert isinstance(value, torch.Tensor)
    return tuple(int(n) for n in value.shape)
