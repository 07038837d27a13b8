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

from autoplan.cost.pipeline.order import Action, Order, Pass
from autoplan.cost.pipeline.schedules import pipeline_order
from autoplan.cost.pipeline.simulation import Simulation

__all__ = ["MemoryCurve", "memory_curves", "peak_activation_bytes", "peak_in_flight"]

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
    held = _held(schedule, pp, vpp, micro_batches)
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
        weight_bytes: what of it is still kept between the two halves of a backward; all of it if None.
    """
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


@lru_cache(maxsize=64)
def _held(schedule: str, pp: int, vpp: int, micro_batches: int) -> tuple[Floats, ...]:
    """For each rank, what it keeps while each action runs, each different state once.

    Shape (states, 2 · chunks of the rank): forwards kept whole by chunk, then those kept for their
    weight half.
    """
    order = pipeline_order(schedule, pp, vpp, micro_batches)
    return tuple(np.unique(_states(order, actions), axis=0) for actions in order.ranks)


def _states(order: Order, actions: tuple[Action, ...]) -> Floats:
    chunks = sorted({action.chunk for action in actions})
    column = {chunk: k for k, chunk in enumerate(chunks)}
    gains = np.zeros((len(actions), 2 * len(chunks)))  # when the action starts
    drops = np.zeros_like(gains)  # when it has ended
    for row, (chunk, kind, _, _) in enumerate(actions):
        whole, half = column[chunk], column[chunk] + len(chunks)
        match kind:
            case Pass.FORWARD:
                gains[row, whole] = 1
            case Pass.BACKWARD:
                drops[row, whole] = 1
            case Pass.INPUT:
                drops[row, whole], drops[row, half] = 1, -1
            case Pass.WEIGHT:
                drops[row, half] = 1
    return gains.cumsum(axis=0) - drops.cumsum(axis=0) + drops
