"""What a schedule's step cannot be below, for stages whose seconds are known: the length of three paths a rank.

Whatever the schedule, rank r starts with stage r, so stages 0 … r - 1 run forward before it. Then it does all
its own work; and the gradient of its last backward of stage r still goes back through stages r - 1 … 0. Where
backwards are halved, that gradient leaves before the last weight halves have run: r + 1 of them, under ZBV of
either stage of the rank. With F, B, I = B - W the seconds of stages, m micro-batches, c sends:

    Σ_{j<r} (F_j + c_j) + m Σ (F + B) + tail_r
    Σ_{j<r} (F_j + c_j) + m Σ (F + B) - late_r + Σ_{j<r} (B_j or I_j, and c_j) + tail_0
    head_r + m Σ (F + B) + tail_r

For equal stages whose times are those of the papers, these are the schedules' closed forms, but for ZBV with
uneven passes.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from autoplan.cost.degrees import Degrees
from autoplan.plan.schedule import SCHEDULE_NEEDS, Schedule

__all__ = ["StageSums", "by_rank", "schedule_bounds_s"]

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class StageSums:
    """Seconds of each of several candidates, by stage, shape (…, stages), and by rank, shape (…, ranks); the dims before
    are the candidates, and of size 1 or left out where all of them have the same.

    Args:
        forward, backward: of a pass.
        first: of the backward, what comes before its gradient leaves; all of it where it is not halved.
        send: to the next stage; shape (stages - 1,).
        head, tail: before the first and after the last pass of a rank.
        least_head, least_tail: the same where they are waited for by another rank: what is hidden behind a
            rank's own passes may be more than is known of them.
        again: of all a rank's backwards of a micro-batch, seconds more than those of its stages.
    """

    forward: Floats
    backward: Floats
    first: Floats
    send: Floats
    head: Floats
    tail: Floats
    least_head: Floats
    least_tail: Floats
    again: Floats


def by_rank(degrees: Degrees, of_stages: Floats) -> Floats:
    """The sum over each rank's stages; shape (…, stages) to (…, ranks)."""
    p = degrees.pp
    if SCHEDULE_NEEDS[degrees.schedule].v_shaped:
        return of_stages[..., :p] + of_stages[..., : -p - 1 : -1]
    return of_stages.reshape(*of_stages.shape[:-1], -1, p).sum(axis=-2)


def schedule_bounds_s(degrees: Degrees, sums: StageSums) -> Floats:
    """Seconds that no step with these stages is below, under the schedule and micro-batches of ``degrees``; of the
    candidates' shape."""
    p, m = degrees.pp, degrees.num_micro_batches
    work = m * (by_rank(degrees, sums.forward + sums.backward) + sums.again)
    way, back = np.zeros_like(work), np.zeros_like(work)
    way[..., 1:] = np.cumsum(sums.forward[..., : p - 1] + sums.send[: p - 1], axis=-1)
    back[..., 1:] = np.cumsum(sums.first[..., : p - 1] + sums.send[: p - 1], axis=-1)
    arrive = sums.least_head[..., :1] + way
    whole = np.maximum(sums.head, arrive) + work + sums.tail
    late = _late(degrees, sums.backward - sums.first)
    drained = arrive + work - late + back + sums.least_tail[..., :1]
    return np.maximum(whole, drained).max(axis=-1)


def _late(degrees: Degrees, weight: Floats) -> Floats:
    """Of each rank, seconds of the weight halves that may come after its last gradient has left."""
    p, ranks = degrees.pp, np.arange(degrees.pp, dtype=float)
    first, last = weight[..., :p], weight[..., : -p - 1 : -1]
    match degrees.schedule:
        case Schedule.ZB_H1:
            return (ranks + 1) * first
        case Schedule.ZBV:
            return (ranks + 1) * first + ranks * last
        case Schedule.DUALPIPE_V:
            return (ranks + 1) * np.maximum(first, last)
        case _:
            return np.zeros_like(first)
