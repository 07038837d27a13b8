"""What each rank keeps for backwards that are still to come.

A micro-batch's activations on a chunk are kept from the start of its forward to the end of its backward,
or of the weight half where the two halves run apart; after the input half a part of them may be free.
The order on a rank is fixed, so its peak does not depend on the seconds.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import ArrayLike, NDArray

from autoplan.cost.pipeline.looped_schedules import group_sizes
from autoplan.cost.pipeline.order import Action, Pass
from autoplan.cost.pipeline.schedules import pipeline_order, schedule_rule
from autoplan.cost.pipeline.simulation import Simulation
from autoplan.plan.schedule import Schedule, ranks_of_stages

__all__ = [
    "MemoryCurve",
    "memory_curves",
    "moments_of_rank",
    "peak_activation_bytes",
    "peak_in_flight",
    "settled_micro_batches",
]

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class MemoryCurve:
    """Bytes kept on one rank: ``kept_bytes[k]`` from ``at_s[k]`` on, until the next."""

    rank: int
    at_s: Floats
    kept_bytes: Floats


def peak_in_flight(schedule: str, pp: int, vpp: int, micro_batches: int) -> NDArray[np.intp]:
    """The most forwards whose activations a rank keeps at once, counted by chunk; shape (ranks,).

    Divide by ``vpp`` for the activations of whole ranks.
    """
    held = _held(schedule, pp, vpp, settled_micro_batches(schedule, pp, micro_batches))
    return np.array([rows.sum(axis=1).max() for rows in held], dtype=np.intp)


def peak_activation_bytes(
    schedule: str,
    pp: int,
    vpp: int,
    micro_batches: int,
    chunk_bytes: ArrayLike,
    weight_bytes: ArrayLike | None = None,
) -> Floats:
    """The most bytes that each rank keeps at once; shape (ranks,), or (ranks, plans).

    Args:
        chunk_bytes: what the forward of one micro-batch leaves on each chunk; shape (chunks,) or
            (chunks, plans).
        weight_bytes: what is kept between the two halves of a backward; as much as ``chunk_bytes`` if None.
    """
    micro_batches = settled_micro_batches(schedule, pp, micro_batches)
    order = pipeline_order(schedule, pp, vpp, micro_batches)
    whole = np.asarray(chunk_bytes, dtype=float)
    half = whole if weight_bytes is None else np.asarray(weight_bytes, dtype=float)
    held = _held(schedule, pp, vpp, micro_batches)
    return np.array(
        [
            (rows @ np.concatenate((whole[list(chunks)], half[list(chunks)]))).max(axis=0)
            for rows, chunks in zip(held, order.chunks_of, strict=True)
        ]
    )


def memory_curves(
    run: Simulation, chunk_bytes: ArrayLike, weight_bytes: ArrayLike | None = None
) -> tuple[MemoryCurve, ...]:
    """The bytes that each rank keeps over the step; arguments as for ``peak_activation_bytes``, one plan."""
    whole = np.asarray(chunk_bytes, dtype=float)
    half = whole if weight_bytes is None else np.asarray(weight_bytes, dtype=float)
    curves = []
    for rank, (actions, nodes) in enumerate(zip(run.program.order.ranks, run.program.passes, strict=True)):
        at, change = [0.0], [0.0]
        for action, start, end in zip(actions, run.start_s[nodes], run.end_s[nodes], strict=True):
            at.append(start if action.kind is Pass.FORWARD else end)
            match action.kind:
                case Pass.FORWARD:
                    change.append(whole[action.chunk])
                case Pass.BACKWARD:
                    change.append(-whole[action.chunk])
                case Pass.INPUT:
                    change.append(half[action.chunk] - whole[action.chunk])
                case Pass.WEIGHT:
                    change.append(-half[action.chunk])
        curves.append(MemoryCurve(rank, np.array(at), np.cumsum(change)))
    return tuple(curves)


def settled_micro_batches(schedule: str, pp: int, micro_batches: int) -> int:
    """The fewest micro-batches with the same moments: once in its stride, a schedule keeps what it kept a turn before.

    Looped schedules repeat themselves from the second group of a size on, V-shaped ones from ``2 · pp``
    micro-batches on; GPipe keeps everything.
    """
    if schedule == Schedule.GPIPE or not 0 < pp <= micro_batches:
        return micro_batches
    if schedule in (Schedule.ZBV, Schedule.DUALPIPE_V):
        return min(micro_batches, 2 * pp)
    sizes = group_sizes(pp, micro_batches)
    first = sizes.count(sizes[0])
    return min(first, 2) * sizes[0] + min(len(sizes) - first, 2) * sizes[-1]


def moments_of_rank(schedule: str, pp: int, vpp: int, micro_batches: int, rank: int) -> Floats:
    """What a rank keeps at the moments when it may keep the most.

    Shape (moments, 2 · chunks of the rank): forwards kept whole by chunk, then those kept for their weight half.
    """
    return _moments(schedule, pp, vpp, settled_micro_batches(schedule, pp, micro_batches), rank)


@lru_cache(maxsize=4096)
def _moments(schedule: str, pp: int, vpp: int, micro_batches: int, rank: int) -> Floats:
    chunks = tuple(c for c, home in enumerate(ranks_of_stages(Schedule(schedule), pp, vpp)) if home == rank)
    return _states(tuple(schedule_rule(schedule).actions(pp, vpp, micro_batches, rank)), chunks)


@lru_cache(maxsize=1024)
def _held(schedule: str, pp: int, vpp: int, micro_batches: int) -> tuple[Floats, ...]:
    """For each rank, what it keeps at the moments when it may keep the most: before it frees something.

    Each different state once; shape (states, 2 · chunks of the rank): forwards kept whole by chunk, then
    those kept for their weight half.
    """
    order = pipeline_order(schedule, pp, vpp, micro_batches)
    return tuple(
        _states(actions, chunks) for actions, chunks in zip(order.ranks, order.chunks_of, strict=True)
    )


def _states(actions: tuple[Action, ...], chunks: tuple[int, ...]) -> Floats:
    held = [0] * (2 * len(chunks))
    whole = {chunk: place for place, chunk in enumerate(chunks)}
    found: dict[tuple[int, ...], None] = {}  # a set that keeps its order
    grew = False
    for chunk, kind, _, _ in actions:
        place = whole[chunk]
        if kind is Pass.FORWARD:
            held[place] += 1
            grew = True
            continue
        if grew:
            found[tuple(held)] = None
            grew = False
        if kind is Pass.WEIGHT:
            held[place + len(chunks)] -= 1
        else:
            held[place] -= 1
            if kind is Pass.INPUT:
                held[place + len(chunks)] += 1
                grew = True  # the gradients that the weight half needs may be more than what is free
    return np.array(list(found), dtype=float)
