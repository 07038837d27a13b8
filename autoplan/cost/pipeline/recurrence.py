"""The 1F1B schedule (Narayanan et al., 2021, figure 4), event by event.

Stage s of p runs w = min(m, p - s) forwards, then backward and forward in turn, then what is left
of the backwards. With F(s, i) and B(s, i) the ends of micro-batch i's passes on stage s, and c_s the
seconds to send between s and s + 1,

    F(s, i) = f_s + max(F(s-1, i) + c_{s-1}, the end of what stage s ran before)
    B(s, i) = b_s + max(B(s+1, i) + c_s,     the end of what stage s ran before)

Sends do not occupy the sender. With equal stages and free sends the makespan is (m + p - 1)(f + b).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["Timeline", "one_f_one_b"]


@dataclass(frozen=True, slots=True)
class Timeline:
    """One step: when it ends, and for each stage when its last backward ends and how long it computed."""

    makespan_s: float
    ends_s: tuple[float, ...]
    busy_s: tuple[float, ...]


def one_f_one_b(
    forward_s: Sequence[float],
    backward_s: Sequence[float],
    send_s: Sequence[float],
    micro_batches: int,
    head_s: Sequence[float] | None = None,
    tail_s: Sequence[float] | None = None,
) -> Timeline:
    """Simulate ``micro_batches`` through the stages.

    Args:
        forward_s, backward_s: seconds of one micro-batch, for each stage.
        send_s: seconds between neighbouring stages, one fewer than stages.
        head_s: seconds before a stage's first forward can start.
        tail_s: seconds that a stage still needs after its last backward.
    """
    stages, m = len(forward_s), micro_batches
    head = list(head_s) if head_s is not None else [0.0] * stages
    tail = list(tail_s) if tail_s is not None else [0.0] * stages
    clock = list(head)
    sends = [*send_s, 0.0]
    returned = [0.0] * (stages + 1)  # end of the backward that a stage ran in the round before
    for turn in range(m + stages):
        # In turn r stage s runs B(s, r - (p - s)), whose gradient came in turn r - 1, then F(s, r).
        for s in range(stages):
            if 0 <= turn - stages + s < m:
                arrived = returned[s + 1] + sends[s] if s + 1 < stages else 0.0
                returned[s] = clock[s] = max(clock[s], arrived) + backward_s[s]
        if turn < m:
            arrived = 0.0
            for s in range(stages):
                clock[s] = max(clock[s], arrived) + forward_s[s]
                arrived = clock[s] + sends[s]
    busy = tuple(head[s] + m * (forward_s[s] + backward_s[s]) + tail[s] for s in range(stages))
    return Timeline(max(end + after for end, after in zip(clock, tail, strict=True)), tuple(clock), busy)
