"""Seconds that one op takes on one device, under one strategy.

    GEMM       forward: one product; backward: one more for each operand that needs a gradient,
               dX (m, n)·(n, k) and dW (k, m)·(m, n); the cut makes one of batch, m, n, k n times smaller
    attention  the device's own forward and backward curves
    memory     bytes touched over the device's bandwidth
    experts    one product for each; cut over ranks, the rows of the busiest rank (``graph.routing``)
    view       as memory: nothing forward, and backward what its gradient copies (a slice's, an expand's)

An op with FLOPs of which the graph knows no product (grouped experts, convolutions) is priced as the
product whose result has its output's size, and never below its bytes.

Every curve belongs to the device (``hardware``); this module only says which size to ask it for.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING

from autoplan.cost.times import Times, exposed_s
from autoplan.graph.ir import Gemm, OpKind
from autoplan.graph.strategy import GATHERED_ATTENTION, RING_ATTENTION
from autoplan.graph.weight_halves import halved_product

if TYPE_CHECKING:
    from autoplan.graph.ir import Block, Op
    from autoplan.graph.strategy import Strategy
    from autoplan.hardware import Cluster

__all__ = ["cuts_experts", "op_times", "product_of", "weight_half_s"]


def op_times(
    block: Block, op: Op, strategy: Strategy, degree: int, cluster: Cluster, stride: int = 1
) -> Times:
    """Seconds of ``op`` on one of ``degree`` ranks ``stride`` apart, with what its kernel sends by itself.

    What the op sends on an axis that has cut its block before (``Op.sends``) goes between ranks ``degree`` apart:
    that axis lies just outside this one.
    """
    cut = degree if strategy.share else 1
    gemm = product_of(block, op)
    if gemm is None:
        computed = _memory_times(op, cut, cluster)
    elif op.kind is OpKind.ATTENTION:
        computed = _attention_times(block, op, gemm, strategy, cut, cluster)
    else:
        computed = _gemm_times(block, op, gemm, strategy, cut, cluster)
    if gemm is not None and op.gemm is None:
        touched = _memory_times(op, cut, cluster)
        computed = Times(
            max(computed.forward_s, touched.forward_s), max(computed.backward_s, touched.backward_s)
        )
    inside = _internal_times(strategy, computed, degree, cluster, stride)
    return computed + inside + _sent_times(op, computed, cut, degree, cluster)


def weight_half_s(block: Block, op: Op, strategy: Strategy, degree: int, cluster: Cluster) -> float:
    """Of the backward of ``op``, the seconds of the product dW where that can run apart; otherwise 0."""
    if op.gemm is None or halved_product(block, op) is None:
        return 0.0
    size = op.gemm.cut(strategy.gemm_axis, degree if strategy.share else 1)
    return cluster.device.gemm_time_s((size.batch, size.k, size.n, size.m), block.values[op.output].dtype)


def product_of(block: Block, op: Op) -> Gemm | None:
    """The product that stands for an op's FLOPs: its own, or one whose result has its output's size."""
    if op.gemm is not None or not op.flops_forward:
        return op.gemm
    shape = block.values[op.output].shape
    n = shape[-1] if shape else 1
    m = max(math.prod(shape) // n, 1)
    return Gemm(1, m, n, max(round(op.flops_forward / (2 * m * n)), 1))


def cuts_experts(op: Op, strategy: Strategy) -> bool:
    """True if each rank multiplies the rows of its own experts: the busiest rank then sets the pace."""
    return op.routing is not None and strategy.share and strategy.gemm_axis == "batch"


def _gemm_times(block: Block, op: Op, gemm: Gemm, strategy: Strategy, cut: int, cluster: Cluster) -> Times:
    dtype = block.values[op.output].dtype
    size = gemm.cut(strategy.gemm_axis, cut)
    if cuts_experts(op, strategy) and op.routing is not None:
        size = replace(size, m=math.ceil(size.m * op.routing.load(gemm.batch, cut)))
    b, m, n, k = size.batch, size.m, size.n, size.k
    products = round(op.flops_backward / op.flops_forward) if op.flops_forward else 0
    time_s = cluster.device.gemm_time_s
    backward = 0.0
    if products >= 1:
        backward += time_s((b, m, k, n), dtype)
    if products >= 2:
        backward += time_s((b, k, n, m), dtype)
    return Times(time_s((b, m, n, k), dtype), backward)


def _attention_times(
    block: Block, op: Op, gemm: Gemm, strategy: Strategy, cut: int, cluster: Cluster
) -> Times:
    dtype = block.values[op.output].dtype
    size = gemm.cut(strategy.gemm_axis, cut)
    by_rows = strategy.kernel in (GATHERED_ATTENTION, RING_ATTENTION)
    pieces = cut if strategy.kernel == RING_ATTENTION else op.pieces
    sizes = (size.batch, size.m, math.ceil(size.n / pieces), size.k, dtype, op.causal and not by_rows)
    backward = cluster.device.attention_time_s(*sizes, backward=True) if op.flops_backward else 0.0
    return Times(pieces * cluster.device.attention_time_s(*sizes), pieces * backward)


def _memory_times(op: Op, cut: int, cluster: Cluster) -> Times:
    time_s = cluster.device.memory_time_s
    return Times(
        time_s(op.bytes_forward / cut) if op.bytes_forward else 0.0,
        time_s(op.bytes_backward / cut) if op.bytes_backward else 0.0,
    )


def _sent_times(op: Op, computed: Times, cut: int, stride: int, cluster: Cluster) -> Times:
    forward = backward = 0.0
    for send in op.sends:
        seconds = cluster.collective_time_s(send.kind, send.nbytes / cut, send.ranks, stride=stride)
        if send.phase == "forward":
            forward += _waited_s(seconds, send.beside, computed.forward_s, cluster)
        else:
            backward += _waited_s(seconds, send.beside, computed.backward_s, cluster)
    return Times(0.0, 0.0, forward, backward, forward + backward)


def _internal_times(strategy: Strategy, computed: Times, degree: int, cluster: Cluster, stride: int) -> Times:
    forward = backward = 0.0
    for send in strategy.internal:
        seconds = cluster.collective_time_s(send.kind, send.nbytes, degree, stride=stride)
        if send.phase == "forward":
            forward += _waited_s(seconds, send.beside, computed.forward_s, cluster)
        else:
            backward += _waited_s(seconds, send.beside, computed.backward_s, cluster)
    return Times(0.0, 0.0, forward, backward)


def _waited_s(seconds: float, beside: int, computed_s: float, cluster: Cluster) -> float:
    """Of one sending, or of ``beside`` of them, each beside an equal part of a kernel's work, the last part beside
    none."""
    if not beside:
        return seconds
    return beside * exposed_s(seconds, computed_s / (beside + 1), cluster.overlap)
