"""Every way to run an op on the context-parallel axis: the enumerator's, and kernels for a cut sequence.

Parameters are whole on every rank of this axis, and their gradients are summed along with those of the data axes:
they lie as ``R*``.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch

from autoplan.graph.axes.enumerate import enumerated, node_of, part_counts, spec_of
from autoplan.graph.axes.spec import is_floating, named, shape_of
from autoplan.graph.gemms import is_attention, tensor_arguments
from autoplan.graph.ir import Block, Op
from autoplan.graph.layout import PARTIAL, REPLICATE, REPLICATE_STAR, Collective, Layout, shard
from autoplan.graph.strategy import GATHERED_ATTENTION, RING_ATTENTION, InternalCollective, Strategy

__all__ = ["sequence_strategies", "stored_layout"]

_KERNELS = (None, "share_of_mean")


def stored_layout(block: Block, name: str) -> Layout:
    """How a parameter lies along cp."""
    return REPLICATE_STAR if block.values[name].requires_grad else REPLICATE


def sequence_strategies(block: Block, op: Op, degree: int) -> tuple[Strategy, ...]:
    """Every strategy of ``op`` on a context-parallel axis of ``degree`` ranks, in a fixed order, ``R`` first.

    Causal attention may cut the rows of its queries, with keys and values cut alike and gathered by the op itself
    (``cut q``); attention without a mask of its own may send them round the ranks (``ring q``); a mean cross-entropy
    may cut its tokens.
    """
    key = ("cp", op.name, degree)
    if key not in block._strategies:
        block._strategies[key] = tuple(_strategies(block, op, degree))
    return block._strategies[key]


def _strategies(block: Block, op: Op, degree: int) -> Iterator[Strategy]:
    parts = part_counts(block, rows=True)
    found = [s for s in enumerated(block, op, degree, parts) if s.kernel in _KERNELS]
    spec = spec_of(block, op)
    if degree == 1 or spec is None or spec.pieces:
        yield from (s for s in found if not s.share)
        return
    yield from found
    node = node_of(block, op.name)
    if is_attention(node) and not op.random and len(op.inputs) == 3:
        if op.causal:
            yield from _gathered(block, op, degree)
        yield from _ring(block, op, degree)
    if node.target is torch.ops.aten.cross_entropy_loss.default:
        yield from _tokens(block, op, degree, parts)


def _gathered(block: Block, op: Op, degree: int) -> Iterator[Strategy]:
    """Rows of queries, keys and values cut; the kernel gathers keys and values, again in the backward pass."""
    q, k, v = (block.values[name] for name in op.inputs[:3])
    if q.shape[-2] != k.shape[-2] or q.shape[-2] % degree:
        return
    cut = tuple(shard(len(value.shape) - 2) for value in (q, k, v))
    sent: list[InternalCollective] = []
    for value in (k, v):
        sent.append(InternalCollective(Collective.ALL_GATHER, value.nbytes, "forward"))
        sent.append(InternalCollective(Collective.ALL_GATHER, value.nbytes, "backward"))
        sent.append(InternalCollective(Collective.REDUCE_SCATTER, value.nbytes, "backward"))
    yield Strategy(
        "cut q", cut, cut[0], share=True, gemm_axis="m", kernel=GATHERED_ATTENTION, internal=tuple(sent)
    )


def _ring(block: Block, op: Op, degree: int) -> Iterator[Strategy]:
    """Rows of queries, keys and values cut; the kernel passes keys and values on as one message, degree - 1 times
    forward and again backward, and their gradients, in float32 or wider, degree times, the last of them alone."""
    q, k, v = (block.values[name] for name in op.inputs)
    if q.shape[-2] % degree or k.shape[-2] % degree or (op.causal and q.shape[-2] != k.shape[-2]):
        return
    if q.shape[:-3] != k.shape[:-3] or k.shape[:-2] != v.shape[:-2]:
        return
    cut = tuple(shard(len(value.shape) - 2) for value in (q, k, v))
    held = (k.nbytes + v.nbytes) // degree
    gradients = held * max(4, k.itemsize) // k.itemsize
    send = Collective.SEND_RECV
    sent = (
        InternalCollective(send, held, "forward", degree - 1),
        InternalCollective(send, held, "backward", degree - 1),
        InternalCollective(send, gradients, "backward", degree - 1),
        InternalCollective(send, gradients, "backward"),
    )
    yield Strategy("ring q", cut, cut[0], share=True, gemm_axis="m", kernel=RING_ATTENTION, internal=sent)


def _tokens(block: Block, op: Op, degree: int, parts_of_dims: tuple[int, ...]) -> Iterator[Strategy]:
    """A mean over the tokens that count, of which each rank has some: their sum over the number on all ranks."""
    node = node_of(block, op.name)
    logits = shape_of(node.args[0])
    mean = int(named(node, "reduction")) == 1
    if not mean or len(tensor_arguments(node)) > 2 or len(logits) < 2 or is_floating(node.args[1]):
        return
    for dim, size in enumerate(logits):
        for parts in parts_of_dims if dim != 1 else ():
            if size % (parts * degree) == 0:
                name = f"cut d{dim}" if parts == 1 else f"cut d{dim}/{parts}"
                cut = (shard(dim, parts), shard(max(dim - 1, 0), parts))
                yield Strategy(name, cut, PARTIAL, share=True, kernel="token_cross_entropy")
