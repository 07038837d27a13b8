"""What goes with the largest units of a stage: its program and its bound count those that the stage holds, no others."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_cost_toys import toy_cluster

from autoplan.cost.degrees import Degrees
from autoplan.cost.keep import NONE
from autoplan.cost.memory import StageLoad, StateRates, in_flight, rank_memory, state_bytes
from autoplan.cost.state_traffic import state_traffic
from autoplan.cost.times import Times
from autoplan.cost.unit import UnitCost
from autoplan.plan import Job, Precision
from autoplan.search.largest import largest_between, largest_bytes
from autoplan.search.run import Run
from autoplan.search.stages import StagingQuestion
from autoplan.search.staging import solve_staging
from autoplan.search.staging_bound import staging_bound_s

CLUSTER = toy_cluster(nodes=2, node_size=4, memory=80e9)
MILLIONS = st.integers(1, 40).map(lambda n: n * 1e6)


@st.composite
def costs(draw: st.DrawFn) -> UnitCost:
    parameters, trained = draw(MILLIONS), draw(st.sampled_from([1.0, 0.5]))
    return UnitCost(
        times=Times(draw(st.integers(1, 4)) * 1e-3, 3e-3, 0.0, 0.0),
        saved_bytes=draw(MILLIONS),
        input_bytes=1e5,
        workspace_bytes=20 * draw(MILLIONS),
        parameters=parameters,
        trainable=trained * parameters,
        sizes={},
    )


@st.composite
def chains(draw: st.DrawFn) -> tuple[list[tuple[UnitCost, int]], Degrees, Job]:
    """Runs of equal units, and how they are cut and sharded."""
    runs = [(draw(costs()), draw(st.integers(1, 3))) for _ in range(draw(st.integers(1, 4)))]
    pp = draw(st.sampled_from([p for p in (1, 2, 4) if p <= sum(count for _, count in runs)]))
    micro_batches = draw(st.sampled_from([1, 4]))
    zero = draw(st.integers(1, 3))
    fsdp = 8 // pp
    precision = draw(st.sampled_from([Precision.BF16, Precision.FP32]))
    job = Job(global_batch=fsdp * micro_batches, tokens_per_sample=1024, precision=precision)
    return runs, Degrees(pp, 1, fsdp, 1, 1, zero, 1, micro_batches), job


def question_of(runs: list[tuple[UnitCost, int]], degrees: Degrees, job: Job) -> StagingQuestion:
    rates, made, start = StateRates.of(degrees, job), [], 0
    for cost, count in runs:
        late = rates.late_gradient * cost.stepped(degrees)
        made.append(
            Run(
                start=start,
                count=count,
                cost=cost,
                repeats=False,
                traffic=state_traffic(cost, degrees, job.precision, CLUSTER),
                optimizer_s=1e-4,
                state_bytes=state_bytes(cost, degrees, rates),
                late_bytes=late,
                early_bytes=cost.parameters * rates.copy if late else 0.0,
            )
        )
        start += count
    return StagingQuestion(
        runs=tuple(made),
        stages=degrees.pp,
        micro_batches=degrees.num_micro_batches,
        send_s=0.0 if degrees.pp == 1 else 1e-4,
        sent_bytes=1e5,
        overlap=0.5,
        rates=rates,
        limit_bytes=1e12,
        reserve_bytes=2e9,
        recompute=NONE,
    )


def needed_bytes(units: list[UnitCost], ends: tuple[int, ...], degrees: Degrees, job: Job) -> float:
    """What the worst stage of one cut takes, as a plan's price has it."""
    totals = []
    for s, (start, stop) in enumerate(itertools.pairwise(ends)):
        held = units[start:stop]
        load = StageLoad(held, [unit.keep(NONE) for unit in held], 0.0 if s + 1 == degrees.pp else 1e5)
        kept = in_flight(s, degrees.pp, degrees.num_micro_batches) * load.kept_bytes
        totals.append(rank_memory([load], kept, degrees, job, CLUSTER.device).total)
    return max(totals)


@settings(max_examples=60, deadline=None)
@given(chains())
def test_a_chain_is_cut_if_memory_just_allows_it(
    case: tuple[list[tuple[UnitCost, int]], Degrees, Job],
) -> None:
    """The program and the bound agree with the prices of all cuts on the least memory in which one fits."""
    runs, degrees, job = case
    question = question_of(runs, degrees, job)
    units = [cost for cost, count in runs for _ in range(count)]
    inner = itertools.combinations(range(1, len(units)), degrees.pp - 1)
    least = min(needed_bytes(units, (0, *cuts, len(units)), degrees, job) for cuts in inner)
    enough, little = (replace(question, limit_bytes=least * share) for share in (1 + 1e-5, 1 - 1e-3))
    found = solve_staging(enough)
    assert found is not None
    ends = (0, *(stage.stop for stage in found.stages))
    assert needed_bytes(units, ends, degrees, job) <= enough.limit_bytes
    assert solve_staging(little) is None
    assert staging_bound_s(enough) <= found.bound_s * (1 + 1e-6)


@given(st.lists(costs(), min_size=1, max_size=6), st.integers(1, 3))
def test_the_largest_of_all_ranges_at_once(units: list[UnitCost], zero: int) -> None:
    rates = StateRates.of(Degrees(2, 1, 4, 1, 1, zero, 1, 4), Job(global_batch=16, tokens_per_sample=1024))
    table = largest_between(units, rates)
    for a, b in itertools.combinations(range(len(units) + 1), 2):
        assert table[b, a] == pytest.approx(largest_bytes(units[a:b], rates))
        assert table[a, b] == 0
