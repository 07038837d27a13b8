"""What a search decided, as a plan."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from autoplan.cost.degrees import Degrees
from autoplan.cost.step import Assignment
from autoplan.graph.layout import REPLICATE
from autoplan.plan import Plan, StagePlan
from autoplan.search.layout_choice import LayoutChoice
from autoplan.search.sequence_choice import SEQUENCE

if TYPE_CHECKING:
    from autoplan.hardware import AnyCluster
    from autoplan.plan import Job

__all__ = ["plan_of"]


def plan_of(
    degrees: Degrees, choice: LayoutChoice, stages: Sequence[Assignment], job: Job, cluster: AnyCluster
) -> Plan:
    """The plan with these degrees, layouts and stages."""
    graph = choice.graph
    names = [unit.name for unit in graph.units]
    return Plan(
        model=graph.name,
        fingerprint=graph.fingerprint,
        global_batch=job.global_batch,
        precision=job.precision,
        pp=degrees.pp,
        dp=degrees.dp,
        fsdp=degrees.fsdp,
        cp=degrees.cp,
        tp=degrees.tp,
        micro_batch=degrees.micro_batch,
        num_micro_batches=degrees.num_micro_batches,
        zero=degrees.zero,
        schedule=degrees.schedule,
        vpp=degrees.vpp,
        ep=degrees.ep,
        stages=tuple(
            StagePlan(
                units=tuple(names[stage.start : stage.stop]),
                recompute=tuple(names[index] for index in sorted(stage.recompute)),
                policies={names[index]: way for index, way in sorted(stage.policies.items())},
                device=_device_of(cluster, rank, degrees.pp),
            )
            for stage, rank in zip(stages, degrees.stage_ranks, strict=True)
        ),
        policies=choice.used(stages),
        boundary=str(choice.boundary),
        layouts={kind: dict(names) for kind, names in choice.layouts.items()},
        cp_boundary=str(SEQUENCE if degrees.cp > 1 else REPLICATE),
        cp_layouts={kind: dict(names) for kind, names in choice.cp_layouts.items()},
        cp_order=choice.cp_order,
    )


def _device_of(cluster: AnyCluster, rank: int, ranks: int) -> str:
    """The profile of a pipeline rank's devices, where there are several."""
    return cluster.types[cluster.type_of(rank, ranks)].name if len(cluster.types) > 1 else ""
