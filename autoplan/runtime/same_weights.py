"""The weights that every rank starts from: rank 0's, where ranks differ.

Ranks that build a model without a seed each draw their own weights, and a plan that keeps copies would then
train several models at once. Sums are compared first, so that nothing travels where nothing differs.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor, nn

from autoplan.runtime.world import world_size

__all__ = ["same_weights"]


def same_weights(model: nn.Module) -> tuple[dict[str, nn.Parameter], dict[str, Tensor]]:
    """The parameters and buffers of ``model`` by all of their names; every rank must call it.

    Those that differ from rank 0's are copies of rank 0's; the model itself is left as it is.
    """
    parameters = dict(model.named_parameters(remove_duplicate=False))
    buffers = dict(model.named_buffers(remove_duplicate=False))
    if world_size() == 1:
        return parameters, buffers
    real = (tensor for tensor in (*parameters.values(), *buffers.values()) if not tensor.is_meta)
    distinct = {id(tensor): tensor for tensor in real}
    replaced = {key: _from_first(tensor) for key, tensor in _differing(distinct).items()}
    return (
        {name: replaced.get(id(tensor), tensor) for name, tensor in parameters.items()},  # type: ignore[misc]
        {name: replaced.get(id(tensor), tensor) for name, tensor in buffers.items()},
    )


def _differing(tensors: dict[int, Tensor]) -> dict[int, Tensor]:
    """Those that are not the same on all ranks, as far as a few sums tell; the same answer on every rank."""
    if not tensors:
        return {}
    sums = torch.tensor([_digest(tensor) for tensor in tensors.values()], dtype=torch.float64)
    highest, lowest = sums.clone(), sums.clone()
    dist.all_reduce(highest, dist.ReduceOp.MAX)
    dist.all_reduce(lowest, dist.ReduceOp.MIN)
    same = (highest == lowest).all(1).tolist()
    return {key: tensor for (key, tensor), alike in zip(tensors.items(), same, strict=True) if not alike}


def _digest(tensor: Tensor) -> tuple[float, float, float]:
    flat = tensor.detach().flatten().double().cpu()
    first = flat[0].item() if flat.numel() else 0.0
    return flat.sum().item(), flat.square().sum().item(), first


def _from_first(tensor: Tensor) -> Tensor:
    copy = tensor.detach().clone().contiguous()
    dist.broadcast(copy, src=0)
    return nn.Parameter(copy, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else copy
