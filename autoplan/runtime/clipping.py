"""The norm of all gradients, wherever their pieces are, and gradients cut to it.

Each rank squares what it holds; a piece that several ranks hold counts once; one sum over all ranks ends it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor

from autoplan.runtime.pieces import local
from autoplan.runtime.world import World, world_size

__all__ = ["clip", "global_norm"]


def global_norm(parameters: Iterable[Tensor], world: World, copies: dict[Tensor, int]) -> Tensor:
    """The Euclidean norm of the whole model's gradient, as a float64 scalar, the same on every rank.

    ``parameters`` are this rank's, each once; ``copies`` says of those that live in several pipeline stages in
    how many. Every rank must call it.
    """
    weights, gradients = [], []
    for parameter in parameters:
        if parameter.grad is not None:
            weights.append(1 / (_replicas(parameter.grad, world) * copies.get(parameter, 1)))
            gradients.append(local(parameter.grad))
    total = torch.zeros((), dtype=torch.float64, device=world.device)
    if gradients:
        norms = torch.stack([norm.double() for norm in torch._foreach_norm(gradients)])
        shares = torch.tensor(weights, dtype=torch.float64, device=norms.device)
        total += (norms.square() * shares).sum()
    if world_size() > 1:
        dist.all_reduce(total)
    return total.sqrt()


def clip(parameters: Iterable[Tensor], norm: Tensor, max_norm: float) -> None:
    """Scale gradients of global ``norm`` to at most ``max_norm``, as ``torch.nn.utils.clip_grad_norm_`` does."""
    gradients = [local(parameter.grad) for parameter in parameters if parameter.grad is not None]
    scale = (max_norm / (norm + 1e-6)).clamp(max=1.0)
    by_dtype: dict[torch.dtype, list[Tensor]] = {}
    for gradient in gradients:
        by_dtype.setdefault(gradient.dtype, []).append(gradient)
    for dtype, same in by_dtype.items():
        torch._foreach_mul_(same, scale.to(dtype))


def _replicas(gradient: Tensor, world: World) -> int:
    """How many ranks of a pipeline stage hold the same piece."""
    if world.mesh is None:
        return 1
    ranks = world.mesh.size() // world.mesh["pp"].size()
    if not isinstance(gradient, DTensor):
        return ranks
    mesh, placements = gradient.device_mesh, gradient.placements
    cut = math.prod(mesh.size(axis) for axis, place in enumerate(placements) if not place.is_replicate())
    return ranks // cut
