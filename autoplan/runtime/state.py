"""Whole tensors under the user's own names, gathered from wherever the plan put their pieces."""

from __future__ import annotations

from collections.abc import Callable

import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from autoplan.graph.layout import Layout
from autoplan.rewrite import StageModule
from autoplan.runtime.pipeline import Chunks
from autoplan.runtime.world import World

__all__ = ["aliases", "gather", "in_order"]


def aliases(model: nn.Module) -> dict[str, list[str]]:
    """For each parameter name, all the names of that same tensor (more than one where weights are tied)."""
    names: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    return {name: group for group in names.values() for name in group}


def gather(
    stage: StageModule | Chunks,
    world: World,
    tp: int,
    names: dict[str, list[str]],
    pick: Callable[[nn.Parameter], Tensor | None],
    buffers: bool = False,
) -> dict[str, Tensor]:
    """``pick`` of every parameter of the whole model, as whole tensors, on every rank, under all of its ``names``.

    With ``buffers``, those that training changes come too. Every rank must call it. It holds the whole model in every rank's memory: meant for tests, small
    models and export.
    """
    found: dict[str, Tensor] = {}
    for module in stage.unit_modules().values():
        parameters = dict(module.named_parameters(remove_duplicate=False))
        for local_name, source in module.sources.items():
            value = pick(parameters[local_name])
            if value is not None and source.name not in found:
                whole = value.full_tensor() if isinstance(value, DTensor) else value
                ordered = in_order(whole.detach(), source.layout, tp)
                found.update(dict.fromkeys(names[source.name], ordered))
        if buffers:
            found.update(
                {name: module.get_buffer(own).detach().clone() for own, name in module.updates.items()}
            )
    axis = world.axis("pp")
    if axis is None or axis.size() == 1:
        return found
    stages: list[dict[str, Tensor]] = [{}] * axis.size()
    dist.all_gather_object(stages, found, group=axis.get_group())
    return {name: tensor for part in stages for name, tensor in part.items()}


def in_order(whole: Tensor, layout: Layout, tp: int) -> Tensor:
    """Undo the order in which ranks hold a dim cut in parts: (tp, parts, …) → (parts, tp, …)."""
    if not layout.is_shard or layout.parts == 1:
        return whole
    dim = layout.dim
    return (
        whole.unflatten(dim, (tp, layout.parts, -1))
        .transpose(dim, dim + 1)
        .flatten(dim, dim + 2)
        .contiguous()
    )
