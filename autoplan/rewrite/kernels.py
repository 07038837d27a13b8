"""Local implementations of ops that cannot run as themselves on a shard: those that index the cut axis, or average it."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed._functional_collectives as fc
import torch.nn.functional as F
from torch import Tensor

from autoplan.rewrite.move import group_of

__all__ = [
    "KERNELS",
    "overload_of",
    "own_experts",
    "share_of_mean",
    "vocab_cross_entropy",
    "vocab_embedding",
    "vocab_embedding_bag",
]


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


def vocab_embedding_bag(
    weight: Tensor, index: Tensor, offsets: Tensor, group: str, include_last_offset: bool
) -> list[Tensor]:
    """Sum, in each bag, the rows that this rank has; the ranks' results add up.

    weight (v / n, h), index (i) of global rows, offsets (b) as ``embedding_bag`` takes them; returns its four results.
    """
    rows = weight.shape[0]
    first = rows * group_of(group).rank()
    here = (index >= first) & (index < first + rows)
    local = (index - first).masked_fill(~here, 0)
    found = torch.embedding_bag(
        weight, local, offsets, False, 0, False, here.to(weight.dtype), include_last_offset, None
    )
    return list(found)


def own_experts(op: str, x: Tensor, w: Tensor, ends: Tensor, group: str) -> Tensor:
    """The rows of this rank's experts times their weights, and zeros elsewhere; the ranks' results add up.

    x (p, d) sorted by expert, w (e / n, d, f), ends (e) where each global expert's rows end. ``op`` names the
    grouped product. The rank's rows are rolled to the front, so that no shape depends on the routing.
    """
    experts = w.shape[0]
    first = experts * group_of(group).rank()
    start = ends[first - 1] if first else torch.zeros_like(ends[0])
    own_ends = (ends[first : first + experts] - start).to(ends.dtype)
    place = torch.arange(x.shape[0], device=x.device)
    elsewhere = (place >= own_ends[-1]).unsqueeze(1)
    rolled = x[(place + start) % x.shape[0]].masked_fill(elsewhere, 0)
    y = overload_of(op)(rolled, w, own_ends).masked_fill(elsewhere, 0)
    return y[(place - start) % x.shape[0]]


def share_of_mean(op: str, degree: int, *args: Any, **kwargs: Any) -> Tensor:
    """What this rank's elements add to a mean over all ranks' elements: their own mean, over the number of ranks."""
    return overload_of(op)(*args, **kwargs) / degree


def overload_of(name: str) -> Any:
    """The overload that prints as ``name`` (``aten.mean.dim``)."""
    namespace, packet, overload = name.split(".")
    return getattr(getattr(getattr(torch.ops, namespace), packet), overload)


def vocab_cross_entropy(
    logits: Tensor,
    target: Tensor,
    group: str,
    ignore_index: int = -100,
    reduction: int = 1,
    label_smoothing: float = 0.0,
) -> Tensor:
    """Cross-entropy over classes cut on ``group``: logits (t, v / n, …), target (t, …) of global classes.

    Returns, whole on every rank, each target's loss (``reduction`` 0), their mean over targets that are not
    ``ignore_index`` (1) or their sum (2). ``label_smoothing`` spreads that share of each target over all classes.
    """
    return _VocabCrossEntropy.apply(logits, target, group, ignore_index, reduction, label_smoothing)


class _VocabCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        logits: Tensor,
        target: Tensor,
        group: str,
        ignore_index: int,
        reduction: int,
        label_smoothing: float,
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
        losses = total.log() + top - chosen
        spread = label_smoothing / (classes * process_group.size())
        if label_smoothing:
            everything = fc.wait_tensor(fc.all_reduce(wide.sum(1), "sum", process_group))
            losses = losses + label_smoothing * chosen - spread * everything
        losses = losses.masked_fill(~valid, 0)
        count = valid.sum().to(losses.dtype) if reduction == _MEAN else torch.ones((), dtype=losses.dtype)
        probabilities = weights.div_(total.unsqueeze(1))
        ctx.save_for_backward(probabilities, column, here, valid, count.to(losses.device))
        ctx.dtype, ctx.certain, ctx.spread = logits.dtype, 1 - label_smoothing, spread
        return (losses if reduction == _NONE else losses.sum() / count).to(logits.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        probabilities, column, here, valid, count = ctx.saved_tensors
        grad = probabilities - ctx.spread
        grad.scatter_add_(1, column, -ctx.certain * here.to(grad.dtype).unsqueeze(1))
        grad *= (valid.to(grad.dtype) * (grads[0].to(grad.dtype) / count)).unsqueeze(1)
        return grad.to(ctx.dtype), None, None, None, None, None


_NONE, _MEAN = 0, 1

KERNELS = {
    "vocab_embedding": vocab_embedding,
    "vocab_embedding_bag": vocab_embedding_bag,
    "vocab_cross_entropy": vocab_cross_entropy,
    "own_experts": own_experts,
    "share_of_mean": share_of_mean,
}
"""Every name that ``Strategy.kernel`` may hold."""
