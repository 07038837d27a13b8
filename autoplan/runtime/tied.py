"""Parameters that live in several stages: their gradients are summed, so that the copies stay equal."""

from __future__ import annotations

import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor

from autoplan.graph.ir import ModelGraph
from autoplan.plan import Plan
from autoplan.rewrite import StageModule
from autoplan.rewrite.unit_module import UnitModule, full_name
from autoplan.runtime.groups import my_subgroup
from autoplan.runtime.pipeline import Chunks
from autoplan.runtime.world import World

__all__ = ["TiedParameters"]

_Copy = tuple[UnitModule, str]
"""A unit's module, and the name in it of the tied parameter."""


class TiedParameters:
    """The tied groups that this plan spreads over stages. Every rank must construct it: it makes process groups.

    ``mine`` holds, for each group of which this rank has a part, one copy for each of its stages, and the ranks
    that hold the others (None if there are none).
    """

    def __init__(self, graph: ModelGraph, plan: Plan, stage: StageModule | Chunks, world: World) -> None:
        self.mine: list[tuple[list[_Copy], dist.ProcessGroup | None]] = []
        self._homes: list[int] = []
        if plan.pp == 1 or world.mesh is None:
            return
        stage_of = {name: index for index, part in enumerate(plan.stages) for name in part.units}
        columns = world.mesh.mesh.reshape(plan.pp, -1).T.tolist()  # ranks of each pipeline, in its order
        for tied in graph.tied:
            homes: dict[int, tuple[str, str]] = {}  # of each stage that has a copy, one that reads it
            for unit, value in tied:
                homes.setdefault(stage_of[unit], (unit, value))
            if len(homes) == 1:
                continue
            holders = sorted({plan.stage_ranks[index] for index in homes})
            here = [homes[i] for i in sorted(homes) if plan.stage_ranks[i] == world.pp_rank]
            copies = [_copy(graph, stage, *home) for home in here]
            if len(holders) == 1:
                self._add(copies, None, len(homes))
                continue
            group = my_subgroup([[column[index] for index in holders] for column in columns])
            if group is not None:
                self._add(copies, group, len(homes))

    def _add(self, copies: list[_Copy], group: dist.ProcessGroup | None, homes: int) -> None:
        if copies:
            self.mine.append((copies, group))
            self._homes.append(homes)

    def copies(self) -> dict[Tensor, int]:
        """In how many stages of the whole pipeline each of this rank's tied parameters lives."""
        pairs = zip(self.mine, self._homes, strict=True)
        return {module.get_parameter(name): homes for (here, _), homes in pairs for module, name in here}

    def sum_gradients(self) -> None:
        """Add up each tied parameter's gradients over the stages that hold it."""
        for copies, group in self.mine:
            gradients = [module.get_parameter(name).grad for module, name in copies]
            locals_ = [g.to_local() if isinstance(g, DTensor) else g for g in gradients if g is not None]
            if not locals_:
                continue
            total = locals_[0]
            for other in locals_[1:]:
                total += other
            if group is not None:
                dist.all_reduce(total, group=group)
            for other in locals_[1:]:
                other.copy_(total)


def _copy(graph: ModelGraph, stage: StageModule | Chunks, unit_name: str, value: str) -> _Copy:
    unit = next(unit for unit in stage.chain if unit.name == unit_name)
    name = full_name(unit, graph.kinds[unit.kind].parameters[value])
    module = stage.unit_modules()[unit_name]
    return module, next(key for key, source in module.sources.items() if source.name == name)
