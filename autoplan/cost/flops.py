"""Model FLOPs: what the mathematics of a step needs, whatever a plan repeats or cuts.

Matrix products count as traced. Fused attention counts three times its forward pass, as is the
custom (Chowdhery et al., 2022, appendix B), though its kernel recomputes the scores in backward.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from autoplan.graph.ir import OpKind

if TYPE_CHECKING:
    from autoplan.graph.ir import Block, ModelGraph, Op

__all__ = ["model_flops"]


def model_flops(graph: ModelGraph, *, full_attention: bool) -> float:
    """FLOPs of one micro-batch, forward and backward. Attention counts in full, or the pairs that its mask lets
    through: half of them when causal, and as many as a window holds."""
    per_kind = {kind: _block_flops(block, full_attention) for kind, block in graph.kinds.items()}
    return sum(per_kind[unit.kind] for unit in graph.units)


def _share(op: Op) -> float:
    if op.window is not None:
        return op.window.share
    return 0.5 if op.causal else 1.0


def _block_flops(block: Block, full_attention: bool) -> float:
    total = 0.0
    for op in block.ops:
        if op.kind is OpKind.ATTENTION:
            passes = 3 if op.flops_backward else 1
            total += passes * op.flops_forward * (1.0 if full_attention else _share(op))
        else:
            total += op.flops_forward + op.flops_backward
    return total
