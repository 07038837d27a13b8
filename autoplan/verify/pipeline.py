"""The step under 1F1B, by walking the passes of every stage in their order.

Stage s of p runs w = min(m, p - s) forwards, then a backward and a forward in turn, then what backwards are
left. A pass waits for the one before it on its stage and for its input; a message leaves when its pass has
ended and the message before it on the same link has arrived.
"""

from __future__ import annotations

from collections.abc import Sequence

from autoplan.verify.stage import StageSums

__all__ = ["step_s"]


def step_s(stages: Sequence[StageSums], sends_s: Sequence[float], micro_batches: int) -> float:
    """Seconds of the step; ``sends_s`` is what each stage but the last takes to send to the next."""
    m, p = micro_batches, len(stages)
    if p == 1:
        one = stages[0]
        return one.head_s + m * (one.forward_s + one.backward_s) + one.tail_s
    orders = [_order(s, p, m) for s in range(p)]
    here = [stage.head_s for stage in stages]  # when each stage is free
    at = [0] * p
    arrives = [[[0.0] * m if s == 0 else [] for s in range(p)], [[] for _ in range(p - 1)] + [[]]]
    link = [[0.0] * p, [0.0] * p]
    moved = True
    while moved:
        moved = False
        for s in range(p):
            order, free = orders[s], here[s]
            forward, backward = stages[s].forward_s, stages[s].backward_s
            inputs, gradients = arrives[0][s], arrives[1][s]
            while at[s] < len(order):
                i = order[at[s]]
                if i >= 0:
                    if i >= len(inputs):
                        break
                    free = max(free, inputs[i]) + forward
                    if s + 1 < p:
                        link[0][s] = max(link[0][s], free) + sends_s[s]
                        arrives[0][s + 1].append(link[0][s])
                else:
                    if s + 1 < p:
                        if -1 - i >= len(gradients):
                            break
                        free = max(free, gradients[-1 - i])
                    free += backward
                    if s:
                        link[1][s] = max(link[1][s], free) + sends_s[s - 1]
                        arrives[1][s - 1].append(link[1][s])
                at[s] += 1
                moved = True
            here[s] = free
    return max(free + stage.tail_s for free, stage in zip(here, stages, strict=True))


def _order(stage: int, stages: int, micro_batches: int) -> list[int]:
    """Forwards as 0, 1, …, backwards as -1, -2, …"""
    first = min(micro_batches, stages - stage)
    order = list(range(first))
    for i in range(micro_batches):
        order.append(-1 - i)
        if first + i < micro_batches:
            order.append(first + i)
    return order
