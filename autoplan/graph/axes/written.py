"""Axes as people write them, for ops of their own: ``register_axes(op, "... i, o i -> ... o")``.

    term     the dims of one tensor, separated by spaces: ``b s f``; ``()`` for a tensor without dims
    name     an axis. One that only inputs have is summed over by the op; one that only results have is new
    name!    an axis that cannot be cut: the op needs all of it at once, as a softmax does
    (h e)    a dim that is the product of axes, the slowest first
    1        a dim in which nothing is cut
    ...      any number of leading dims, broadcast as torch does

A dim of size one where others have more is broadcast, and so has no axis. An axis that only some of several
results have is not cut. It is what ``axes_text`` prints.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from autoplan.errors import ModelError
from autoplan.graph.axes.spec import AxisSpec, Dims, Rule, named, register
from autoplan.graph.functions import FunctionCall
from autoplan.graph.gemms import tensor_arguments

__all__ = ["register_axes", "written_rule"]

_TOKEN = re.compile(r"\s*(\.\.\.|\(|\)|[A-Za-z_]\w*!?|1)")
_REMEDY = "correct the text passed to register_axes"


def register_axes(
    op: Any,
    axes: str | Rule,
    *,
    counts: Mapping[str, str] | None = None,
    linear: Sequence[int] = (),
) -> None:
    """Say what the dims of an op mean, so that autoplan may cut it.

    Args:
        op: a ``torch.library.custom_op``, an op of ``torch.ops`` (one overload, or all of them), or a subclass of
            ``torch.autograd.Function``.
        axes: the axes of each tensor argument and of each result, as ``"b s f, f! -> b s f"`` (see this
            module's head); or a function from the call's ``torch.fx.Node`` to an ``AxisSpec``, or to None for a
            call that must run whole.
        counts: arguments that are the extent of an axis, which a rank must pass its share of:
            ``{"num_heads": "h"}``.
        linear: positions of tensor arguments in which the op is jointly linear (the others held): when these
            are partial sums, so is the result.

    The text is a promise: the op run on pieces of its arguments, cut along any axis that is not marked ``!``, gives
    the piece of the result (or a part of the sum), forward and backward; it draws no random numbers. Whatever the
    text, an op of the user's is never run on partial gradients, unless ``linear`` says that it may be.

    Raises:
        ModelError: the text cannot be read, or ``op`` is none of these.
    """
    rule = axes if callable(axes) else written_rule(axes, counts or {}, linear)
    register(*_targets(op))(rule)


def _targets(op: Any) -> tuple[object, ...]:
    if isinstance(op, type) and issubclass(op, torch.autograd.Function):
        return (FunctionCall(op),)
    op = getattr(op, "_opoverload", op)  # a custom_op's definition
    if isinstance(op, torch._ops.OpOverloadPacket):
        return tuple(getattr(op, name) for name in op.overloads())
    if isinstance(op, torch._ops.OpOverload):
        return (op,)
    raise ModelError(
        "register_axes",
        op,
        "a torch.library.custom_op, an op of torch.ops, or a subclass of torch.autograd.Function",
        "pass the op itself, not a function that calls it",
    )


@dataclass(frozen=True, slots=True)
class _Term:
    """One tensor: the axes of each dim, after ``leading`` ones if it starts with an ellipsis."""

    dims: Dims
    leading: bool


def written_rule(text: str, counts: Mapping[str, str], linear: Sequence[int] = ()) -> Rule:
    """The rule that ``text`` describes; see ``register_axes``."""
    left, arrow, right = text.partition("->")
    if not arrow:
        raise ModelError("register_axes", text, "inputs -> results, as in 'b i, o i -> b o'", _REMEDY)
    inputs = [_term(part, text) for part in left.split(",")] if left.strip() else []
    results = [_term(part, text) for part in right.split(",")]
    fixed = frozenset(name[:-1] for name in re.findall(r"\w+!", text))
    known = {axis for term in (*inputs, *results) for dim in term.dims for axis in dim}
    if strangers := sorted(set(counts.values()) - known):
        raise ModelError("register_axes(counts=…)", strangers, f"axes of {text!r}", _REMEDY)

    def rule(node: fx.Node) -> AxisSpec | None:
        reader = _Reader(node, text)
        reader.sizes = {axis: int(named(node, argument)) for argument, axis in counts.items()}
        sources = [source.meta["val"] for source in tensor_arguments(node)]
        value = node.meta["val"]
        values = list(value) if isinstance(value, tuple | list) else [value]
        reader.check(len(sources), len(inputs), "tensor arguments")
        reader.check(len(values), len(results), "results")
        pairs = list(zip((*inputs, *results), (*sources, *values), strict=True))
        reader.measure([(term, tuple(tensor.shape)) for term, tensor in pairs])
        dims = [reader.dims(term, tuple(tensor.shape)) for term, tensor in pairs]
        sizes = {axis: n for axis, n in reader.sizes.items() if n > 1}
        outputs = dims[len(inputs) :]
        return AxisSpec(
            tuple(dims[: len(inputs)]),
            outputs[0],
            sizes,
            fixed=(fixed | _in_some(outputs)) & sizes.keys(),
            linear=frozenset(linear) or None,
            counts=counts,
            pieces=tuple(outputs) if len(outputs) > 1 else (),
        )

    return rule


def _in_some(results: list[Dims]) -> frozenset[str]:
    """Axes that some results have and others lack: of these, a rank could give only a part of the gradient."""
    held = [{axis for dim in dims for axis in dim} for dims in results]
    return frozenset(set.union(*held) - set.intersection(*held))


def _term(part: str, text: str) -> _Term:
    tokens, rest = [], part.rstrip()
    while rest:
        match = _TOKEN.match(rest)
        if match is None:
            raise ModelError("register_axes", text, f"axes where it says {rest.strip()!r}", _REMEDY)
        tokens.append(match[1])
        rest = rest[match.end() :]
    leading = bool(tokens) and tokens[0] == "..."
    dims: list[tuple[str, ...]] = []
    group: list[str] | None = None
    for token in tokens[leading:]:
        if token == "(" and group is None:
            group = []
        elif token == ")" and group is not None:
            dims += [tuple(group)] if group else []
            group = None
        elif token in ("(", ")", "..."):
            raise ModelError(
                "register_axes", text, f"one level of brackets, and ... first, in {part!r}", _REMEDY
            )
        elif group is not None:
            group += [token.rstrip("!")] if token != "1" else []
        else:
            dims.append((token.rstrip("!"),) if token != "1" else ())
    if group is not None:
        raise ModelError("register_axes", text, f"a closing bracket in {part!r}", _REMEDY)
    return _Term(tuple(dims), leading)


class _Reader:
    """Fits terms to the shapes of one call."""

    def __init__(self, node: fx.Node, text: str) -> None:
        self.node, self.text = node, text
        self.sizes: dict[str, int] = {}

    def check(self, got: int, wanted: int, what: str) -> None:
        if got != wanted:
            raise self._misfit(f"{got} {what}", f"{wanted} {what}, as in {self.text!r}")

    def measure(self, pairs: list[tuple[_Term, tuple[int, ...]]]) -> None:
        """Find the size of every axis: first of those with a dim of their own, then of the last in a product."""
        spelt = [(self._spelt(term, shape), shape) for term, shape in pairs]
        for dims, shape in spelt:
            for axes, n in zip(dims, shape, strict=True):
                if len(axes) == 1:
                    self.sizes[axes[0]] = max(n, self.sizes.get(axes[0], 1))
        for dims, shape in spelt:
            for axes, n in zip(dims, shape, strict=True):
                unknown = [axis for axis in axes if axis not in self.sizes]
                for axis in axes:
                    n //= self.sizes.get(axis, 1)
                if len(unknown) > 1:
                    raise self._misfit(unknown, "a size for all but one of these: use counts")
                self.sizes |= dict.fromkeys(unknown, n)

    def dims(self, term: _Term, shape: tuple[int, ...]) -> Dims:
        """The axes of each dim of a tensor, those of size one left out."""
        found: list[tuple[str, ...]] = []
        for axes, n in zip(self._spelt(term, shape), shape, strict=True):
            extent = 1
            for axis in axes:
                extent *= self.sizes[axis]
            if n not in (1, extent) and axes:
                raise self._misfit(shape, f"a dim of {extent} for {' '.join(axes)} in {self.text!r}")
            found.append(tuple(axis for axis in axes if self.sizes[axis] > 1) if n > 1 else ())
        return tuple(found)

    def _spelt(self, term: _Term, shape: tuple[int, ...]) -> Dims:
        rest = len(shape) - len(term.dims)
        if rest < 0 or (rest and not term.leading):
            raise self._misfit(shape, f"{len(term.dims)} dims, as in {self.text!r}")
        # numbered from the right, as broadcasting aligns them
        return (*((f"lead{rest - i}",) for i in range(rest)), *term.dims)

    def _misfit(self, value: Any, expected: str) -> ModelError:
        return ModelError(f"axes of {self.node.target}", value, expected, _REMEDY)
