"""One unit of the chain under a plan's layouts: are they legal and joined, and what do they take."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from autoplan.errors import PlanError
from autoplan.graph.ir import Block, OpKind, Origin
from autoplan.graph.layout import REPLICATE, REPLICATE_STAR, Layout
from autoplan.verify.apart import kept_apart, products_apart
from autoplan.verify.kept import Ledger, Left, ledger_of
from autoplan.verify.verdict import Finding, Illegal, Unfamiliar, Verdict
from autoplan.verify.ways import Way, way_of

if TYPE_CHECKING:
    from autoplan.graph.ir import Op, Value
    from autoplan.hardware import Cluster

__all__ = ["UnitSums", "crosses", "held", "joins", "passed", "unit_sums"]

Join = tuple[str, float, float]
"""A collective or "", its bytes, and bytes rewritten beside it."""

_NOTHING: Join = ("", 0.0, 0.0)


@dataclass(slots=True)
class UnitSums:
    """A unit on one rank, one micro-batch: seconds computed and sent, forward and backward, and of each op and change
    of layout by itself forward; what backward reads; bytes of inputs with a gradient, and of the largest op at work;
    elements of each parameter, which train, and which an ep axis has shared out; of its backward, seconds that can
    run apart, and bytes kept until they do."""

    compute_s: list[float]
    sent_s: list[float]
    each_s: dict[str, tuple[float, float]]
    ledger: Ledger
    entering: float
    at_work: float
    elements: dict[str, float]
    trains: frozenset[str]
    shared_out: frozenset[str]
    apart_s: float = 0.0
    apart: float = 0.0

    def left(self, way: str, policies: Mapping[str, Mapping[str, str]]) -> Left:
        """What a forward leaves where the unit goes ``way``: none, full or one of ``policies``. Raises Illegal."""
        if way == "none":
            return Left(self.ledger.kept)
        if way == "full":
            return Left(self.entering, self.compute_s[0], self.sent_s[0], self.ledger.kept)
        if way not in policies:
            raise Illegal(f"no policy of its block is called {way}")
        return self.ledger.under(policies[way], self.each_s)


def unit_sums(
    verdict: Verdict, block: Block, names: Mapping[str, str], boundary: Layout, degree: int, cluster: Cluster
) -> UnitSums | None:
    """Sums of ``block``; None, with findings or a note of what is unknown, where a layout does not hold."""
    ways: dict[str, Way] = {}
    sound = True
    for op in block.ops:
        name = names.get(op.name, "R")
        try:
            ways[op.name] = way_of(block, op, name, degree)
            _check_pieces(block, op, ways[op.name], degree)
        except Illegal as wrong:
            verdict.findings.append(Finding(f"layouts.{block.kind}.{op.name}", name, str(wrong)))
            sound = False
        except Unfamiliar as unknown:
            verdict.unchecked.append(str(unknown))
            sound = False
    stored = _stored(verdict, block, names, degree)
    for name in names.keys() - {op.name for op in block.ops} - set(block.parameters):
        verdict.findings.append(Finding(f"layouts.{block.kind}.{name}", names[name], "of nothing here"))
    if not sound or stored is None:
        return None
    return _sums(block, ways, stored, boundary, degree, cluster)


def _stored(
    verdict: Verdict, block: Block, names: Mapping[str, str], degree: int
) -> dict[str, Layout] | None:
    """The layout of each parameter: whole, or in equal pieces."""
    stored: dict[str, Layout] = {}
    for name in block.parameters:
        text, shape = names.get(name, "R"), block.values[name].shape
        try:
            layout = Layout.parse(text)
        except PlanError:
            layout = None
        cut = layout is not None and layout.is_shard and layout.dim < len(shape)
        if layout is None or not (
            layout == REPLICATE or (cut and shape[layout.dim] % (layout.parts * degree) == 0)
        ):
            found = f"no layout of a parameter of shape {list(shape)} on {degree} ranks"
            verdict.findings.append(Finding(f"layouts.{block.kind}.{name}", text, found))
            return None
        stored[name] = layout
    return stored


def _check_pieces(block: Block, op: Op, way: Way, degree: int) -> None:
    for name, layout in (*zip(op.inputs, way.inputs, strict=True), (op.output, way.output)):
        shape = block.values[name].shape
        if layout.is_shard and (layout.dim >= len(shape) or shape[layout.dim] % (layout.parts * degree)):
            raise Illegal(f"{name} of shape {list(shape)} has no {layout} on {degree} ranks")


def passed(value: Value, boundary: Layout, degree: int) -> Layout:
    """How a value lies between units: cut as the plan says if it carries a gradient and divides."""
    if not value.requires_grad or not boundary.is_shard or len(value.shape) <= boundary.dim:
        return REPLICATE
    return REPLICATE if value.shape[boundary.dim] % (degree * boundary.parts) else boundary


def _sums(
    block: Block,
    ways: Mapping[str, Way],
    stored: Mapping[str, Layout],
    boundary: Layout,
    degree: int,
    cluster: Cluster,
) -> UnitSums:
    made: dict[str, Layout] = dict.fromkeys(block.buffers, REPLICATE) | dict(stored)
    made |= {name: passed(block.values[name], boundary, degree) for name in block.inputs}
    made |= {op.output: ways[op.name].output for op in block.ops}
    compute, sent, at_work = [0.0, 0.0], [0.0, 0.0], 0.0
    each_s: dict[str, tuple[float, float]] = {}
    leaves = {name: passed(block.values[name], boundary, degree) for name in block.outputs}
    wanted = set(leaves.items())
    for op in block.ops:
        way = ways[op.name]
        wanted |= set(zip(op.inputs, way.inputs, strict=True))
        forward, backward = _op_s(block, op, way, degree, cluster)
        compute[0] += forward
        compute[1] += backward
        own = [sum(cluster.collective_time_s(kind, size, degree) for kind, size in way.sends), 0.0]
        for send in op.sends:  # among the ranks of cp or ep, which lie just outside those of tp
            nbytes = send.nbytes / (degree if way.shares else 1)
            seconds = cluster.collective_time_s(send.kind, nbytes, send.ranks, stride=degree)
            backwards = send.phase != "forward"
            if send.beside:  # each beside a part of the kernel's work, and the last part beside none
                work = (backward if backwards else forward) / (send.beside + 1)
                seconds = send.beside * max((1 - cluster.overlap) * seconds, seconds - work)
            own[backwards] += seconds
        each_s[op.name] = forward, own[0]
        sent = [total + seconds for total, seconds in zip(sent, own, strict=True)]
        at_work = max(at_work, _at_work(block, op, way, degree))
    for name, layout in wanted:
        value = block.values[name]
        forward, backward = crosses(value, made[name], layout, degree, cluster)
        lies = layout if value.requires_grad or layout != REPLICATE_STAR else REPLICATE
        each_s[f"{name}:{lies}"] = 0.0, forward
        sent[0] += forward
        sent[1] += backward
    shapes = {name: stored[name].local_shape(block.values[name].shape, degree) for name in block.parameters}
    entering = (block.values[name] for name in block.inputs if block.values[name].requires_grad)
    return UnitSums(
        compute,
        sent,
        each_s,
        ledger_of(block, ways, made, leaves, degree),
        sum(held(value, passed(value, boundary, degree), degree) for value in entering),
        at_work,
        {name: float(math.prod(shape)) for name, shape in shapes.items()},
        frozenset(name for name in block.parameters if block.values[name].requires_grad),
        frozenset(block.expert_dims),
        sum(_weight_s(block, op, ways[op.name], degree, cluster) for op, _ in products_apart(block)),
        kept_apart(block, ways, degree),
    )


def _weight_s(block: Block, op: Op, way: Way, degree: int, cluster: Cluster) -> float:
    """Seconds of the product that gives the gradient of a weight."""
    if op.gemm is None:
        return 0.0
    b, m, n, k = _product(block, op, way, degree)
    return cluster.device.gemm_time_s((b, k, n, m), block.values[op.output].dtype)


def held(value: Value, layout: Layout, degree: int) -> float:
    """Bytes of a value on a rank."""
    return value.nbytes / (degree if layout.is_shard else 1)


def crosses(value: Value, src: Layout, dst: Layout, degree: int, cluster: Cluster) -> tuple[float, float]:
    """Seconds to turn a value made as ``src`` into ``dst``, and its gradient back again."""
    seconds = []
    for kind, nbytes, rewritten in joins(value, src, dst, degree):
        taken = cluster.device.memory_time_s(rewritten) if rewritten else 0.0
        seconds.append(taken + (cluster.collective_time_s(kind, nbytes, degree) if kind else 0.0))
    return seconds[0], seconds[1]


def joins(value: Value, src: Layout, dst: Layout, degree: int) -> tuple[Join, Join]:
    """What it takes to turn a value made as ``src`` into ``dst``, and its gradient back again."""
    if degree == 1 or src == dst:
        return _NOTHING, _NOTHING
    forward = _moved(value, _lies(src), _lies(dst), src, dst, degree)
    if not value.requires_grad:
        return forward, _NOTHING
    return forward, _moved(value, _gradient(dst), _gradient(src), dst, src, degree)


def _lies(layout: Layout) -> str:
    return "R" if str(layout) == "R*" else str(layout)[0]


def _gradient(layout: Layout) -> str:
    return {"R": "R", "R*": "P", "P": "R"}.get(str(layout), "S")


def _moved(value: Value, src: str, dst: str, before: Layout, after: Layout, degree: int) -> Join:
    """``src`` and ``dst`` say whole (R), in pieces (S) or as partial sums (P); pieces lie as the layouts say."""
    whole = float(value.nbytes)
    match src + dst:
        case "RR" | "PP":
            return _NOTHING
        case "RP" | "SP":
            return "", 0.0, whole  # one rank keeps it, the others put zeros
        case "RS":
            return "", 0.0, 2 * whole / degree
        case "SS":
            return "all_to_all", whole / degree, 2 * whole / degree
        case "PR":
            return "all_reduce", whole, 0.0
        case "SR":
            return "all_gather", whole, _laid_out(value, before)
        case _:
            return "reduce_scatter", whole, _laid_out(value, after)


def _laid_out(value: Value, pieces: Layout) -> float:
    """Bytes rewritten, as pieces of another dim than the outermost must be copied into place."""
    outer = math.prod(value.shape[: pieces.dim]) if pieces.is_shard else 1
    scattered = pieces.is_shard and (pieces.parts > 1 or outer > 1)
    return 2.0 * value.nbytes if scattered else 0.0


def _op_s(block: Block, op: Op, way: Way, degree: int, cluster: Cluster) -> tuple[float, float]:
    """Forward and backward seconds of an op's own work."""
    pieces = degree if way.shares else 1
    touched = tuple(
        cluster.device.memory_time_s(nbytes / pieces) if nbytes else 0.0
        for nbytes in (op.bytes_forward, op.bytes_backward)
    )
    gemm = op.gemm
    if gemm is None and not op.flops_forward:
        return touched[0], touched[1]
    b, m, n, k = _product(block, op, way, degree)
    device, dtype = cluster.device, block.values[op.output].dtype
    if op.kind is OpKind.ATTENTION:
        turns, near = op.pieces, -(-n // op.pieces)
        forward = turns * device.attention_time_s(b, m, near, k, dtype, op.causal)
        backward = turns * device.attention_time_s(b, m, near, k, dtype, op.causal, backward=True)
        backward = backward if op.flops_backward else 0.0
    else:
        products = round(op.flops_backward / op.flops_forward) if op.flops_forward else 0
        forward = device.gemm_time_s((b, m, n, k), dtype)
        backward = device.gemm_time_s((b, m, k, n), dtype) if products >= 1 else 0.0
        backward += device.gemm_time_s((b, k, n, m), dtype) if products >= 2 else 0.0
    if gemm is None:
        return max(forward, touched[0]), max(backward, touched[1])
    return forward, backward


def _product(block: Block, op: Op, way: Way, degree: int) -> tuple[int, int, int, int]:
    """One rank's part of an op's product: batch, m, n, k."""
    gemm, pieces = op.gemm, degree if way.shares else 1
    if gemm is not None:
        sizes = {"batch": gemm.batch, "m": gemm.m, "n": gemm.n, "k": gemm.k}
    else:  # the product that gives the result's size with as many FLOPs
        shape = block.values[op.output].shape
        n = shape[-1] if shape else 1
        m = max(math.prod(shape) // n, 1)
        sizes = {"batch": 1, "m": m, "n": n, "k": max(round(op.flops_forward / (2 * m * n)), 1)}
    experts = sizes["batch"]
    if pieces > 1:
        axis = way.product_axis or ("batch" if sizes["batch"] % pieces == 0 else "m")
        sizes[axis] = max(sizes[axis] // pieces, 1)
    if _by_expert(op, way) and op.routing is not None:
        sizes["m"] = math.ceil(sizes["m"] * op.routing.load(experts, pieces))
    return sizes["batch"], sizes["m"], sizes["n"], sizes["k"]


def _by_expert(op: Op, way: Way) -> bool:
    return op.routing is not None and way.shares and way.product_axis == "batch"


def _at_work(block: Block, op: Op, way: Way, degree: int) -> float:
    """Gradients of the result, and of what is no parameter."""
    total = held(block.values[op.output], way.output, degree)
    if op.kind is OpKind.ATTENTION:  # keys and values of other ranks, and gradients for them
        others = sum(send.nbytes for send in op.sends if send.phase == "backward")
        total += others / (degree if way.shares else 1)
    if _by_expert(op, way) and op.routing is not None and op.gemm is not None:
        rows = block.values[op.inputs[0]].nbytes + block.values[op.output].nbytes
        total += op.routing.room(op.gemm.batch, degree) * rows
    for name, layout in zip(op.inputs, way.inputs, strict=True):
        value = block.values[name]
        if value.requires_grad and value.origin is not Origin.PARAMETER:
            total += held(value, layout, degree)
    return total
