"""The schedules by name, and the order of actions that each gives."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

from autoplan.cost.pipeline.looped_schedules import gpipe, interleaved, one_f_one_b, zb_h1
from autoplan.cost.pipeline.order import Action, Order, looped, v_shaped
from autoplan.cost.pipeline.v_schedules import dualpipe_v, zbv
from autoplan.errors import InputError

__all__ = ["SCHEDULES", "ScheduleRule", "pipeline_order", "schedule_rule"]


@dataclass(frozen=True, slots=True)
class ScheduleRule:
    """What a schedule asks for.

    Args:
        actions: (pp, vpp, micro_batches, rank) → the rank's actions.
        vpp: the chunks a rank must hold; None for any number.
        v_shaped: whether chunks lie down the ranks and back.
        halves: whether it runs the halves of some backwards apart.
        least_per_rank: micro-batches that it needs for each rank; 0 for any number.
        batched_sends: whether torch sends and receives in one batch between passes, which it waits for.
        torch: the class of ``torch.distributed.pipelining`` that runs it.
    """

    actions: Callable[[int, int, int, int], list[Action]]
    torch: str
    vpp: int | None = None
    v_shaped: bool = False
    halves: bool = False
    batched_sends: bool = False
    least_per_rank: int = 0


SCHEDULES: dict[str, ScheduleRule] = {
    "gpipe": ScheduleRule(gpipe, "ScheduleGPipe", vpp=1, batched_sends=True),
    "1f1b": ScheduleRule(one_f_one_b, "Schedule1F1B", vpp=1, batched_sends=True),
    "interleaved": ScheduleRule(interleaved, "ScheduleInterleaved1F1B"),
    "zb-h1": ScheduleRule(zb_h1, "ScheduleInterleavedZeroBubble", halves=True),
    "zbv": ScheduleRule(zbv, "ScheduleZBVZeroBubble", vpp=2, v_shaped=True, halves=True),
    "dualpipe-v": ScheduleRule(
        dualpipe_v, "ScheduleDualPipeV", vpp=2, v_shaped=True, halves=True, least_per_rank=2
    ),
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
        rank_of=v_shaped(pp) if rule.v_shaped else looped(pp, vpp),
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
