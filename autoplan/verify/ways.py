"""How an op runs on the ranks of one mesh axis, read off its iteration axes: the only source is ``AxisSpec``.

If axis a is cut over n ranks, each tensor with a dim that holds a has a piece of it on every rank. What lies
before a in that dim stays, so the piece is one of the dim seen in as many parts. Of a tensor without a every
rank has all. Results of ranks must then be added up if a is summed over, and so must the gradients of inputs
that the ranks share.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from types import BuiltinFunctionType
from typing import TYPE_CHECKING, Any

from autoplan.graph.layout import PARTIAL, REPLICATE, REPLICATE_STAR, Layout, shard
from autoplan.graph.mesh_calls import MeshCall
from autoplan.verify.verdict import Illegal, Unfamiliar

if TYPE_CHECKING:
    from autoplan.graph.ir import Block, Op

__all__ = ["Way", "has_kernel", "way_of"]

_TORCH_OWN = ("aten", "prims", "autoplan")


@dataclass(frozen=True, slots=True)
class Way:
    """Layouts of an op's inputs and its result; whether ranks share its work, and which size of its product
    shrinks by it; collectives of its own in the forward pass, as (kind, bytes)."""

    inputs: tuple[Layout, ...]
    output: Layout
    shares: bool = False
    product_axis: str | None = None
    sends: tuple[tuple[str, float], ...] = ()


def way_of(block: Block, op: Op, name: str, degree: int) -> Way:
    """The way called ``name``. Raises Illegal if the op's axes do not allow it on ``degree`` ranks."""
    if degree == 1 or name == "R":
        if name != "R":
            raise Illegal("one rank has nothing to cut")
        return Way((REPLICATE,) * len(op.inputs), REPLICATE)
    grads = [block.values[value].requires_grad for value in op.inputs]
    carries = block.values[op.output].requires_grad
    if name == "R*":
        return _with_partial_gradients(block, op, grads, carries)
    from autoplan.graph.axes import spec_of

    spec = spec_of(block, op)
    if spec is None:
        raise Illegal(f"{op.target} has no iteration axes, so it runs whole")
    if name == "P":
        return _on_partial_sums(spec, op, grads, carries)
    if not (match := re.fullmatch(r"cut ([^/\s]+)(?:/([1-9]\d*))?", name)):
        raise Illegal(f"{name!r} is no way to run an op")
    axis, parts = match[1], int(match[2] or 1)
    if axis not in spec.sizes or axis in spec.fixed:
        return _own_kernel(block, op, spec, axis, name, degree)
    size = spec.sizes[axis]
    if size % parts or (size // parts) % degree or size == parts:
        raise Illegal(f"axis {axis} of {size} does not divide into {parts} times {degree} pieces")
    output = _piece(spec.output, axis, parts, spec.sizes)
    summed = output is None
    if summed and not carries:
        raise Illegal(f"{axis} is summed over, and no gradient flows through the result")
    inputs = []
    for position, dims in enumerate(spec.inputs):
        piece = _piece(dims, axis, parts, spec.sizes)
        if piece is None and summed and position in spec.added_once:
            piece = PARTIAL
        inputs.append(piece or (REPLICATE_STAR if grads[position] else REPLICATE))
    return Way(tuple(inputs), output or PARTIAL, True, spec.gemm.get(axis))


def _with_partial_gradients(block: Block, op: Op, grads: list[bool], carries: bool) -> Way:
    """Backward is linear in the gradient that comes in, of torch's own ops; a user's may be anything."""
    if not carries:
        raise Illegal("the result has no gradient that could be partial")
    target = _call(block, op).target
    if (
        not isinstance(target, BuiltinFunctionType | MeshCall)
        and getattr(target, "namespace", "") not in _TORCH_OWN
    ):
        raise Illegal(f"{op.target} has a backward of its own, which need not be linear")
    return Way(tuple(REPLICATE_STAR if grad else REPLICATE for grad in grads), REPLICATE_STAR)


def _on_partial_sums(spec: Any, op: Op, grads: list[bool], carries: bool) -> Way:
    linear = spec.linear
    if linear is None or not carries:
        raise Illegal(f"{op.target} is not known to be linear")
    if any(grad != (position in linear) for position, grad in enumerate(grads)):
        raise Illegal(f"{op.target} is linear in other inputs than those with a gradient")
    return Way(tuple(PARTIAL if position in linear else REPLICATE for position in range(len(grads))), PARTIAL)


def _piece(dims: Any, axis: str, parts: int, sizes: dict[str, int]) -> Layout | None:
    """The layout of a tensor with these dims; None if none of them holds the axis."""
    for dim, axes in enumerate(dims):
        slower = parts
        for own in axes:
            if own == axis:
                return shard(dim, slower)
            slower *= sizes[own]
    return None


def _own_kernel(block: Block, op: Op, spec: Any, axis: str, name: str, degree: int) -> Way:
    """What no axis gives: kernels that know which of the rows, classes or experts are theirs."""
    whole = (REPLICATE,) * len(op.inputs)
    target = op.target.removeprefix("aten.").split(".")[0]
    if axis == "v" and target in ("embedding", "embedding_bag", "_embedding_bag"):
        _divides(block.values[op.inputs[0]].shape[0], degree, "rows of the table")
        return Way((shard(0), *whole[1:]), PARTIAL, True)
    if axis == "v" and target == "cross_entropy_loss" and len(op.inputs) == 2:
        _divides(block.values[op.inputs[0]].shape[1], degree, "classes")
        return Way((shard(1), *whole[1:]), REPLICATE, True, None, _class_sums(block, op))
    if axis == "e" and "grouped_mm" in op.target:
        _divides(block.values[op.inputs[1]].shape[0], degree, "experts")
        rows = REPLICATE_STAR if block.values[op.inputs[0]].requires_grad else REPLICATE
        return Way((rows, shard(0), *whole[2:]), PARTIAL, True, "batch")
    offered = spec.extra(degree) if spec.extra is not None else ()
    if any(strategy.name == name for strategy in offered):
        raise Unfamiliar(f"{op.target} with {name}")
    raise Illegal(f"{op.target} cannot be cut along {axis}")


def has_kernel(block: Block, op: Op, name: str, degree: int) -> bool:
    """True for a way that no axis of the op gives."""
    from autoplan.graph.axes import spec_of

    axis = re.fullmatch(r"cut ([^/\s]+)(?:/[1-9]\d*)?", name)
    spec = spec_of(block, op)
    return (
        degree > 1
        and axis is not None
        and (spec is None or axis[1] not in spec.sizes or axis[1] in spec.fixed)
    )


def _class_sums(block: Block, op: Op) -> tuple[tuple[str, float], ...]:
    """For each token the largest logit, the sum of exponentials, the target's logit; with smoothing, all logits'."""
    logits = block.values[op.inputs[0]]
    tokens = 1
    for dim, extent in enumerate(logits.shape):
        tokens *= 1 if dim == 1 else extent
    call = _call(block, op)
    smoothing = call.kwargs.get("label_smoothing", call.args[5] if len(call.args) > 5 else 0.0)
    return (("all_reduce", float(max(4, logits.itemsize) * tokens)),) * (4 if smoothing else 3)


def _divides(extent: int, degree: int, what: str) -> None:
    if extent % degree:
        raise Illegal(f"{extent} {what} do not divide by {degree}")


def _call(block: Block, op: Op) -> Any:
    return next(node for node in block.graph.nodes if node.name == op.name)
