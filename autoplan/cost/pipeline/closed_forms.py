"""What is known of schedules on paper, when all chunks are alike and sends take no time.

F, B and W are the seconds of one chunk's forward, whole backward, and the part of the backward that gives
weight gradients; I = B - W. p ranks, v chunks a rank, m micro-batches. Where papers give seconds of a
whole rank, theirs are v times these.
"""

from __future__ import annotations

from autoplan.cost.pipeline.looped_schedules import group_sizes

__all__ = ["bubble_s", "in_flight"]


def bubble_s(
    schedule: str,
    pp: int,
    vpp: int,
    micro_batches: int,
    forward_s: float,
    backward_s: float,
    weight_s: float = 0.0,
) -> float | None:
    """Seconds by which the step is longer than ``m v (F + B)``; None where no form is known.

    gpipe, 1f1b    (p - 1)(F + B)                                          Huang 2019; Narayanan 2021, 2.1
    interleaved    (p - 1)(F + B), and for m < p (v - 1)(p - m)(F + B) more  Narayanan 2021, 2.2.2
    zb-h1          (p - 1)(F + I - W) for W ≤ F, I and m ≥ p               Qi 2024, table 2
                   (p - 1) max(F, I) for larger W                          (the simulator; the paper has W ≤ F, I)
    zbv            (p - 1) I for F, W ≤ I and m ≥ 2p - 1                   Qi 2024, section 6: the first fill
    dualpipe-v     (p - 1)(F + 2B - 3W) for W ≤ F = I                      DeepSeek-V3 2024, table 2, whose
                                                                           F&B is F + B and PP is 2p
    """
    p, v, m = pp, vpp, micro_batches
    f, b, w = forward_s, backward_s, weight_s
    i = b - w
    match schedule:
        case "gpipe" | "1f1b":
            return (p - 1) * (f + b)
        case "interleaved":
            return (p - 1 + (v - 1) * max(0, p - m)) * (f + b)
        case "zb-h1" if m >= p:
            return (p - 1) * (f + i - min(f, i, w))
        case "zbv" if m >= 2 * p - 1 and max(f, w) <= i:
            return (p - 1) * max(i, 2 * (i - w))
        case "dualpipe-v" if w <= f == i:
            return (p - 1) * (f + 2 * b - 3 * w)
        case _:
            return None


def in_flight(schedule: str, pp: int, vpp: int, micro_batches: int, rank: int) -> int:
    """The most forwards of chunks whose activations ``rank`` keeps at once.

    With g the size of the larger groups of micro-batches (p where p divides m):

    gpipe          m
    1f1b           min(m, p - rank)
    interleaved    min(v m, (v - 1) g + 2(p - 1 - rank) + 1); on rank 0 p v (1 + (p - 1) / (p v))
    zb-h1          min(v m, (v - 1) g + p), a weight half's activations being kept until it runs
    zbv            min(2 m, 2 p, m + rank + 1)
    dualpipe-v     2 p + 1

    Narayanan 2021, 2.2; Korthikanti 2022, equation 8 (interleaved); Qi 2024, tables 1 and 2; DeepSeek-V3
    2024, table 2, whose PP is 2p.
    """
    p, v, m = pp, vpp, micro_batches
    group = group_sizes(p, m)[0]
    match schedule:
        case "gpipe":
            return m
        case "1f1b":
            return min(m, p - rank)
        case "interleaved":
            return min(v * m, (v - 1) * group + 2 * (p - 1 - rank) + 1)
        case "zb-h1":
            return min(v * m, (v - 1) * group + p)
        case "zbv":
            return min(2 * m, 2 * p, m + rank + 1)
        case "dualpipe-v":
            return 2 * p + 1
        case _:
            raise ValueError(schedule)
