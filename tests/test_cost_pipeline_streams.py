"""Two streams on one device: what is hidden, what is exposed, what is slowed."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from autoplan.cost.pipeline import LayerSeconds, StreamOp, StreamRun, pass_ops, run_streams, together_s
from autoplan.errors import InputError

SECONDS = st.integers(0, 40).map(lambda n: n / 8)
SLOWDOWNS = (
    st.tuples(st.integers(0, 8), st.integers(0, 8))
    .filter(lambda u: sum(u) <= 8)
    .map(lambda u: (u[0] / 8, u[1] / 8))
)


@st.composite
def ops(draw: st.DrawFn) -> list[StreamOp]:
    made: list[StreamOp] = []
    for place in range(draw(st.integers(1, 10))):
        beside = draw(st.booleans())
        after = draw(st.sets(st.integers(0, place - 1), max_size=2)) if place else set()
        waited = not beside and draw(st.booleans())
        made.append(StreamOp(f"op {place}", draw(SECONDS), beside, waited, tuple(sorted(after))))
    return made


def shared(run: StreamRun, place: int) -> float:
    """Seconds of an op during which the other stream ran."""
    op, start, end = run.ops[place], run.start_s[place], run.end_s[place]
    return sum(
        max(0.0, min(end, e) - max(start, s))
        for other, s, e in zip(run.ops, run.start_s, run.end_s, strict=True)
        if other.beside != op.beside
    )


@given(ops(), SLOWDOWNS)
def test_every_op_runs_in_its_order_and_does_its_work(
    ops: list[StreamOp], slowdowns: tuple[float, float]
) -> None:
    run = run_streams(ops, *slowdowns)
    free = [0.0, 0.0]
    for place, op in enumerate(ops):
        start, end = run.start_s[place], run.end_s[place]
        assert start == max([free[op.beside], *(run.end_s[other] for other in op.after)])
        assert end - start - slowdowns[op.beside] * shared(run, place) == pytest.approx(op.seconds, abs=1e-9)
        free[op.beside] = end
    assert run.total_s == max(free)
    assert run.compute_s + run.slowed_s + run.exposed_s == pytest.approx(run.total_s)
    assert run.slowed_s >= -1e-9
    assert run.exposed_s >= -1e-9


@given(ops(), SLOWDOWNS, st.data())
def test_nothing_longer_makes_the_end_earlier(
    ops: list[StreamOp], slowdowns: tuple[float, float], data: st.DataObject
) -> None:
    place = data.draw(st.integers(0, len(ops) - 1))
    longer = list(ops)
    longer[place] = replace(ops[place], seconds=ops[place].seconds + data.draw(SECONDS))
    assert run_streams(longer, *slowdowns).total_s >= run_streams(ops, *slowdowns).total_s - 1e-9


@given(SECONDS, SECONDS, SLOWDOWNS)
def test_one_op_on_each_stream(compute: float, beside: float, slowdowns: tuple[float, float]) -> None:
    """Both run until one is done, each slowed; the rest runs alone."""
    u_c, u_n = slowdowns
    run = run_streams([StreamOp("c", compute), StreamOp("n", beside, True)], u_c, u_n)
    if compute * (1 - u_n) <= beside * (1 - u_c):  # compute is done first, or both stand still
        both = compute / (1 - u_c) if u_c < 1 else beside
        alone = beside - both * (1 - u_n) if u_c < 1 else compute
    else:
        both = beside / (1 - u_n)
        alone = compute - both * (1 - u_c)
    assert run.total_s == pytest.approx(both + alone)
    assert together_s(compute, beside, u_c, u_n) == pytest.approx(run.total_s)


def test_many_pairs_of_ops_at_once() -> None:
    both = together_s([[1.0, 2.0]], [[4.0], [1.0]], 0.25, 0.5)
    assert both == pytest.approx(
        np.array([[1 + 4 - 0.25 / 0.75, 2 + 4 - 0.5 / 0.75], [2 - 0.25 / 0.75, 3 - 0.5]])
    )


def test_fsdp_gathers_ahead_and_holds_two_layers() -> None:
    layers = [
        LayerSeconds(4.0, gather_s=1.0),
        LayerSeconds(4.0, gather_s=6.0),
        LayerSeconds(4.0, gather_s=1.0),
    ]
    run = run_streams(pass_ops(layers))
    at = {op.name: (s, e) for op, s, e in zip(run.ops, run.start_s, run.end_s, strict=True)}
    assert at["gather 0"] == (0, 1)
    assert at["layer 0"] == (1, 5)
    assert at["gather 1"] == (1, 7)
    assert at["layer 1"] == (7, 11)
    assert at["gather 2"] == (7, 8)  # once layer 0 has ended and its parameters are dropped
    assert at["layer 2"] == (11, 15)
    assert (run.compute_s, run.exposed_s, run.slowed_s) == (12, 3, 0)


def test_one_gathered_layer_at_a_time_hides_nothing() -> None:
    run = run_streams(pass_ops([LayerSeconds(4.0, gather_s=1.0)] * 3, gathered_at_once=1))
    assert run.total_s == 15


def test_scatters_run_beside_the_layers_that_follow() -> None:
    layers = [LayerSeconds(2.0, waited_s=0.5, scatter_s=3.0)] * 3
    run = run_streams(pass_ops(layers))
    assert run.total_s == 2.5 + 3 * 3  # the communication stream is the longer one
    assert run.exposed_s == 11.5 - 6
    slowed = run_streams(pass_ops(layers), 0.5, 0.0)
    assert slowed.total_s >= run.total_s
    assert slowed.slowed_s > 0


def test_wrong_input_is_refused() -> None:
    with pytest.raises(InputError, match="together at most 1"):
        run_streams([StreamOp("c", 1.0)], 0.7, 0.6)
    with pytest.raises(InputError, match=r"c: got -1\.0"):
        run_streams([StreamOp("c", -1.0)])
    with pytest.raises(InputError, match="places of earlier ops"):
        run_streams([StreamOp("c", 1.0, after=(0,))])
