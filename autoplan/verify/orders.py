"""What each pipeline rank runs, in which order, stated apart from ``cost.pipeline``.

A pass is (kind, stage, micro-batch, held): F forward, B a whole backward, I its half that gives the gradient of the
input, W the half that gives the gradients of weights. What a *held* pass makes leaves with what the next one makes.

    gpipe         all F, then all B
    1f1b          F until the ranks behind have one each, then F and B in turn
    interleaved   the same over groups of micro-batches, stage by stage, with two F for each rank behind
    zb-h1         1f1b in halves; each W comes as many backwards late as the rank is deep
    zbv           Qi et al., 2024, section 6, figure 4
    dualpipe-v    DeepSeek-V3, 2024, section 3.2.1, cut in half
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Callable

from autoplan.verify.verdict import Unfamiliar

__all__ = ["Pass", "order_of", "rank_of_stage"]

Pass = tuple[str, int, int, bool]

_V_SHAPED = ("zbv", "dualpipe-v")


def rank_of_stage(schedule: str, stage: int, ranks: int) -> int:
    """Stages go round the ranks; in a V-shaped schedule down and back."""
    if schedule in _V_SHAPED:
        return stage if stage < ranks else 2 * ranks - 1 - stage
    return stage % ranks


def order_of(schedule: str, rank: int, ranks: int, levels: int, micro_batches: int) -> list[Pass]:
    """The passes of one rank of ``ranks``, which holds ``levels`` stages. Raises Unfamiliar for another schedule."""
    if schedule in _V_SHAPED:
        return _played(_zbv if schedule == "zbv" else _dualpipe_v, rank, ranks, micro_batches)
    m, behind = micro_batches, ranks - 1 - rank
    forwards, backwards = _rounds(rank, ranks, levels, m)
    first = (levels - 1) * -(-m // max(1, m // ranks))
    match schedule:
        case "gpipe":
            return [("F", *at, False) for at in forwards] + [("B", *at, False) for at in backwards]
        case "1f1b" | "zb-h1":
            first += behind
        case "interleaved":
            first += 2 * behind
        case _:
            raise Unfamiliar(f"schedule={schedule}")
    found: list[Pass] = []
    for number in range(len(forwards) + first + 1 + rank):
        if number < len(forwards):
            found.append(("F", *forwards[number], False))
        back, late = number - first, number - first - rank
        if 0 <= back < len(backwards):
            found.append(("I" if schedule == "zb-h1" else "B", *backwards[back], False))
        if schedule == "zb-h1" and 0 <= late < len(backwards):
            found.append(("W", *backwards[late], False))
    return found


def _rounds(
    rank: int, ranks: int, levels: int, m: int
) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
    """(stage, micro-batch) of a rank's forwards and of its backwards: groups of micro-batches, and in a group stage
    by stage, the backwards from the deepest."""
    groups = max(1, m // ranks)
    size, larger = divmod(m, groups)

    def group(i: int) -> int:
        ahead = larger * (size + 1)
        return i // (size + 1) if i < ahead else larger + (i - ahead) // size

    passes = [(level, i) for level in range(levels) for i in range(m)]
    down = sorted(passes, key=lambda at: (group(at[1]), at[0], at[1]))
    back = sorted(passes, key=lambda at: (group(at[1]), -at[0], at[1]))
    return [(level * ranks + rank, i) for level, i in down], [(level * ranks + rank, i) for level, i in back]


def _played(
    score: Callable[[int, int, int], list[tuple[int, str]]], rank: int, ranks: int, m: int
) -> list[Pass]:
    """A score as passes. It is (times, words), a word being a side, 1 on the way down or 2 on the way back, and a
    kind; ``1F+2B`` is a forward that is held for the backward after it; ``W`` is the weight half of either side
    that waits longest, if one waits."""
    stage = {"1": rank, "2": 2 * ranks - 1 - rank}
    done: defaultdict[str, int] = defaultdict(int)
    waiting: deque[Pass] = deque()
    found: list[Pass] = []
    for times, words in score(rank, ranks, m):
        for word in words.split() * times:
            if word == "W":
                found += [waiting.popleft()] if waiting else []
                continue
            parts = word.split("+")
            for place, (side, kind) in enumerate(parts):
                counter = side + kind.replace("B", "I")
                found.append((kind, stage[side], done[counter], place + 1 < len(parts)))
                done[counter] += 1
                if kind == "I":
                    waiting.append(("W", stage[side], done[counter] - 1, False))
    return [one for one in found if one[2] < m]


def _zbv(rank: int, ranks: int, m: int) -> list[tuple[int, str]]:
    """Of at least 2·ranks - 1 micro-batches, though some may not exist."""
    m, left = max(m, 2 * ranks - 1), ranks - rank
    started = left + ranks - 1  # forwards down before the steady part
    return [
        (2 * left - 1, "1F"),
        (rank, "2F 1F"),
        (left, "2F 2I 2W"),
        (m - started, "1F 1I 1W 2F 2I 2W"),
        (started - ranks, "1I 1W 2F 2I 2W"),
        (rank, "1I 2I"),
        (left, "1I 1W"),
        (rank, "2W"),
        (rank, "1W"),
    ]


def _dualpipe_v(rank: int, ranks: int, m: int) -> list[tuple[int, str]]:
    behind = ranks - 1 - rank
    steady = m - ranks - behind
    opening = [(1, "1F 2B 2F+1B")] if behind == 0 else []
    whole, both = (rank + 1) // 2, (rank + 1) - (rank + 1) // 2
    odd = rank % 2
    return [
        (2 * behind, "1F"),
        (rank + 1, "1F 2F"),
        (behind, "2I W 2F"),
        *opening,
        (steady - len(opening), "1F+2B 2F+1B"),
        (behind, "2B 2F+1B"),
        (whole, "2B 1B"),
        (1 - odd, "2B 1I"),
        (both - (1 - odd), "2I 1I"),
        (behind, "W 1I"),
        (rank + 1, "W"),
    ]
