"""What one pipeline stage may hold, and the seconds that each way of holding it takes.

The units of a stage are a range of the chain, so many of each run. Of these, some make something again: every number of
every way is an option, if the stage's memory holds it. What an option takes is what the integer program of ``stages``
says of the same numbers, term by term; two that differ in what they make again differ in the stage's backward pass (B)
and last backward (L) alone, so that few of them are worth a look.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from autoplan.cost.memory import ALLOCATOR_SLACK, in_flight
from autoplan.search.largest import largest_bytes
from autoplan.search.stages import Place, StagingQuestion

if TYPE_CHECKING:
    from autoplan.search.run import Run

__all__ = ["Contents", "Option", "TooManyError"]

Floats = NDArray[np.float64]

_MOST = 50_000  # options of one stage


class TooManyError(Exception):
    """More to look at than is worth it: the integer program is quicker."""


@dataclass(frozen=True, slots=True)
class Option:
    """Seconds of a stage's passes as ``stages`` names them: F, B, head and L. ``again``: of each way of each run, the
    units that go it."""

    forward_s: float
    backward_s: float
    head_s: float
    last_s: float
    again: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Contents:
    """So many units of each run, in every way: the options by B, then L, the least first.

    Args:
        forward_s, head_s: F and head, of all of them.
        backward_s, last_s: B and L; shape (options,).
        kept: bytes that stay of each micro-batch in flight; shape (options,).
        beside: other bytes; shape (options,).
        again: as ``Option.again``; shape (options, ways of all runs).
    """

    forward_s: float
    head_s: float
    backward_s: Floats
    last_s: Floats
    kept: Floats
    beside: Floats
    again: NDArray[np.int64]

    @classmethod
    def of(
        cls, question: StagingQuestion, place: Place, ways: Sequence[Sequence[str]], held: Sequence[int]
    ) -> Contents:
        """``held`` units of each run on ``place``; ``ways``: of each run (``ways_anywhere``).

        Raises TooManyError if there are too many options.
        """
        again = _numbers(held, ways, forced=question.recompute is not None)
        keeps = [run.cost.keep(name) for run, names in zip(place.runs, ways, strict=True) for name in names]
        saved = [run.cost.saved_bytes for run, names in zip(place.runs, ways, strict=True) for _ in names]
        works = [
            run.cost.workspace_bytes + run.cost.keep(name).again_bytes
            for run, names in zip(place.runs, ways, strict=True)
            for name in names
        ]
        rerun_s: Any = again @ np.array([keep.rerun_s for keep in keeps])
        again_s: Any = again @ np.array([keep.again_s for keep in keeps])
        freed: Any = again @ np.array(
            [keep.kept_bytes - most for keep, most in zip(keeps, saved, strict=True)]
        )
        there = [run.cost for run, n in zip(place.runs, held, strict=True) for _ in range(min(n, 2))]
        working: Any = np.where(again > 0, np.array(works), 0.0).max(axis=1, initial=0.0)
        most = max(cost.workspace_bytes for cost in there)

        def total(of_unit: Any) -> float:
            return sum(n * of_unit(run) for run, n in zip(place.runs, held, strict=True) if n)

        def exposed(traffic: float, window: Any) -> Any:
            return np.maximum((1 - place.overlap) * traffic, traffic - window)

        forward = total(lambda run: run.cost.times.forward_s)
        backward = total(lambda run: run.cost.times.backward_s) + again_s
        base = total(lambda run: run.cost.times.backward_s + run.cost.times.backward_comm_s) + rerun_s
        back = total(lambda run: run.traffic.backward_s)
        tail = back + total(lambda run: run.traffic.tail_fsdp_s + run.traffic.tail_dp_s)
        way = total(lambda run: run.traffic.forward_s)
        before = total(lambda run: run.traffic.head_s)
        each = base + exposed(back, backward)
        last = base + total(lambda run: run.optimizer_s) + exposed(tail, backward)
        order = np.lexsort((last, each))
        beside = total(_state_bytes) + largest_bytes(there, question.rates) + np.maximum(working - most, 0.0)
        return cls(
            forward_s=forward
            + total(lambda run: run.cost.times.forward_comm_s)
            + float(exposed(way, forward)),
            head_s=float(exposed(before, forward)),
            backward_s=each[order],
            last_s=last[order],
            kept=(total(lambda run: run.cost.saved_bytes) + freed)[order],
            beside=beside[order],
            again=again[order],
        )

    def options(self, question: StagingQuestion, place: Place, stage: int, many: int) -> list[Option]:
        """Those that fit on ``stage``, but such as ``many`` others are no slower than."""
        flight = in_flight(stage, question.stages, question.micro_batches)
        room = (place.limit_bytes - place.reserve_bytes) / (1 + ALLOCATOR_SLACK) * (1 + 1e-9)
        room -= flight * question.sent_bytes if stage + 1 < question.stages else 0.0
        left = np.flatnonzero(flight * self.kept + self.beside <= room)
        found: list[int] = []
        for _ in range(many):  # each round takes those that no other is better than
            if not len(left):
                break
            last = self.last_s[left]
            first = np.concatenate(((True,), last[1:] < np.minimum.accumulate(last)[:-1]))
            found += left[first].tolist()
            left = left[~first]
        return [
            Option(
                self.forward_s,
                float(self.backward_s[index]),
                self.head_s,
                float(self.last_s[index]),
                tuple(self.again[index].tolist()),
            )
            for index in sorted(found)
        ]


def _state_bytes(run: Run) -> float:
    return run.state_bytes


def _numbers(held: Sequence[int], ways: Sequence[Sequence[str]], forced: bool) -> NDArray[np.int64]:
    """How many of the units go each way, in all combinations; ``forced``: every unit goes the only one that it has.
    Shape (combinations, ways)."""
    counts = [0 if forced else math.comb(n + len(names), n) for n, names in zip(held, ways, strict=True)]
    if math.prod(counts) > _MOST:
        raise TooManyError
    found = np.zeros((1, 0), dtype=np.int64)
    for n, names in zip(held, ways, strict=True):
        own = np.zeros((1, 0), dtype=np.int64)
        left = np.array([n])
        for _ in names:
            few = np.full_like(left, n) if forced else np.zeros_like(left)
            times = left - few + 1
            starts = np.repeat(np.cumsum(times) - times, times)
            number = np.arange(times.sum()) - starts + np.repeat(few, times)
            own = np.column_stack((np.repeat(own, times, axis=0), number))
            left = np.repeat(left, times) - number
        found = np.column_stack((np.repeat(found, len(own), axis=0), np.tile(own, (len(found), 1))))
    return found
