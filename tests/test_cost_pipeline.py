"""1F1B against its closed form, and against a simulation written another way."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autoplan.cost.pipeline import one_f_one_b

SECONDS = st.floats(0.0, 10.0).map(lambda s: round(s, 3))


@given(st.integers(1, 8), st.integers(1, 20), SECONDS, SECONDS)
def test_closed_form_for_equal_stages(p: int, m: int, f: float, b: float) -> None:
    timeline = one_f_one_b([f] * p, [b] * p, [0.0] * (p - 1), m)
    assert timeline.makespan_s == pytest.approx((m + p - 1) * (f + b), abs=1e-9)
    assert timeline.busy_s == pytest.approx([m * (f + b)] * p)


def orders(stages: int, m: int) -> list[list[tuple[str, int]]]:
    """What each stage runs, in order: warm-up, one forward one backward, cool-down."""
    every = []
    for s in range(stages):
        warm = min(m, stages - s - 1)
        order = [("F", i) for i in range(warm)]
        for i in range(m - warm):
            order += [("F", warm + i), ("B", i)]
        every.append(order + [("B", i) for i in range(m - warm, m)])
    return every


def by_dependencies(forward: list[float], backward: list[float], sends: list[float], m: int) -> float:
    """Run whatever is next on a stage and has its input, until all is done."""
    stages = len(forward)
    ends: dict[tuple[str, int, int], float] = {}
    clock, left = [0.0] * stages, orders(stages, m)
    while any(left):
        for s, order in enumerate(left):
            while order:
                kind, i = order[0]
                other = s - 1 if kind == "F" else s + 1
                inside = 0 <= other < stages
                if inside and (kind, other, i) not in ends:
                    break
                arrived = ends[kind, other, i] + sends[min(s, other)] if inside else 0.0
                clock[s] = max(clock[s], arrived) + (forward[s] if kind == "F" else backward[s])
                ends[kind, s, i] = clock[s]
                order.pop(0)
    return max(clock)


@given(st.data(), st.integers(1, 6), st.integers(1, 12))
def test_equals_a_simulation_by_dependencies(data: st.DataObject, p: int, m: int) -> None:
    forward, backward = (data.draw(st.lists(SECONDS, min_size=p, max_size=p)) for _ in range(2))
    sends = data.draw(st.lists(SECONDS, min_size=p - 1, max_size=p - 1))
    expected = by_dependencies(forward, backward, sends, m)
    assert one_f_one_b(forward, backward, sends, m).makespan_s == pytest.approx(expected)


def test_head_and_tail_count() -> None:
    timeline = one_f_one_b([1.0, 1.0], [2.0, 2.0], [0.5], 1, head_s=[3.0, 0.0], tail_s=[1.0, 9.0])
    assert timeline.ends_s == (3 + 1 + 0.5 + 1 + 2 + 0.5 + 2, 3 + 1 + 0.5 + 1 + 2)
    assert timeline.makespan_s == 7.5 + 9
