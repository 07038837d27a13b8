"""Local implementations of ops that cannot run as themselves on a shard: those that index the cut axis."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed._functional_collectives as fc
import torch.nn.functional as F
from torch import Tensor

from autoplan.rewrite.move import group_of

__all__ = ["KERNELS", "vocab_cross_entropy", "vocab_embedding"]


def vocab_embedding(weight: Tensor, index: Tensor, group: str, padding: int = -1) -> Tensor:
    """Look up the rows that this rank has; the others give zero, so that the ranks' results add up.

    weight (v / n, h), index (…) of global rows; returns (…, h), a partial sum. ``padding``: a global
    row that gets no gradient, or -1.
    """
    rows = weight.shape[0]
    first = rows * group_of(group).rank()
    elsewhere = (index < first) | (index >= first + rows)
    local = (index - first).masked_fill(elsewhere, 0)
    own_padding = padding - first if first <= padding < first + rows else None
    return F.embedding(local, weight, own_padding).masked_fill(elsewhere.unsqueeze(-1), 0)


def vocab_cross_entropy(
    logits: Tensor, target: Tensor, group: str, ignore_index: int, summed: bool
) -> Tensor:
    """Cross-entropy over classes cut on ``group``: logits (t, v / n), target (t) of global classes.

    Returns the scalar mean over targets that are not ``ignore_index`` (or their sum), whole on every rank.
    """
    return _VocabCrossEntropy.apply(logits, target, group, ignore_index, summed)


class _VocabCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, logits: Tensor, target: Tensor, group: str, ignore_index: int, summed: bool
    ) -> Tensor:
        process_group = group_of(group)
        classes = logits.shape[1]
        wide = logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits
        top = fc.wait_tensor(fc.all_reduce(wide.amax(1), "max", process_group))
        weights = (wide - top.unsqueeze(1)).exp_()
        total = fc.wait_tensor(fc.all_reduce(weights.sum(1), "sum", process_group))
        local = target - process_group.rank() * classes
        here = (local >= 0) & (local < classes)
        column = local.masked_fill(~here, 0).unsqueeze(1)
        chosen = wide.gather(1, column).squeeze(1).masked_fill(~here, 0)
        chosen = fc.wait_tensor(fc.all_reduce(chosen.contiguous(), "sum", process_group))
        valid = target != ignore_index
        losses = (total.log() + top - chosen).masked_fill(~valid, 0)
        count = torch.ones((), dtype=losses.dtype) if summed else valid.sum().to(losses.dtype)
        ctx.save_for_backward(weights.div_(total.unsqueeze(1)), column, here, valid, count)
        ctx.dtype = logits.dtype
        return (losses.sum() / count).to(logits.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        probabilities, column, here, valid, count = ctx.saved_tensors
        grad = probabilities.clone()
        grad.scatter_add_(1, column, -here.to(grad.dtype).unsqueeze(1))
        grad *= (valid.to(grad.dtype) * (grads[0].to(grad.dtype) / count)).unsqueeze(1)
        return grad.to(ctx.dtype), None, None, None, None


KERNELS = {"vocab_embedding": vocab_embedding, "vocab_cross_entropy": vocab_cross_entropy}
"""Every name that ``Strategy.kernel`` may hold."""
