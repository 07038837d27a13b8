"""Which ops run again: no set of ops is below the frontier that minimum cuts find."""

from __future__ import annotations

from itertools import chain, combinations

import pytest
from frontiers import below
from hypothesis import given, settings
from hypothesis import strategies as st

from autoplan.cost.keep import hull, keep_of, needed
from autoplan.cost.storages import Step, Storage, Storages
from autoplan.hardware import Cluster
from autoplan.search.keep_choice import frontier, least_frontier

CLUSTER = Cluster.of("h100-sxm", gpus=1)


@st.composite
def units(draw: st.DrawFn) -> Storages:
    """A unit of up to seven steps, each reading up to two storages made before it."""
    found = Storages([Storage(float(draw(st.integers(0, 9))), "", draw(st.booleans()))])
    for index in range(draw(st.integers(1, 7))):
        reads = tuple(draw(st.sets(st.integers(0, len(found.storages) - 1), min_size=1, max_size=2)))
        name = f"op{index}"
        found.storages.append(Storage(float(draw(st.integers(1, 9))), name, draw(st.booleans())))
        found.steps[name] = Step(
            name,
            reads,
            float(draw(st.integers(1, 9))),
            float(draw(st.integers(0, 3))),
            float(draw(st.sampled_from([0, 0, 1, 4]))),
            again=draw(st.sampled_from([True, True, True, False])),
            meets=False,
        )
    return found


def _every_price(found: Storages) -> list[tuple[float, float]]:
    names = [step.name for step in found.steps.values() if step.again]
    prices = []
    for again in chain.from_iterable(combinations(names, count) for count in range(len(names) + 1)):
        keep = keep_of("a unit", found, dict.fromkeys(again, "recompute"), CLUSTER)
        prices.append((keep.kept_bytes, keep.rerun_s))
    return prices


@settings(max_examples=60, deadline=None)
@given(units())
def test_no_set_of_ops_is_below_the_frontier(found: Storages) -> None:
    points = [(kept, seconds) for kept, seconds, _ in frontier(found)]
    best = hull(_every_price(found))
    assert points[0] == (found.kept_bytes, 0.0)
    assert set(points) <= set(best), "a point of the frontier that another set of ops beats"
    assert points[-1] == best[-1]
    least = least_frontier(found)
    assert all(below(least, kept) <= seconds + 1e-9 for kept, seconds in best)
    assert least[0][0] <= best[0][0] and least[0][1] == 0.0 and least[-1][0] == best[-1][0]
    if len(best) <= 4:  # as many as its rounds surely find
        assert set(points) == set(best)
        assert least == tuple(pytest.approx(point) for point in best)


@settings(max_examples=60, deadline=None)
@given(units(), st.data())
def test_what_runs_again_finds_all_that_it_reads(found: Storages, data: st.DataObject) -> None:
    names = [step.name for step in found.steps.values() if step.again]
    again = set(data.draw(st.sets(st.sampled_from(names)))) if names else set()
    runs, held = needed(found, again)
    there = held | {i for i, storage in enumerate(found.storages) if storage.maker in runs}
    assert runs <= again
    assert all(index in there for index, storage in enumerate(found.storages) if storage.needed)
    assert all(index in there for name in runs for index in found.steps[name].reads)


def test_the_hull_keeps_what_no_mixture_beats() -> None:
    points = [(10.0, 0.0), (7.0, 1.0), (6.0, 4.0), (4.0, 3.0), (9.0, 2.0), (0.0, 20.0)]
    assert hull(points) == ((10.0, 0.0), (7.0, 1.0), (4.0, 3.0), (0.0, 20.0))
