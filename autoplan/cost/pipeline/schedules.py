"""The schedules by name, and the order of actions that each gives."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import lru_cache

from autoplan.cost.pipeline.looped_schedules import gpipe, interleaved, one_f_one_b, zb_h1
from autoplan.cost.pipeline.order import Action, Order
from autoplan.cost.pipeline.v_schedules import dualpipe_v, zbv
from autoplan.errors import InputError
from autoplan.plan.schedule import SCHEDULE_NEEDS, Schedule, ScheduleNeeds, ranks_of_stages

__all__ = ["SCHEDULES", "ScheduleRule", "pipeline_order", "schedule_rule"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ScheduleRule(ScheduleNeeds):
    """What a schedule asks for, and how it is run.

    Args:
        actions: (pp, vpp, micro_batches, rank) → the rank's actions.
        torch: the class of ``torch.distributed.pipelining`` that runs it.
        batched_sends: whether torch sends and receives in one batch between passes, which it waits for.
    """

    actions: Callable[[int, int, int, int], list[Action]]
    torch: str
    batched_sends: bool = False


def _rule(
    schedule: Schedule,
    actions: Callable[[int, int, int, int], list[Action]],
    torch: str,
    batched_sends: bool = False,
) -> ScheduleRule:
    needs = asdict(SCHEDULE_NEEDS[schedule])
    return ScheduleRule(actions=actions, torch=torch, batched_sends=batched_sends, **needs)


SCHEDULES: dict[str, ScheduleRule] = {
    "gpipe": _rule(Schedule.GPIPE, gpipe, "ScheduleGPipe", batched_sends=True),
    "1f1b": _rule(Schedule.ONE_F_ONE_B, one_f_one_b, "Schedule1F1B", batched_sends=True),
    "interleaved": _rule(Schedule.INTERLEAVED, interleaved, "ScheduleInterleaved1F1B"),
    "zb-h1": _rule(Schedule.ZB_H1, zb_h1, "ScheduleInterleavedZeroBubble"),
    "zbv": _rule(Schedule.ZBV, zbv, "ScheduleZBVZeroBubble"),
    "dualpipe-v": _rule(Schedule.DUALPIPE_V, dualpipe_v, "ScheduleDualPipeV"),
}
"""Names as ``--schedule`` takes them."""


@lru_cache(maxsize=64)
def pipeline_order(schedule: str, pp: int, vpp: int, micro_batches: int) -> Order:
    """The order of ``schedule`` over ``pp`` ranks of ``vpp`` chunks.

    Raises InputError if there is no such schedule, or it cannot run so many chunks or micro-batches.
    """
    rule = schedule_rule(schedule)
    for field, value in (("pp", pp), ("vpp", vpp), ("micro_batches", micro_batches)):
        if value < 1:
            raise InputError(field, value, "at least 1", "give a positive number")
    if rule.vpp is not None and vpp != rule.vpp:
        raise InputError(
            "vpp", vpp, f"{rule.vpp} chunks a rank for {schedule}", "change vpp or choose another schedule"
        )
    if micro_batches < rule.least_per_rank * pp:
        raise InputError(
            "micro_batches",
            micro_batches,
            f"at least {rule.least_per_rank * pp} for {schedule} on {pp} ranks",
            "make micro-batches smaller or choose another schedule",
        )
    return Order(
        schedule=str(schedule),
        pp=pp,
        vpp=vpp,
        micro_batches=micro_batches,
        rank_of=ranks_of_stages(Schedule(schedule), pp, vpp),
        ranks=tuple(tuple(rule.actions(pp, vpp, micro_batches, rank)) for rank in range(pp)),
    )


def schedule_rule(schedule: str) -> ScheduleRule:
    """The rule of a schedule by its name. Raises InputError for an unknown one."""
    try:
        return SCHEDULES[schedule]
    except KeyError:
        raise InputError(
            "schedule", schedule, f"one of {', '.join(SCHEDULES)}", "choose one of these"
        ) from None
