"""The order of micro-batches in a pipeline: which schedules there are, and what each asks of a plan.

A model is cut into ``pp · vpp`` stages in the order of its depth. Looped schedules put stage i on rank
``i mod pp``; V-shaped ones (vpp = 2) put it on rank i on the way down and on rank ``2·pp - 1 - i`` on the
way back, so that the first and the last stage share rank 0.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from functools import lru_cache

__all__ = ["SCHEDULE_NEEDS", "Schedule", "ScheduleNeeds", "looped", "ranks_of_stages", "v_shaped"]


class Schedule(StrEnum):
    """The order of micro-batches in a pipeline."""

    GPIPE = "gpipe"
    ONE_F_ONE_B = "1f1b"
    INTERLEAVED = "interleaved"
    ZB_H1 = "zb-h1"
    ZBV = "zbv"
    DUALPIPE_V = "dualpipe-v"


@dataclass(frozen=True, slots=True)
class ScheduleNeeds:
    """What a schedule asks of a plan.

    Args:
        vpp: the stages that a rank holds; None for any number.
        v_shaped: whether stages lie down the ranks and back.
        halves: whether it runs the halves of some backwards apart: the gradient of the input first, the
            gradients of weights later.
        least_per_rank: micro-batches that it needs for each rank; 0 for any number.
    """

    vpp: int | None = None
    v_shaped: bool = False
    halves: bool = False
    least_per_rank: int = 0


SCHEDULE_NEEDS: dict[Schedule, ScheduleNeeds] = {
    Schedule.GPIPE: ScheduleNeeds(vpp=1),
    Schedule.ONE_F_ONE_B: ScheduleNeeds(vpp=1),
    Schedule.INTERLEAVED: ScheduleNeeds(),
    Schedule.ZB_H1: ScheduleNeeds(halves=True),
    Schedule.ZBV: ScheduleNeeds(vpp=2, v_shaped=True, halves=True),
    Schedule.DUALPIPE_V: ScheduleNeeds(vpp=2, v_shaped=True, halves=True, least_per_rank=2),
}
"""In the order in which equals are preferred."""


def looped(pp: int, vpp: int) -> tuple[int, ...]:
    """The rank of each stage when stages go round the ranks: Narayanan et al., 2021, section 2.2."""
    return tuple(stage % pp for stage in range(pp * vpp))


def v_shaped(pp: int) -> tuple[int, ...]:
    """The rank of each of ``2 · pp`` stages, down the ranks and back: Qi et al., 2024, section 6."""
    return tuple(min(stage, 2 * pp - 1 - stage) for stage in range(2 * pp))


@lru_cache(maxsize=4096)
def ranks_of_stages(schedule: Schedule, pp: int, vpp: int) -> tuple[int, ...]:
    """The pipeline rank that holds each of ``pp · vpp`` stages."""
    return v_shaped(pp) if SCHEDULE_NEEDS[schedule].v_shaped else looped(pp, vpp)
