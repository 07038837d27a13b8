"""Ranks that share cores: the price of a bubble, against a machine that is walked in small steps of time."""

from __future__ import annotations

import math

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_cost_toys import toy_cluster, toy_graph, toy_layouts, toy_strategies

from autoplan.cost.pipeline import StageSeconds, compiled, relieved, simulate
from autoplan.hardware import Cluster
from autoplan.plan import Job, Precision
from autoplan.search import search

SEVERAL = ["1f1b", "gpipe", "interleaved", "zbv"]


def shared(at_once: int, ranks: int = 4) -> Cluster:
    cluster = toy_cluster(nodes=1, node_size=ranks, memory=60e9)
    return msgspec.structs.replace(cluster, device=msgspec.structs.replace(cluster.device, at_once=at_once))


def walked_s(
    schedule: str, pp: int, vpp: int, m: int, forward: list[float], backward: list[float], cores: int
) -> float:
    """Ranks in the order of their passes; whoever has its input works, all at one pace, until the next is done."""
    program = compiled(schedule, pp, vpp, m)
    order = program.order
    takes = {"F": forward, "B": backward, "I": [b / 2 for b in backward], "W": [b / 2 for b in backward]}
    done: set[tuple[str, int, int]] = set()
    at = [0] * pp
    left: list[float | None] = [None] * pp
    now, chunks = 0.0, order.chunks

    def ready(kind: str, chunk: int, i: int) -> bool:
        if kind == "F":
            return chunk == 0 or ("F", chunk - 1, i) in done
        if kind == "W":
            return True
        return chunk == chunks - 1 or any((back, chunk + 1, i) in done for back in "BI")

    while any(at[rank] < len(order.ranks[rank]) for rank in range(pp)):
        for rank in range(pp):
            if left[rank] is None and at[rank] < len(order.ranks[rank]):
                action = order.ranks[rank][at[rank]]
                if ready(action.kind.value, action.chunk, action.micro_batch):
                    left[rank] = takes[action.kind.value][action.chunk]
        busy = [rank for rank in range(pp) if left[rank] is not None]
        pace = max(len(busy), cores) / pp  # of seconds with all ranks at work
        step = min(value for value in left if value is not None)
        now += step * pace
        for rank in busy:
            value = left[rank]
            assert value is not None
            if math.isclose(value, step, rel_tol=1e-12):
                action = order.ranks[rank][at[rank]]
                done.add((action.kind.value, action.chunk, action.micro_batch))
                at[rank], left[rank] = at[rank] + 1, None
            else:
                left[rank] = value - step
    return now


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_a_step_on_shared_cores_is_that_of_a_machine_that_shares_them(data: st.DataObject) -> None:
    schedule = data.draw(st.sampled_from(SEVERAL))
    pp, m = data.draw(st.sampled_from([2, 4])), data.draw(st.sampled_from([4, 8]))
    vpp = 2 if schedule in ("interleaved", "zbv") else 1
    seconds = st.floats(0.5, 2.0)
    forward, backward = (data.draw(st.lists(seconds, min_size=pp * vpp, max_size=pp * vpp)) for _ in range(2))
    cores = data.draw(st.integers(1, pp))
    weight = [b / 2 for b in backward] if schedule == "zbv" else None
    run = simulate(
        compiled(schedule, pp, vpp, m),
        StageSeconds(forward_s=forward, backward_s=backward, weight_s=weight, send_s=np.zeros(pp * vpp - 1)),
    )
    cluster = shared(cores, pp)
    found = relieved(run, cluster.relief)
    assert found.step_s == pytest.approx(walked_s(schedule, pp, vpp, m, forward, backward, cores))
    work = m * (sum(forward) + sum(backward)) / pp
    assert work * (1 - 1e-9) <= found.step_s <= run.step_s * (1 + 1e-9)
    if cores == 1:
        assert found.step_s == pytest.approx(work), "a single core never waits"


def test_a_search_prices_shared_cores_and_its_bound_holds() -> None:
    """On four ranks of two cores pipelines lose little, and no plan is below the bound; the check derives it again."""
    graphs = {size: toy_graph(size, 4, seq=256, hidden=512, vocabulary=1024) for size in (1, 2, 4, 8, 16)}
    job = Job(global_batch=16, tokens_per_sample=256, precision=Precision.FP32)

    def found(at_once: int, pp: int) -> float:
        result = search(
            lambda size: graphs[size],
            job,
            shared(at_once),
            pin={"pp": pp, "tp": 1, "micro_batch": 4},
            strategies_of=toy_strategies,
            layouts_of=toy_layouts,
        )
        assert result.estimate is not None
        step_s, parts = result.estimate.step_time_s, result.estimate.parts
        assert result.bound_s <= step_s * (1 + 1e-9)
        assert sum(parts.values()) == pytest.approx(step_s) and min(parts.values()) >= 0
        return step_s

    apart, two = found(0, 4), found(2, 4)
    assert two < 0.8 * apart
    assert found(0, 1) == found(2, 1)
