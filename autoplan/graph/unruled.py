"""Ops that run whole on every tp rank because nobody said how to cut them, and what that costs."""

from __future__ import annotations

from dataclasses import dataclass

from autoplan.graph.axes import rule_for, spec_of
from autoplan.graph.ir import ModelGraph

__all__ = ["UnruledOp", "unruled_ops"]


@dataclass(frozen=True, slots=True)
class UnruledOp:
    """Calls of one op at one place of the model.

    Args:
        op: the op's name (``aten.unfold.default``).
        module_path: where the first copy of its block calls it.
        count: calls in one micro-batch, all copies of the block together.
        flops: of these calls, forward and backward.
        bytes: read and written by them, forward and backward.
    """

    op: str
    module_path: str
    count: int
    flops: int
    bytes: int


def unruled_ops(graph: ModelGraph) -> list[UnruledOp]:
    """Every op of ``graph`` without axes, the costliest first.

    An op without a rule is always listed. One whose rule does not cover this call (a view whose dims cross) is listed
    if it costs anything.
    """
    found: dict[tuple[str, str], UnruledOp] = {}
    for kind, block in graph.kinds.items():
        copies = graph.count(kind)
        nodes = {node.name: node for node in block.graph.nodes}
        for op in block.ops:
            flops = op.flops_forward + op.flops_backward
            touched = op.bytes_forward + op.bytes_backward
            ruled = rule_for(nodes[op.name].target) is not None
            if spec_of(block, op) is not None or (ruled and not flops + touched):
                continue
            key = op.target, op.module_path or kind
            before = found.get(key, UnruledOp(*key, 0, 0, 0))
            found[key] = UnruledOp(
                *key, before.count + copies, before.flops + copies * flops, before.bytes + copies * touched
            )
    return sorted(found.values(), key=lambda op: (-op.flops, -op.bytes, op.op, op.module_path))
