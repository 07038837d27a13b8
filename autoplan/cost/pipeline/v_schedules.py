"""ZBV and DualPipe-V, as ``torch.distributed.pipelining`` runs them: two chunks a rank, V-shaped."""

from __future__ import annotations

from collections import deque

from autoplan.cost.pipeline.order import Action, Pass

__all__ = ["dualpipe_v", "zbv"]


class _Writer:
    """Appends actions of a rank's two chunks, each pass over its micro-batches in order."""

    def __init__(self, pp: int, rank: int) -> None:
        self.chunks = (rank, 2 * pp - 1 - rank)
        self.actions: list[Action] = []
        self.counts: dict[tuple[int, Pass], int] = {}
        self.late: deque[Action] = deque()  # weight halves whose input half has run

    def run(self, side: int, *kinds: Pass, with_next: bool = False) -> None:
        """The next micro-batch of each of ``kinds`` on the chunk on the way down (0) or back (1)."""
        for kind in kinds:
            chunk = self.chunks[side]
            # A whole backward and an input half take their micro-batches from one count.
            key = (chunk, Pass.INPUT if kind is Pass.BACKWARD else kind)
            micro_batch = self.counts.get(key, 0)
            self.counts[key] = micro_batch + 1
            self.actions.append(Action(chunk, kind, micro_batch, with_next))
            if kind is Pass.INPUT:
                self.late.append(Action(chunk, Pass.WEIGHT, micro_batch))

    def pair(self, forward: int, backward: int) -> None:
        """A forward and a backward that are issued together."""
        self.run(forward, Pass.FORWARD, with_next=True)
        self.run(backward, Pass.BACKWARD)

    def weight(self) -> None:
        """The weight half that has waited longest, if any waits."""
        if self.late:
            self.actions.append(self.late.popleft())


def zbv(pp: int, vpp: int, micro_batches: int, rank: int) -> list[Action]:
    """ZB-V: Qi et al., 2024, section 6. No bubble but the first fill when F, I and W take equal time.

    The pattern needs ``2·pp - 1`` micro-batches; with fewer, what it would do for the others is left out.
    """
    f, i, w = Pass.FORWARD, Pass.INPUT, Pass.WEIGHT
    patterned = max(2 * pp - 1, micro_batches)
    out = _Writer(pp, rank)
    down = 2 * (pp - rank) - 1
    out.run(0, *[f] * down)
    for _ in range(rank):
        out.run(1, f)
        out.run(0, f)
    for _ in range(pp - rank):
        out.run(1, f, i, w)
    down, back = down + rank, pp
    while back < down or down < patterned:
        if down < patterned:
            out.run(0, f)
            down += 1
        out.run(0, i, w)
        out.run(1, f, i, w)
        back += 1
    for _ in range(rank):
        out.run(0, i)
        out.run(1, i)
    for _ in range(pp - rank):
        out.run(0, i, w)
    out.run(1, *[w] * rank)
    out.run(0, *[w] * rank)
    return [action for action in out.actions if action.micro_batch < micro_batches]


def dualpipe_v(pp: int, vpp: int, micro_batches: int, rank: int) -> list[Action]:
    """DualPipe-V: DeepSeek-V3, 2024, section 3.2.1, cut in half as its authors' code does.

    Needs at least ``2·pp`` micro-batches. A forward and a backward in the middle are issued as a pair.
    """
    f, b, i = Pass.FORWARD, Pass.BACKWARD, Pass.INPUT
    out = _Writer(pp, rank)
    out.run(0, *[f] * (2 * (pp - rank - 1)))
    for _ in range(rank + 1):
        out.run(0, f)
        out.run(1, f)
    for _ in range(pp - rank - 1):
        out.run(1, i)
        out.weight()
        out.run(1, f)
    for turn in range(micro_batches - 2 * pp + rank + 1):
        if turn == 0 and rank == pp - 1:
            out.run(0, f)
            out.run(1, b)
        else:
            out.pair(0, 1)
        out.pair(1, 0)
    for _ in range(pp - rank - 1):
        out.run(1, b)
        out.pair(1, 0)
    # From the middle of what is left on, backwards are halved; odd ranks change before chunk 1's, even ones after.
    middle, odd = (rank + 1) // 2, rank % 2 == 1
    for turn in range(rank + 1):
        out.run(1, i if turn > middle or (turn == middle and odd) else b)
        out.run(0, i if turn >= middle else b)
    for _ in range(pp - rank - 1):
        out.weight()
        out.run(0, i)
    for _ in range(rank + 1):
        out.weight()
    return out.actions
