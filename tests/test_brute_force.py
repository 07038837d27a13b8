"""The search against the enumeration of every plan, on small random questions (benchmarks/brute_force.py)."""

from __future__ import annotations

import itertools
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autoplan.search.layout_elimination import eliminate, price_s

BENCHMARKS = str(Path(__file__).resolve().parent.parent / "benchmarks")


@pytest.fixture(scope="module")
def brute() -> Any:
    sys.path.insert(0, BENCHMARKS)
    try:
        import brute_force

        yield brute_force
    finally:
        sys.path.remove(BENCHMARKS)


def test_finds_the_best_of_all_plans(brute: ModuleType) -> None:
    outcomes, layouts = [], 0
    for family in itertools.islice(brute.families(0), 10):
        outcomes += list(brute.compare(family, 5))
        for question in brute.layout_questions(family):
            if (best_s := brute.best_layouts_s(question)) is not None:
                taken = eliminate(question)
                assert taken is not None and price_s(question, taken) == pytest.approx(best_s, rel=1e-9)
                layouts += 1
    assert [outcome for outcome in outcomes if not outcome.equal] == []
    assert len(outcomes) == 50 and layouts >= 8
    assert sum(outcome.best_s is None for outcome in outcomes) < 40


def test_finds_the_best_of_all_plans_on_two_types_of_device(brute: ModuleType) -> None:
    outcomes = []
    for family in itertools.islice(brute.families(0, mixed=True), 8):
        outcomes += list(brute.compare(family, 4))
    assert [outcome for outcome in outcomes if not outcome.equal] == []
    assert sum(outcome.best_s is None for outcome in outcomes) < 22


@settings(max_examples=12, deadline=None, derandomize=True)
@given(
    seed=st.integers(0, 400),
    share=st.floats(0.3, 1.2),
    which=st.sampled_from(["pp", "tp", "micro_batch", "zero"]),
)
def test_a_larger_space_is_never_worse_and_names_change_nothing(
    brute: ModuleType, seed: int, share: float, which: str
) -> None:
    family = next(brute.families(1000 + seed))
    (middle,) = family.peaks[len(family.peaks) // 2]
    cluster = brute.with_memory(family.cluster, share * middle)
    free = brute.find(family, cluster, {})
    other = brute.find(family.renamed(), brute.with_memory(family.renamed().cluster, share * middle), {})
    assert free.status is other.status
    if free.estimate is not None and other.estimate is not None:
        assert other.estimate.step_time_s == free.estimate.step_time_s
        assert (other.bound_s, other.candidates) == (free.bound_s, free.candidates)
    for value in {getattr(degrees, which) for degrees, _, _ in family.prices}:
        pinned = brute.find(family, cluster, {which: value})
        if pinned.estimate is not None:
            assert free.estimate is not None
            assert free.estimate.step_time_s <= pinned.estimate.step_time_s * (1 + brute.CLOSE)
            assert free.bound_s <= pinned.estimate.step_time_s * (1 + brute.CLOSE)
