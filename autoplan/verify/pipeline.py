"""The step under a pipeline schedule, by walking the passes of every rank in their order, and what is kept meanwhile.

A pass waits for the one before it on its rank and for its input; a message leaves when its pass has ended and the
message before it from the same rank to the same rank has arrived.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise

from autoplan.verify.orders import Pass, order_of, rank_of_stage
from autoplan.verify.stage import StageSums

__all__ = ["Pipeline"]


class Pipeline:
    """One order of passes. Raises Unfamiliar for a schedule that is not known here."""

    def __init__(self, schedule: str, ranks: int, levels: int, micro_batches: int) -> None:
        self.ranks, self.stages, self.micro_batches = ranks, ranks * levels, micro_batches
        self.home = [rank_of_stage(schedule, stage, ranks) for stage in range(self.stages)]
        self.orders = [order_of(schedule, rank, ranks, levels, micro_batches) for rank in range(ranks)]

    def held(self, rank: int, kept: Sequence[float], between: Sequence[float]) -> float:
        """The most bytes that forwards have left on a rank; by stage, what one leaves, and what is left of it between
        the halves of its backward."""
        now = most = 0.0
        for kind, stage, _, _ in self.orders[rank]:
            if kind == "F":
                now += kept[stage]
            elif kind == "W":
                now -= between[stage]
            else:
                now -= kept[stage] - (between[stage] if kind == "I" else 0.0)
            most = max(most, now)
        return most

    def step_s(
        self, stages: Sequence[StageSums], sends_s: Sequence[float], share: Callable[[int], float]
    ) -> float:
        """Seconds of the step; ``sends_s`` is what each stage but the last takes to send to the next, ``share`` of its seconds
        what work takes while so many ranks work."""
        free, tails = [0.0] * self.ranks, [0.0] * self.ranks
        for stage, rank in zip(stages, self.home, strict=True):
            free[rank] += stage.head_s
            tails[rank] += stage.tail_s
        takes = {
            "F": [stage.forward_s for stage in stages],
            "B": [stage.backward_s for stage in stages],
            "I": [stage.backward_s - stage.weight_s for stage in stages],
            "W": [stage.weight_s for stage in stages],
        }
        walk = _Walk(self, sends_s)
        worked = [(0.0, head) for head in free]
        at, left = [0] * self.ranks, sum(map(len, self.orders))
        while left:
            before = left
            for rank, order in enumerate(self.orders):
                now = free[rank]
                while at[rank] < len(order):
                    kind, stage, i, held = done = order[at[rank]]
                    input_s = walk.input_s(kind, stage, i)
                    if input_s is None:
                        break
                    begun = max(now, input_s)
                    now = begun + takes[kind][stage]
                    worked.append((begun, now))
                    walk.ended(rank, done, now, held)
                    at[rank] += 1
                    left -= 1
                free[rank] = now
            assert left < before, "ranks wait for each other"
        ends = [one + tail for one, tail in zip(free, tails, strict=True)]
        if share(1) == 1:
            return max(ends)
        return _on_shared_cores([*worked, *zip(free, ends, strict=True)], max(ends), share)


def _on_shared_cores(
    worked: Sequence[tuple[float, float]], step_s: float, share: Callable[[int], float]
) -> float:
    """Seconds of a step of ``step_s`` once each moment counts by how many of the spans ``worked`` it lies in."""
    changes: dict[float, int] = {0.0: 0, step_s: 0}
    for start, end in worked:
        changes[start] = changes.get(start, 0) + 1
        changes[end] = changes.get(end, 0) - 1
    total, at_work = 0.0, 0
    for before, after in pairwise(sorted(changes)):
        at_work += changes[before]
        total += (after - before) * (share(at_work) if at_work else 1.0)
    return total


class _Walk:
    """When inputs arrive, and when links are free."""

    def __init__(self, pipeline: Pipeline, sends_s: Sequence[float]) -> None:
        self.home, self.sends_s = pipeline.home, sends_s
        self.last = pipeline.stages - 1
        self.arrival: list[dict[tuple[int, int], float]] = [{}, {}]  # of forwards, of gradients
        self.link: dict[tuple[int, int], float] = {}
        self.waiting: list[list[Pass]] = [[] for _ in range(pipeline.ranks)]

    def input_s(self, kind: str, stage: int, i: int) -> float | None:
        """When the input of a pass is there; None if not yet known."""
        if kind == "W" or (kind == "F" and stage == 0) or (kind != "F" and stage == self.last):
            return 0.0
        return self.arrival[kind != "F"].get((stage, i))

    def ended(self, rank: int, done: Pass, now: float, held: bool) -> None:
        self.waiting[rank].append(done)
        if held:
            return
        for kind, stage, i, _ in self.waiting[rank]:
            to = stage + 1 if kind == "F" else stage - 1
            if kind == "W" or not 0 <= to <= self.last:
                continue
            there = self.home[to]
            arrives = now
            if there != rank:
                arrives = max(self.link.get((rank, there), 0.0), now) + self.sends_s[min(stage, to)]
                self.link[rank, there] = arrives
            self.arrival[kind != "F"][to, i] = arrives
        self.waiting[rank].clear()
