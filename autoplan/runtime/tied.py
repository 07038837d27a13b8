"""Parameters that live in two stages: their gradients are summed, so that the copies stay equal."""

from __future__ import annotations

import torch.distributed as dist
from torch import nn
from torch.distributed.tensor import DTensor

from autoplan.graph.ir import ModelGraph
from autoplan.plan import Plan
from autoplan.rewrite import StageModule
from autoplan.rewrite.unit_module import full_name
from autoplan.runtime.world import World

__all__ = ["TiedParameters"]


class TiedParameters:
    """The tied groups that this plan spreads over stages. Every rank must construct it: it makes process groups."""

    def __init__(self, graph: ModelGraph, plan: Plan, stage: StageModule, world: World) -> None:
        self.mine: list[tuple[nn.Module, str, dist.ProcessGroup]] = []
        if plan.pp == 1 or world.mesh is None:
            return
        stage_of = {name: index for index, part in enumerate(plan.stages) for name in part.units}
        columns = world.mesh.mesh.reshape(plan.pp, -1).T.tolist()  # ranks of each pipeline, in stage order
        for tied in graph.tied:
            stages = sorted({stage_of[unit] for unit, _ in tied})
            if len(stages) == 1:
                continue
            for column in columns:
                ranks = [column[index] for index in stages]
                group = dist.new_group(ranks)
                if dist.get_rank() in ranks and isinstance(group, dist.ProcessGroup):
                    self._add(graph, stage, tied, group)

    def _add(
        self,
        graph: ModelGraph,
        stage: StageModule,
        tied: tuple[tuple[str, str], ...],
        group: dist.ProcessGroup,
    ) -> None:
        modules = stage.unit_modules()
        units = {unit.name: unit for unit in stage.chain}
        unit_name, value = next((unit, value) for unit, value in tied if unit in units)
        block = graph.kinds[units[unit_name].kind]
        name = full_name(units[unit_name], block.parameters[value])
        module = modules[unit_name]
        local = next(key for key, source in module.sources.items() if source.name == name)
        self.mine.append((module, local, group))

    def sum_gradients(self) -> None:
        """Add up each tied parameter's gradients over the stages that hold it."""
        for module, name, group in self.mine:
            gradient = module.get_parameter(name).grad
            if gradient is not None:
                local = gradient.to_local() if isinstance(gradient, DTensor) else gradient
                dist.all_reduce(local, group=group)
