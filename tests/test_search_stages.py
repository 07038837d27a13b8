"""Bounds never exceed prices, and the stages' program finds what brute force finds."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
from frontiers import below
from hypothesis import given, settings
from hypothesis import strategies as st
from test_cost_toys import toy_cluster, toy_graph, toy_layouts, toy_strategies

from autoplan.cost.degrees import Degrees
from autoplan.cost.pipeline.activations import peak_activation_bytes
from autoplan.cost.step import Assignment
from autoplan.cost.times import Times
from autoplan.graph.ir import ModelGraph
from autoplan.plan import Job, Precision, Schedule, validate_plan
from autoplan.plan.schedule import ranks_of_stages
from autoplan.search import staging_bound
from autoplan.search.candidates import other_shapes
from autoplan.search.even_memory import held_by_rank
from autoplan.search.graphs import Graphs
from autoplan.search.layout_choice import LayoutChoice
from autoplan.search.pins import Pins
from autoplan.search.pipeline_bound import pipeline_bound_s
from autoplan.search.run import Run
from autoplan.search.space import Space
from autoplan.search.splits import Splits
from autoplan.search.staging import solve_staging
from autoplan.search.staging_bound import staging_bound_s

GRAPHS: dict[tuple[int, int, bool], ModelGraph] = {}


def graph_for(micro_batch: int, layers: int, tied: bool) -> ModelGraph:
    key = micro_batch, layers, tied
    if key not in GRAPHS:
        GRAPHS[key] = toy_graph(micro_batch, layers, seq=2048, hidden=2048, tied=tied, vocabulary=32768)
    return GRAPHS[key]


def make_space(
    layers: int, memory: float, tied: bool, precision: Precision, pins: Pins, batch: int = 16
) -> Space:
    cluster = toy_cluster(nodes=2, node_size=4, memory=memory)
    job = Job(global_batch=batch, tokens_per_sample=2048, precision=precision)
    return Space(
        Graphs(lambda b: graph_for(b, layers, tied)), job, cluster, pins, toy_strategies, toy_layouts
    )


@st.composite
def spaces(draw: st.DrawFn) -> tuple[Space, Degrees]:
    recompute = draw(st.sampled_from([None, None, "full", "none"]))
    space = make_space(
        draw(st.integers(4, 9)),
        draw(st.sampled_from([3.5e9, 5e9, 8e9, 60e9])),
        draw(st.booleans()),
        draw(st.sampled_from([Precision.BF16, Precision.FP32])),
        Pins(recompute=recompute),
    )
    return space, draw(st.sampled_from(space.candidates))


def stagings(space: Space, degrees: Degrees, choice: LayoutChoice) -> list[list[Assignment]]:
    """Every cut of the chain, each stage with every number of its first layers made again in one of the ways."""
    known = [set(choice.costs[space.chain.units[unit].kind].keeps) for unit in space.repeats]
    ways = set.intersection(*known)
    ways = ("full", *sorted(ways)) if space.pins.recompute is None else ("full",)
    units = len(space.chain.units)
    found = []
    for cuts in itertools.combinations(range(1, units), degrees.pp - 1):
        ranges = list(itertools.pairwise((0, *cuts, units)))
        options = []
        for start, stop in ranges:
            layers = [i for i in range(start, stop) if i in space.repeats]
            counts = {None: range(1, len(layers) + 1), "full": (len(layers),), "none": ()}[
                space.pins.recompute
            ]
            again = [dict.fromkeys(layers[:n], way) for n in counts for way in ways]
            again += [] if space.pins.recompute == "full" else [{}]
            options.append([Assignment.of(start, stop, units_again) for units_again in again])
        found += [list(stages) for stages in itertools.product(*options)]
    return found


def _again(stage: Assignment) -> dict[int, str]:
    return {unit: stage.way(unit) for unit in (*stage.recompute, *stage.policies)}


def scaled(run: Run, factor: float, start: int, count: int) -> Run:
    """``count`` units that take and keep ``factor`` times as much as those of ``run``."""
    t = run.cost.times
    cost = replace(
        run.cost,
        times=Times(factor * t.forward_s, factor * t.backward_s, t.forward_comm_s, t.backward_comm_s),
        saved_bytes=factor * run.cost.saved_bytes,
        keeps={},
    )
    return replace(run, start=start, count=count, cost=cost, state_bytes=run.state_bytes / factor)


@settings(max_examples=40, deadline=None)
@given(spaces(), st.lists(st.tuples(st.integers(1, 4), st.floats(0.4, 2.5)), min_size=1, max_size=3))
def test_a_quick_bound_holds_for_any_chain(
    case: tuple[Space, Degrees], pieces: list[tuple[int, float]]
) -> None:
    """Runs of unequal units: no program's bound is below the quick one, and what that calls impossible is. For equal
    units, the quick one is no worse than what is made for them."""
    space, degrees = case
    choice = space.choices(degrees)[0]
    question = space._question(degrees, choice.costs_on, choice.sent_bytes)
    assert staging_bound._Chain.of(question.runs) is not None
    special = staging_bound_s(question)
    for runs in ([question.runs[1]], pieces):
        first, equal, last = question.runs
        chain = [first]
        for piece in runs:
            start = chain[-1].start + chain[-1].count
            run = piece if isinstance(piece, Run) else scaled(equal, piece[1], start, piece[0])
            chain.append(run)
        chain.append(replace(last, start=chain[-1].start + chain[-1].count))
        asked = replace(question, runs=tuple(chain))
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(staging_bound._Chain, "of", lambda runs: None)
            quick = staging_bound_s(asked)
        if runs is not pieces:
            assert quick >= special * (1 - 1e-3)
        exact = solve_staging(asked) if sum(run.count for run in chain) >= degrees.pp else None
        if exact is not None:
            assert quick <= exact.bound_s * (1 + 1e-6)


@pytest.mark.parametrize("recompute", ["none", "full"])
def test_stagings_end_where_there_is_but_one(recompute: str) -> None:
    space = make_space(4, 60e9, False, Precision.BF16, Pins(pp=1, recompute=recompute))
    degrees = space.candidates[0]
    choice = space.choices(degrees)[0]
    staging = space.solve(degrees, choice)
    assert staging is not None
    assert space.solve(degrees, choice, (staging.stages,)) is None


@settings(max_examples=60, deadline=None)
@given(spaces())
def test_bounds_only_grow_and_never_pass_the_price(case: tuple[Space, Degrees]) -> None:
    space, degrees = case
    rough, chain = space.first_bound_s(degrees), space.optimistic_bound_s(degrees)
    joined = max(space.joined_bounds_s(degrees), default=0.0)
    mesh = space.mesh_bound_s(degrees)
    optimistic = space._optimists[0].costs(degrees.micro_batch, degrees.tp)
    for choice in space.choices(degrees):
        for kind, cost in choice.costs.items():
            for kept, seconds in cost.least_again:
                assert below(optimistic[kind].least_again, kept) <= seconds + 1e-12
        layout = space.choice_bound_s(degrees, choice)
        staging = space.solve(degrees, choice)
        if staging is None:
            continue
        estimate = space.candidate(degrees, choice, staging.stages).estimate
        assert estimate.fits
        slack = 1 + 2e-4  # the staging program stops at a gap of 1e-4
        assert rough <= layout * slack and chain <= layout * slack
        assert max(layout, joined, mesh) <= staging.bound_s * slack
        assert staging.bound_s <= estimate.step_time_s * slack


@settings(max_examples=150, deadline=None)
@given(spaces(), st.data())
def test_bounds_of_other_schedules_only_grow_and_end_in_the_price(
    case: tuple[Space, Degrees], data: st.DataObject
) -> None:
    space, degrees = case
    variants = space.variants(degrees)
    if not variants:
        return
    variant = data.draw(st.sampled_from(variants))
    any_schedule = space.first_bound_s(degrees, any_schedule=True)
    rough, chain = space.first_bound_s(variant), space.optimistic_bound_s(variant)
    slack = 1 + 1e-9
    assert any_schedule <= rough * slack
    for choice in space.choices(variant):
        layout = space.choice_bound_s(variant, choice)
        assert space.choice_bound_s(variant, choice, closely=False) <= layout * slack
        staging = space.solve(variant, choice)
        assert (staging is not None) == (layout < math.inf)
        if staging is None:
            continue
        candidate = space.candidate(variant, choice, staging.stages)
        validate_plan(candidate.plan)
        assert candidate.estimate.fits
        assert max(any_schedule, rough, chain, layout) <= staging.bound_s * slack
        assert staging.bound_s == candidate.estimate.step_time_s
        known = space.work_bound_s(variant), space.first_bound_s(variant), space.optimistic_bound_s(variant)
        assert max(known) <= staging.bound_s * slack


@settings(max_examples=20, deadline=None)
@given(spaces(), st.data())
def test_bounds_of_all_splits_are_those_of_each(case: tuple[Space, Degrees], data: st.DataObject) -> None:
    """What is worked out at once for all that differ in what data ranks share is what each would be told alone."""
    space, degrees = case
    variants = space.variants(degrees)
    if not variants:
        return
    variant = data.draw(st.sampled_from(variants))
    splits = space._splits[degrees.pp, degrees.micro_batch, degrees.cp, degrees.tp, degrees.ep]
    place = splits.members.index(degrees)
    for choice in space.choices(variant):
        asked = choice.costs, choice.sent_bytes
        ask = space._scheduled
        for ranks in (1, variant.pp):
            (alone,) = ask.close_bounds_s(variant, Splits((variant,)), *asked, ranks)
            assert ask.close_bounds_s(variant, splits, *asked, ranks)[place] == pytest.approx(
                alone, rel=1e-12
            )
        fitting = ask.fitting(variant, *asked)
        assert min((bound_s for bound_s, _ in fitting), default=math.inf) == pytest.approx(alone, rel=1e-12)


@given(
    st.sampled_from([("interleaved", 3), ("zb-h1", 1), ("zbv", 2), ("dualpipe-v", 2), ("gpipe", 1)]),
    st.integers(2, 5),
    st.integers(0, 9),
    st.data(),
)
def test_the_fullest_moments_are_kept(
    schedule: tuple[str, int], pp: int, more: int, data: st.DataObject
) -> None:
    """Moments that are left out are never a rank's fullest, whatever its stages keep."""
    name, vpp = schedule
    m = 2 * pp + more
    nbytes = st.lists(st.floats(0, 10), min_size=pp * vpp, max_size=pp * vpp)
    whole, half = np.array(data.draw(nbytes)), np.array(data.draw(nbytes))
    held = held_by_rank(Schedule(name), pp, vpp, m, pp)
    ranks = np.array(ranks_of_stages(Schedule(name), pp, vpp))
    found = [
        (held[rank] @ np.concatenate((whole[ranks == rank], half[ranks == rank]))).max() for rank in range(pp)
    ]
    assert found == pytest.approx(peak_activation_bytes(name, pp, vpp, m, whole, half))


@settings(max_examples=30, deadline=None)
@given(spaces(), st.data())
def test_a_rank_recomputes_no_more_than_it_must(case: tuple[Space, Degrees], data: st.DataObject) -> None:
    """One unit less on any rank that recomputes, and it no longer fits."""
    space, degrees = case
    variants = [v for v in space.variants(degrees) if space.pins.recompute is None]
    if not variants:
        return
    variant = data.draw(st.sampled_from(variants))
    choice = space.choices(variant)[0]
    staging = space.solve(variant, choice)
    if staging is None:
        return
    ranges = [(stage.start, stage.stop) for stage in staging.stages]
    assert ranges[0][0] == 0 and ranges[-1][1] == len(space.chain.units)
    assert all(a[1] == b[0] and a[0] < a[1] for a, b in itertools.pairwise(ranges))
    ranks = variant.stage_ranks
    for rank in range(variant.pp):
        held = [_again(stage) for stage, home in zip(staging.stages, ranks, strict=True) if home == rank]
        if not any(held):
            continue
        # the last in turn: of the stages that recompute the most, the last
        most = max(map(len, held))
        place = max(
            i for i, stage in enumerate(staging.stages) if ranks[i] == rank and len(_again(stage)) == most
        )
        stage = staging.stages[place]
        left = _again(stage)
        del left[max(left)]
        fewer = Assignment.of(stage.start, stage.stop, left)
        stages = [*staging.stages[:place], fewer, *staging.stages[place + 1 :]]
        assert not space.candidate(variant, choice, stages).estimate.fits


@settings(max_examples=12, deadline=None)
@given(spaces())
def test_no_staging_is_missed(case: tuple[Space, Degrees]) -> None:
    """Of 1F1B; stages of other schedules are cut evenly."""
    space, degrees = case
    if degrees.schedule is not Schedule.ONE_F_ONE_B:
        return
    if math.comb(len(space.chain.units) - 1, degrees.pp - 1) * 6**degrees.pp > 3000:
        return
    for choice in space.choices(degrees):
        staging = space.solve(degrees, choice)
        prices = [space.candidate(degrees, choice, s).estimate for s in stagings(space, degrees, choice)]
        fitting = [e.step_time_s for e in prices if e.fits]
        assert (staging is not None) == bool(fitting)
        if staging is not None:
            price = space.candidate(degrees, choice, staging.stages).estimate.step_time_s
            assert staging.bound_s <= min(fitting) * (1 + 2e-4)
            assert price <= min(fitting) * 1.03


@given(st.integers(1, 16), st.integers(1, 64), st.floats(0.1, 10), st.floats(0.1, 10), st.floats(0, 5))
def test_closed_form_bound_is_below_equal_stages(p: int, m: int, f: float, b: float, tail: float) -> None:
    bound = pipeline_bound_s(f, b, tail, p, m)
    assert bound <= ((m + p - 1) * (f + b) + tail) / p * (1 + 1e-9)
    assert bound >= m * (f + b) / p * (1 - 1e-9)


def test_a_chain_of_several_kinds_is_cut_in_order() -> None:
    graph = toy_graph(1, 6)
    kinds = {**graph.kinds, "other": graph.kinds["layer"]}
    units = tuple(
        type(u)(
            u.name,
            "other" if u.name in ("layers.3", "layers.4", "layers.5") else u.kind,
            u.path,
            u.arguments,
            u.results,
        )
        for u in graph.units
    )
    mixed = type(graph)("mixed", "", 1, kinds, units, graph.free, graph.loss, None, (), {})
    job, cluster = Job(global_batch=8), toy_cluster(memory=60e9)
    space = Space(
        Graphs(lambda _: mixed), job, cluster, Pins(pp=4, micro_batch=1), toy_strategies, toy_layouts
    )
    (degrees,) = space.candidates
    (choice,) = space.choices(degrees)
    staging = space.solve(degrees, choice)
    assert staging is not None
    ranges = [(s.start, s.stop) for s in staging.stages]
    assert ranges[0][0] == 0 and ranges[-1][1] == 8
    assert all(a[1] == b[0] and a[0] < a[1] for a, b in itertools.pairwise(ranges))
    price = space.candidate(degrees, choice, staging.stages).estimate.step_time_s
    assert staging.bound_s <= price * (1 + 1e-4)
    best = min(
        space.candidate(degrees, choice, s).estimate.step_time_s
        for s in stagings(space, degrees, choice)
        if not any(_again(x) for x in s)
    )
    assert price == pytest.approx(best, rel=0.03)


@pytest.mark.parametrize("units", [12, 13, 107])
@pytest.mark.parametrize("pp", [2, 5, 35])
def test_no_number_of_stages_a_rank_needs_a_pin(units: int, pp: int) -> None:
    free = other_shapes(pp, 70, units, None, None)
    for vpp in range(1, units // pp + 2):
        pinned = other_shapes(pp, 70, units, Schedule.INTERLEAVED, vpp)
        assert set(pinned) <= set(free)
        assert bool(pinned) == (pp * vpp <= units)
