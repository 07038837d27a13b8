"""Stages found from stage to stage are those that the integer program finds."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_search_stages import scaled, spaces

from autoplan.cost.degrees import Degrees
from autoplan.cost.times import Times
from autoplan.plan import Precision, Schedule
from autoplan.search import staging
from autoplan.search.pins import Pins
from autoplan.search.run import Run
from autoplan.search.space import Space
from autoplan.search.stages import Place, StagingQuestion, solve_program

GAP = 1e-4  # of both


def waiting(run: Run, factor: float) -> Run:
    """The same with ``factor`` times as many seconds."""
    t = run.cost.times
    times = Times(*(factor * s for s in (t.forward_s, t.backward_s, t.forward_comm_s, t.backward_comm_s)))
    return replace(run, cost=replace(run.cost, times=times))


@st.composite
def questions(draw: st.DrawFn) -> StagingQuestion:
    """Chains of equal and unequal units, on stages alike or not."""
    searched = spaces().filter(lambda case: case[1].pp > 1 and case[1].schedule is Schedule.ONE_F_ONE_B)
    case: tuple[Space, Degrees] = draw(searched)
    space, degrees = case
    choice = draw(st.sampled_from(space.choices(degrees)))
    question = space._question(degrees, choice.costs_on, choice.sent_bytes)
    first, equal, last = question.runs
    chain = [first]
    pieces = st.tuples(st.integers(1, 5), st.sampled_from([1.0, 0.45, 1.3, 2.4]))
    for count, factor in draw(st.lists(pieces, min_size=1, max_size=3)):
        chain.append(scaled(equal, factor, chain[-1].start + chain[-1].count, count))
        if factor == 1.0:
            chain[-1] = replace(chain[-1], cost=equal.cost)
    chain.append(replace(last, start=chain[-1].start + chain[-1].count))
    question = replace(question, runs=tuple(chain))
    if draw(st.booleans()):
        fast = question.at(0)
        slow = replace(
            fast,
            runs=tuple(waiting(run, draw(st.sampled_from([1.1, 1.9]))) for run in chain),
            limit_bytes=fast.limit_bytes * draw(st.sampled_from([0.8, 1.0])),
        )
        of_stage: list[Place] = [draw(st.sampled_from([fast, slow])) for _ in range(question.stages)]
        question = replace(question, places=tuple(of_stage))
    return question


@settings(max_examples=50, deadline=None)
@given(questions(), st.integers(1, 3))
def test_stages_are_those_of_the_integer_program(question: StagingQuestion, answers: int) -> None:
    """And so are the next best, when those that were found are no answer any more."""
    for _ in range(answers):
        found, expected = staging._closest(question), solve_program(question)
        assert (found is None) == (expected is None)
        if found is None or expected is None:
            return
        assert found.bound_s == pytest.approx(expected.bound_s, rel=2.1 * GAP)
        assert found.stages not in question.excluded
        # whatever either of them excludes is as near to its bound as it says
        question = replace(question, excluded=(*question.excluded, found.stages))
        again = solve_program(question)
        assert again is None or again.bound_s >= found.bound_s * (1 - GAP)


def test_the_program_is_asked_where_there_is_too_much_to_look_at(monkeypatch: pytest.MonkeyPatch) -> None:
    from test_search_stages import make_space

    space = make_space(6, 5e9, False, Precision.BF16, Pins(pp=4, tp=1, micro_batch=1, schedule="1f1b"))
    degrees = space.candidates[0]
    choice = space.choices(degrees)[0]
    question = space._question(degrees, choice.costs_on, choice.sent_bytes)
    alone = staging.solve_staging(question)
    for most in ("_LABELS", "_ARCS"):
        with monkeypatch.context() as patch:
            patch.setattr(staging, most, 0)
            assert staging.solve_staging(question) == solve_program(question)
    assert alone is not None and alone != solve_program(question)
