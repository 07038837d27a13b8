"""The whole search on toy models: proof, order, pins, determinism, and what it says when nothing fits."""

from __future__ import annotations

import functools
import gc
import itertools
import math
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_cost_toys import toy_cluster, toy_graph, toy_layouts, toy_strategies

from autoplan.cost import price
from autoplan.errors import AutoplanError, InputError, PlanError
from autoplan.graph.ir import ModelGraph
from autoplan.hardware import Cluster
from autoplan.plan import Job, Plan, validate_plan
from autoplan.search import SearchResult, Status, search
from autoplan.search.graphs import Graphs
from autoplan.search.pins import Pins
from autoplan.search.space import Space


@functools.cache
def graph_at(micro_batch: int) -> ModelGraph:
    return toy_graph(micro_batch, 6, seq=1024, hidden=2048, vocabulary=32768)


def find(cluster: Cluster | None = None, batch: int = 32, **changes: Any) -> SearchResult:
    job = Job(global_batch=batch, tokens_per_sample=1024)
    cluster = cluster or toy_cluster(nodes=2, memory=12e9)
    return search(graph_at, job, cluster, strategies_of=toy_strategies, layouts_of=toy_layouts, **changes)


def best(result: SearchResult) -> Plan:
    assert result.plan is not None
    return result.plan


def step_s(result: SearchResult) -> float:
    assert result.estimate is not None
    return result.estimate.step_time_s


def test_the_plan_is_valid_and_priced_as_said() -> None:
    result = find()
    plan = best(result)
    validate_plan(plan)
    assert plan.world_size == 8
    assert result.status in (Status.OPTIMAL, Status.WITHIN_GAP) and result.gap <= 0.0102
    again = price(
        graph_at(plan.micro_batch),
        plan,
        Job(global_batch=32, tokens_per_sample=1024),
        toy_cluster(nodes=2, memory=12e9),
        strategies_of=toy_strategies,
    )
    assert msgspec.to_builtins(again) == msgspec.to_builtins(result.estimate)
    assert sum(again.parts.values()) == pytest.approx(again.step_time_s)
    assert result.candidates >= result.pruned > 0


def test_nothing_in_the_space_beats_the_bound() -> None:
    cluster = toy_cluster(nodes=2, memory=12e9)
    result = find(cluster, gap=0.01)
    space = Space(
        Graphs(graph_at),
        Job(global_batch=32, tokens_per_sample=1024),
        cluster,
        Pins(),
        toy_strategies,
        toy_layouts,
    )
    prices = []
    seen = [variant for degrees in space.candidates for variant in (degrees, *space.variants(degrees))]
    assert len(seen) == space.count == result.candidates
    of_mesh = {degrees: mesh for mesh, alike in space.meshes.items() for degrees in alike}
    assert sorted(of_mesh) == space.candidates
    meshes = [of_mesh[degrees] for degrees in space.candidates for _ in (0, *space.variants(degrees))]
    for degrees, mesh in zip(seen, meshes, strict=True):
        for choice in space.choices(degrees):
            if staging := space.solve(degrees, choice):
                prices.append(space.candidate(degrees, choice, staging.stages).estimate.step_time_s)
                assert space.mesh_bound_s(mesh) <= prices[-1] * (1 + 1e-9)
    assert len(prices) > 200
    assert result.bound_s <= min(prices) * (1 + 1e-4)
    assert step_s(result) <= min(prices) * (1 + result.gap + 1e-9)


def test_runners_up_differ_in_degrees_and_are_slower() -> None:
    result = find(top=4)
    meshes = [(p.pp, p.dp, p.fsdp, p.tp) for p in (best(result), *(c.plan for c in result.runners_up))]
    assert len(meshes) == 4 == len(set(meshes))
    times = [step_s(result), *(c.estimate.step_time_s for c in result.runners_up)]
    assert times == sorted(times)


@settings(max_examples=4, deadline=None, derandomize=True)
@given(st.floats(4e9, 40e9), st.floats(1.0, 4.0))
def test_more_memory_or_bandwidth_is_never_worse(memory: float, factor: float) -> None:
    small = find(toy_cluster(nodes=2, memory=memory))
    for cluster in (
        toy_cluster(nodes=2, memory=memory * factor),
        toy_cluster(nodes=2, memory=memory, speed=factor),
    ):
        large = find(cluster)
        if small.plan is not None:
            assert large.plan is not None
            assert large.bound_s <= step_s(small) * (1 + 1e-4)
            assert step_s(large) <= step_s(small) * (1 + large.gap + 1e-4)


@pytest.mark.parametrize(
    "pin",
    [
        {"tp": 4},
        {"pp": 2, "tp": 1},
        {"dp": 8},
        {"fsdp": 2, "zero": 3},
        {"zero": 0},
        {"micro_batch": 2},
        {"recompute": "full"},
        {"recompute": "none", "pp": 4},
        {"schedule": "1f1b", "vpp": 1},
        {"schedule": "gpipe"},
        {"schedule": "interleaved", "vpp": 3},
        {"schedule": "zbv", "tp": 2},
        {"vpp": 2},
        {"schedule": "dualpipe-v", "recompute": "full"},
    ],
)
def test_pins_are_kept(pin: dict[str, Any]) -> None:
    plan = best(find(pin=pin))
    for name, value in pin.items():
        assert getattr(plan, name) == value


@pytest.mark.parametrize(
    ("pin", "error", "text"),
    [
        ({"tpp": 2}, InputError, "pin: got 'tpp', expected one of pp, dp, fsdp, cp, tp"),
        ({"tp": 3}, PlanError, "tp: got 3, expected a divisor of the 8 ranks"),
        ({"tp": 8}, PlanError, "tp: got 8, expected a divisor of the 4 ranks of a node"),
        ({"ep": 2}, PlanError, "ep: got 2, expected a divisor of the number of experts"),
        ({"pp": "2"}, PlanError, "pp: got '2', expected an integer of at least 1"),
        ({"pp": 4, "tp": 4}, PlanError, "pp · dp · fsdp · cp · tp: got 16"),
        ({"zero": 1, "fsdp": 1}, PlanError, "zero: got 1, expected 0 where fsdp is 1"),
        ({"micro_batch": 3}, PlanError, "micro_batch: got 3, expected a divisor of the global batch, 32"),
        ({"schedule": "2f2b"}, InputError, "schedule: got '2f2b', expected one of gpipe, 1f1b, interleaved"),
        ({"schedule": "zbv", "vpp": 3}, PlanError, "vpp: got 3, expected 2, the stages that each rank holds"),
        ({"schedule": "zbv", "pp": 1}, PlanError, "schedule: got 'zbv', expected left out, as pp is 1"),
        ({"vpp": 2, "pp": 1}, PlanError, "vpp: got '2', expected left out, as pp is 1"),
        ({"recompute": "some"}, InputError, "recompute: got 'some', expected none, full, selective"),
    ],
)
def test_impossible_pins_are_refused(pin: dict[str, Any], error: type[AutoplanError], text: str) -> None:
    with pytest.raises(error, match=None) as caught:
        find(pin=pin)
    assert text in str(caught.value)


def test_a_batch_that_does_not_divide_names_those_that_do() -> None:
    with pytest.raises(InputError) as caught:
        find(batch=30, pin={"dp": 8})
    assert caught.value.field == "--global-batch"
    assert "use 24 or 32" in str(caught.value)


def test_nothing_fits_is_a_value_with_cures() -> None:
    result = find(toy_cluster(nodes=2, memory=3.0e9), pin={"recompute": "none", "micro_batch": 4, "tp": 1})
    assert result.status is Status.INFEASIBLE
    assert result.plan is None and result.estimate is None
    assert "micro_batch=4" in result.conflict and "GiB" in result.conflict
    assert result.cures
    assert result.to_json()["plan"] is None


def test_releasing_a_pin_is_a_cure() -> None:
    result = find(toy_cluster(nodes=2, memory=3.6e9), pin={"micro_batch": 8})
    assert result.status is Status.INFEASIBLE
    assert [cure.option for cure in result.cures][:1] == ["--micro-batch"]
    assert best(find(toy_cluster(nodes=2, memory=3.6e9), pin={"micro_batch": int(result.cures[0].value)}))


def test_more_nodes_are_a_cure() -> None:
    result = find(toy_cluster(nodes=2, memory=2.75e9), batch=128)
    assert result.status is Status.INFEASIBLE
    (cure,) = result.cures
    assert cure.option == "--nodes"
    assert best(find(toy_cluster(nodes=int(cure.value), memory=2.75e9), batch=128))


@pytest.mark.parametrize("limit_s", [0, 1, 10, 100, 1000])
def test_a_time_limit_holds_in_every_phase(limit_s: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """By a clock that goes on by a second whenever it is looked at: while meshes are bounded, before the first plan,
    and after it."""
    fastest_s = step_s(find(gap=0.0))
    clock = itertools.count()
    ticking = SimpleNamespace(monotonic=lambda: next(clock))
    for module in ("branch_and_bound", "outer", "infeasible"):
        monkeypatch.setattr(f"autoplan.search.{module}.time", ticking)
    result = find(time_limit_s=limit_s, gap=0.0)
    assert next(clock) <= limit_s + 6
    assert result.bound_s <= fastest_s * (1 + 1e-9)
    if result.plan is not None:
        assert fastest_s * (1 - 1e-9) <= step_s(result)
        assert result.status is (Status.LIMIT if result.gap > 1e-6 else Status.OPTIMAL)
    else:
        assert limit_s < 1000
        assert (result.status, result.gap) == (Status.LIMIT, math.inf)
        assert "none of" in result.conflict and result.cures[0].option == "--time-limit"


def test_a_time_limit_holds_while_cures_are_sought(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bounding finds that nothing fits; by then there is time for a message, and no more."""
    asked: dict[str, Any] = {"batch": 128, "pin": {"pp": 2}, "cluster": toy_cluster(nodes=2, memory=2.75e9)}
    assert [cure.option for cure in find(**asked).cures] == ["--nodes"]
    clock = itertools.count()
    ticking = SimpleNamespace(monotonic=lambda: min(next(clock), 1))
    for module in ("branch_and_bound", "outer", "infeasible"):
        monkeypatch.setattr(f"autoplan.search.{module}.time", ticking)
    found = find(**asked, time_limit_s=1)
    assert found.status is Status.INFEASIBLE and found.cures
    monkeypatch.setattr("autoplan.search.infeasible.time", SimpleNamespace(monotonic=lambda: 9.0))
    late = find(**asked, time_limit_s=1)
    assert late.status is Status.INFEASIBLE and late.conflict == found.conflict
    assert [cure.option for cure in late.cures] == ["--cluster"] and not late.conflicting


def test_a_search_that_was_asked_before_solves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the second search some bounds are closer, as layouts are known by then; the third asks what it asked."""
    graphs, cluster = Graphs(graph_at), toy_cluster(nodes=2, memory=12e9)
    job = Job(global_batch=32, tokens_per_sample=1024)

    def again(**changes: Any) -> bytes:
        ways: dict[str, Any] = {"strategies_of": toy_strategies, "layouts_of": toy_layouts}
        data = search(graphs, job, cluster, **ways, **changes).to_json()
        del data["search"]["seconds"]
        return msgspec.json.encode(data)

    again()
    second = again()
    monkeypatch.setattr("autoplan.search.space.solve_staging", lambda question: pytest.fail("solved again"))
    monkeypatch.setattr("autoplan.search.space.step_estimate", lambda *args: pytest.fail("priced again"))
    assert again() == second
    monkeypatch.undo()
    bare = msgspec.json.decode(again(pin={"recompute": "none"}))
    assert bare["plan"]["recompute"] == "none"  # another question has an answer of its own


def test_the_collector_is_left_as_it_was() -> None:
    before = gc.get_threshold()
    seen = []
    find(toy_cluster(nodes=1, memory=12e9), progress=lambda _: seen.append(gc.get_threshold()))
    assert seen and all(now[0] >= max(before[0], 20_000) for now in seen)
    assert gc.get_threshold() == before


def test_progress_is_told_in_sentences() -> None:
    told: list[str] = []
    find(progress=told.append)
    assert told and "plans priced" in told[0]


SCRIPT = """
from test_search import find
import msgspec
result = find()
data = result.to_json()
del data["search"]["seconds"]
print(msgspec.json.encode(data).decode())
"""


def test_the_same_question_has_the_same_answer_byte_for_byte() -> None:
    """Whatever the hash seed, the number of threads, and what was imported first."""
    answers = set()
    for seed, threads, first in (("1", "1", "ortools.math_opt.python.mathopt, torch"), ("2", "2", "torch")):
        environment = {**os.environ, "PYTHONHASHSEED": seed, "OMP_NUM_THREADS": threads}
        done = subprocess.run(
            [sys.executable, "-c", f"import {first}\n{SCRIPT}"],
            env=environment,
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            check=True,
        )
        answers.add(done.stdout)
    assert len(answers) == 1


def test_searching_needs_no_torch() -> None:
    script = "import autoplan.search, sys; autoplan.search.search; assert 'torch' not in sys.modules; assert 'ortools' not in sys.modules"
    subprocess.run([sys.executable, "-c", script], check=True)
