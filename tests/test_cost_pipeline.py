"""The simulator of pipeline schedules against closed forms, and against a simulation written another way."""

from __future__ import annotations

from dataclasses import fields, replace

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from autoplan.cost.pipeline import (
    SCHEDULES,
    Order,
    Pass,
    Simulation,
    StageSeconds,
    compiled,
    memory_curves,
    peak_activation_bytes,
    peak_in_flight,
    pipeline_order,
    simulate,
    step_times_s,
)
from autoplan.cost.pipeline.activations import _states, settled_micro_batches
from autoplan.cost.pipeline.closed_forms import bubble_s, in_flight
from autoplan.errors import InputError
from autoplan.plan.schedule import Schedule, ranks_of_stages

SECONDS = st.floats(0.0, 10.0).map(lambda s: round(s, 3))
POSITIVE = st.floats(0.01, 10.0).map(lambda s: round(s, 3))
QUARTERS = st.integers(1, 12).map(lambda n: n / 4)

Shape = tuple[str, int, int, int]


@st.composite
def shapes(draw: st.DrawFn, most_pp: int = 6, most_m: int = 16) -> Shape:
    """Schedule, pp, vpp, micro-batches."""
    schedule = draw(st.sampled_from(sorted(SCHEDULES)))
    rule = SCHEDULES[schedule]
    pp = draw(st.integers(1, most_pp))
    vpp = rule.vpp or draw(st.integers(1, 3))
    least = max(1, rule.least_per_rank * pp)
    return schedule, pp, vpp, draw(st.integers(least, max(least, most_m)))


def times(draw: st.DrawFn, shape: Shape, seconds: st.SearchStrategy[float] = SECONDS) -> StageSeconds:
    _, pp, vpp, _ = shape

    def some(count: int) -> list[float]:
        return draw(st.lists(seconds, min_size=count, max_size=count))

    chunks = pp * vpp
    backward = some(chunks)
    return StageSeconds(
        forward_s=some(chunks),
        backward_s=backward,
        weight_s=[b * draw(st.sampled_from([0.0, 0.25, 0.5, 1.0])) for b in backward],
        send_s=some(chunks - 1),
        send_back_s=some(chunks - 1),
        head_s=some(pp),
        tail_s=some(pp),
        reduce_s=some(chunks),
    )


@st.composite
def plans(draw: st.DrawFn, seconds: st.SearchStrategy[float] = SECONDS) -> tuple[Shape, StageSeconds]:
    shape = draw(shapes())
    return shape, times(draw, shape, seconds)


# --- closed forms


@given(shapes(most_pp=9, most_m=40), QUARTERS, QUARTERS, QUARTERS)
def test_bubbles_are_those_on_paper(shape: Shape, f: float, i: float, w: float) -> None:
    schedule, pp, vpp, m = shape
    if schedule == "dualpipe-v":
        i, w = f, min(w, f)
    expected = bubble_s(schedule, pp, vpp, m, f, i + w, w)
    assume(expected is not None)
    chunks = pp * vpp
    run = simulate(
        compiled(*shape),
        StageSeconds(
            forward_s=[f] * chunks,
            backward_s=[i + w] * chunks,
            weight_s=[w] * chunks,
            send_s=[0.0] * (chunks - 1),
        ),
    )
    assert run.step_s == m * vpp * (f + i + w) + expected  # quarters add up without rounding
    assert run.parts.bubble_s.tolist() == [expected] * pp


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_every_schedule_has_a_bubble_on_paper(schedule: str) -> None:
    vpp = SCHEDULES[schedule].vpp or 2
    assert bubble_s(schedule, 4, vpp, 16, 1.0, 2.0, 1.0) is not None


@given(shapes(most_pp=9, most_m=40))
def test_in_flight_is_as_on_paper(shape: Shape) -> None:
    assert peak_in_flight(*shape).tolist() == [in_flight(*shape, rank) for rank in range(shape[1])]


@pytest.mark.parametrize(
    ("schedule", "pp", "vpp"),
    [
        ("1f1b", 7, 1), ("interleaved", 4, 3), ("interleaved", 8, 2), ("zb-h1", 5, 2), ("zb-h1", 8, 1),
        ("zbv", 6, 2), ("dualpipe-v", 5, 2),
    ],
)  # fmt: skip
def test_what_is_kept_settles_after_a_few_micro_batches(schedule: str, pp: int, vpp: int) -> None:
    """The moments of few micro-batches are those of many, on each rank."""

    def moments(micro_batches: int, rank: int) -> set[tuple[int, ...]]:
        actions = SCHEDULES[schedule].actions(pp, vpp, micro_batches, rank)
        chunks = [c for c, home in enumerate(ranks_of_stages(Schedule(schedule), pp, vpp)) if home == rank]
        return {tuple(row) for row in _states(tuple(actions), tuple(chunks)).tolist()}

    shorter = 0
    for m in (*range(2 * pp, 5 * pp + 2), 9 * pp, 12 * pp + 5):
        settled = settled_micro_batches(schedule, pp, m)
        shorter += settled < m
        assert settled <= 5 * pp
        for rank in {0, 1, pp // 2, pp - 1} if settled < m else ():
            assert moments(m, rank) == moments(settled, rank)
    assert shorter > 3


def test_in_flight_of_interleaved_is_korthikantis() -> None:
    for p, v in ((4, 2), (8, 3), (16, 4)):
        assert peak_in_flight("interleaved", p, v, 4 * p)[0] == pytest.approx(p * v * (1 + (p - 1) / (p * v)))


# --- against a simulation written another way


def by_dependencies(order: Order, s: StageSeconds) -> float:
    """Run whatever is next on a rank and has its input, until all is done; sends take turns on their link."""
    ends: dict[tuple[int, str, int], float] = {}  # when what a pass gives is there for its neighbour
    links: dict[tuple[int, int], float] = {}
    clock, at = list(s.head_s), [0] * order.pp  # type: ignore[arg-type]
    left = dict.fromkeys(range(order.chunks), order.micro_batches)
    reduced = [0.0] * order.pp
    last = order.chunks - 1
    while any(k < len(actions) for k, actions in zip(at, order.ranks, strict=True)):
        for rank, actions in enumerate(order.ranks):
            pending: list[tuple[int, str, int]] = []
            while at[rank] < len(actions):
                chunk, kind, i, with_next = actions[at[rank]]
                forward, weight = kind is Pass.FORWARD, kind is Pass.WEIGHT
                source = (chunk - 1, "F", i) if forward else (chunk + 1, "B", i)
                needed = not weight and 0 <= source[0] <= last
                if needed and source not in ends:
                    break
                whole, part = s.backward_s[chunk], s.weight_s[chunk]  # type: ignore[index]
                took = {"F": s.forward_s[chunk], "B": whole, "I": whole - part, "W": part}[kind]  # type: ignore[index]
                clock[rank] = max(clock[rank], ends[source] if needed else 0.0) + took
                at[rank] += 1
                if not weight:
                    pending.append((chunk, "F" if forward else "B", i))
                if kind in (Pass.BACKWARD, Pass.WEIGHT):
                    left[chunk] -= 1
                    if left[chunk] == 0:
                        reduced[rank] = max(reduced[rank], clock[rank]) + s.reduce_s[chunk]  # type: ignore[index]
                if with_next:
                    continue
                for made, way, j in pending:
                    to = made + 1 if way == "F" else made - 1
                    ends[made, way, j] = clock[rank]
                    if 0 <= to <= last and order.rank_of[to] != rank:
                        link = (rank, order.rank_of[to])
                        cost = s.send_s[made] if way == "F" else s.send_back_s[made - 1]  # type: ignore[index]
                        links[link] = ends[made, way, j] = max(links.get(link, 0.0), clock[rank]) + cost
                pending = []
            assert not pending, "the two of a pair are always ready together"
    return max(max(c, r) + t for c, r, t in zip(clock, reduced, s.tail_s, strict=True))  # type: ignore[arg-type]


@given(plans())
def test_equals_a_simulation_by_dependencies(plan: tuple[Shape, StageSeconds]) -> None:
    shape, seconds = plan
    expected = by_dependencies(pipeline_order(*shape), seconds)
    assert simulate(compiled(*shape), seconds).step_s == pytest.approx(expected)


def test_head_tail_and_reduce_count() -> None:
    seconds = StageSeconds(
        forward_s=[1.0, 1.0],
        backward_s=[2.0, 2.0],
        send_s=[0.5],
        head_s=[3.0, 0.0],
        tail_s=[1.0, 9.0],
        reduce_s=[0.0, 4.0],
    )
    run = simulate(compiled("1f1b", 2, 1, 1), seconds)
    assert run.ends_s.tolist() == [3 + 1 + 0.5 + 1 + 2 + 0.5 + 2, 3 + 1 + 0.5 + 1 + 2]
    assert run.step_s == 7.5 + 4 + 9
    assert run.busy_s.tolist() == [3 + 3 + 1, 3 + 9]
    assert run.parts.reduce_s.tolist() == [0.0, 4.0]


def test_a_slow_link_carries_one_message_after_another() -> None:
    run = simulate(
        compiled("gpipe", 2, 1, 4),
        StageSeconds(forward_s=[1.0, 1.0], backward_s=[1.0, 1.0], send_s=[10.0], send_back_s=[0.0]),
    )
    assert run.step_s == 1 + 4 * 10 + 1 + 4 + 1
    assert run.parts.send_s[1] == 40 - 3


# --- what holds for every plan


@given(plans(), st.booleans())
def test_the_parts_of_every_rank_add_up_to_the_step(plan: tuple[Shape, StageSeconds], exposed: bool) -> None:
    shape, seconds = plan
    seconds = replace(seconds, forward_comm_s=np.asarray(seconds.forward_s) / 3)
    run = simulate(compiled(*shape, exposed), seconds)
    parts = [getattr(run.parts, field.name) for field in fields(run.parts)]
    assert np.sum(parts, axis=0) == pytest.approx(np.full(shape[1], run.step_s))
    assert min(map(np.min, parts)) > -1e-9
    own = np.asarray(seconds.forward_s) + np.asarray(seconds.backward_s)
    chunks_of = run.program.order.chunks_of
    worked = [shape[3] * own[list(chunks)].sum() for chunks in chunks_of]
    assert run.parts.compute_s + run.parts.comm_s == pytest.approx(np.array(worked))


@given(plans(), st.booleans())
def test_many_plans_at_once_are_priced_as_each_alone(plan: tuple[Shape, StageSeconds], exposed: bool) -> None:
    shape, seconds = plan
    program = compiled(*shape, exposed)
    scales = np.array([1.0, 0.5, 3.0])
    many = replace(
        seconds, forward_s=np.outer(seconds.forward_s, scales), tail_s=np.outer(seconds.tail_s, scales)
    )  # type: ignore[arg-type]
    each = [
        simulate(
            program,
            replace(
                seconds,
                forward_s=np.asarray(seconds.forward_s) * scale,
                tail_s=np.asarray(seconds.tail_s) * scale,
            ),
        ).step_s
        for scale in scales
    ]
    assert step_times_s(program, many).tolist() == pytest.approx(each, rel=1e-12)


def test_more_plans_than_one_block_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    program = compiled("1f1b", 2, 1, 3)
    seconds = StageSeconds(forward_s=np.ones((2, 7)), backward_s=np.arange(14.0).reshape(2, 7), send_s=[0.0])
    whole = step_times_s(program, seconds)
    monkeypatch.setattr("autoplan.cost.pipeline.simulation._BLOCK_BYTES", 8 * 3 * len(program.cost))
    assert step_times_s(program, seconds).tolist() == whole.tolist()


@given(plans(), st.booleans(), st.data())
def test_nothing_longer_makes_a_step_shorter(
    plan: tuple[Shape, StageSeconds], exposed: bool, data: st.DataObject
) -> None:
    shape, seconds = plan
    name = data.draw(
        st.sampled_from(["forward_s", "backward_s", "weight_s", "send_s", "send_back_s", "reduce_s"])
    )
    given_s = np.array(getattr(seconds, name))
    assume(len(given_s))
    where = data.draw(st.integers(0, len(given_s) - 1))
    more = np.zeros(len(given_s))
    more[where] = data.draw(POSITIVE)
    slower = replace(seconds, **{name: given_s + more})
    if name == "weight_s":  # longer itself, the other half as before
        slower = replace(slower, backward_s=np.asarray(seconds.backward_s) + more)
    program = compiled(*shape, exposed)
    assert simulate(program, slower).step_s >= simulate(program, seconds).step_s


@given(plans())
def test_exposed_sends_are_never_faster(plan: tuple[Shape, StageSeconds]) -> None:
    shape, seconds = plan
    overlapped, exposed = (simulate(compiled(*shape, how), seconds).step_s for how in (False, True))
    assert exposed >= overlapped * (1 - 1e-12)


# --- activations


@given(plans(POSITIVE), st.data())
def test_the_peak_is_that_of_the_curve_over_time(
    plan: tuple[Shape, StageSeconds], data: st.DataObject
) -> None:
    shape, seconds = plan
    chunks = shape[1] * shape[2]
    whole = np.array(data.draw(st.lists(st.integers(0, 1000), min_size=chunks, max_size=chunks)), dtype=float)
    half = whole * data.draw(st.sampled_from([0.0, 0.5, 1.0, 1.5]))
    run = simulate(compiled(*shape), seconds)
    curves = memory_curves(run, whole, half)
    peak = peak_activation_bytes(*shape, whole, half)
    for rank, curve in enumerate(curves):
        assert (np.diff(curve.at_s) >= 0).all()
        assert curve.kept_bytes[-1] == 0
        assert curve.kept_bytes.max() == peak[rank]
    both = peak_activation_bytes(
        *shape, np.stack([whole, 2 * whole], axis=1), np.stack([half, 2 * half], axis=1)
    )
    assert both.tolist() == np.stack([peak, 2 * peak], axis=1).tolist()


def test_all_of_a_chunk_is_kept_for_its_weight_half_unless_said() -> None:
    shape: Shape = ("zb-h1", 4, 1, 8)
    freed = peak_activation_bytes(*shape, [1.0] * 4, [0.0] * 4)
    assert peak_activation_bytes(*shape, [1.0] * 4).tolist() == [4.0, 4.0, 4.0, 4.0]
    assert freed.tolist() == peak_activation_bytes("1f1b", 4, 1, 8, [1.0] * 4).tolist()


# --- input


def test_wrong_input_is_refused() -> None:
    program = compiled("1f1b", 2, 1, 4)
    good = StageSeconds(forward_s=[1.0, 1.0], backward_s=[2.0, 2.0], send_s=[0.1])
    with pytest.raises(InputError, match="forward_s"):
        simulate(program, replace(good, forward_s=[1.0, 1.0, 1.0]))
    with pytest.raises(InputError, match="send_s"):
        simulate(program, replace(good, send_s=[-0.1]))
    with pytest.raises(InputError, match="backward_s"):
        simulate(program, replace(good, backward_s=[2.0, float("nan")]))
    with pytest.raises(InputError, match=r"weight_s.*no more than backward_s"):
        simulate(program, replace(good, weight_s=[3.0, 0.0]))
    with pytest.raises(InputError, match="step_times_s"):
        simulate(program, replace(good, forward_s=np.ones((2, 5))))
    with pytest.raises(InputError, match="tail_s"):
        step_times_s(program, replace(good, forward_s=np.ones((2, 5)), tail_s=np.ones((2, 4))))


def test_a_simulation_knows_what_ran() -> None:
    run = simulate(compiled("1f1b", 2, 1, 4), StageSeconds(forward_s=[1, 1], backward_s=[2, 2], send_s=[0]))
    assert isinstance(run, Simulation)
    assert run.program is compiled("1f1b", 2, 1, 4)
