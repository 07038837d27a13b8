"""The journal of a measurement: killed at any moment, it loses at most one; malformed, it says so."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autoplan.errors import AutoplanError, ProfileError
from autoplan.hardware.measure_figure import LEAST_SPREAD, figure_of
from autoplan.hardware.measure_journal import DEATHS, Journal
from autoplan.hardware.measure_run import CannotMeasure, run_points

RUN = {"sizes": {"gemm": [[64, 256], [64]]}, "device": "a CPU"}
TIMEOUT_S = 1200


@dataclass(frozen=True)
class Point:
    key: str


def killed(kind: str, folder: Path, kills: int) -> dict[str, object]:
    """What examining the files after every kill found; see journal_victim.py."""
    script = Path(__file__).with_name("journal_victim.py")
    command = [sys.executable, str(script), kind, str(folder), str(kills), "7"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_killed_at_fifty_moments_it_goes_on_and_loses_at_most_one_measurement(tmp_path: Path) -> None:
    found = killed("made-up", tmp_path, 50)
    assert (found["killed"], found["given_up"]) == (50, [])
    assert found["most_lost"] in (0, 1)
    assert found["runs"] != 0, "some came to their end, with the results that they should have"


@pytest.mark.slow
def test_a_real_measurement_killed_at_fifty_moments(tmp_path: Path) -> None:
    found = killed("real", tmp_path, 50)
    assert (found["killed"], found["given_up"]) == (50, [])
    assert found["most_lost"] in (0, 1)
    assert found["runs"] != 0


def test_what_was_measured_is_not_measured_again(tmp_path: Path) -> None:
    points = [Point("a"), Point("b")]
    first = Journal(tmp_path / "j", RUN)
    first.begin("a", 0)
    first.done("a", 0, [1.0, 2.0])
    first.close()
    asked: list[str] = []

    def measure(point: Point) -> list[float]:
        asked.append(point.key)
        return [3.0]

    journal = Journal(tmp_path / "j", RUN)
    results = run_points(points, 2, measure, journal)
    journal.close()
    assert asked[0] == "b" and sorted(asked[1:]) == ["a", "b"]
    assert results.visits == {"a": [[1.0, 2.0], [3.0]], "b": [[3.0], [3.0]]}


def test_a_noisy_point_is_visited_until_it_is_not(tmp_path: Path) -> None:
    points = [Point("steady"), Point("settles"), Point("wild"), Point("large")]
    asked: list[str] = []

    def measure(point: Point) -> list[float]:
        asked.append(point.key)
        if point.key == "large":
            raise CannotMeasure("out of memory: 1 TiB")
        turn = asked.count(point.key)
        return [
            {"steady": 1.0, "settles": 1.4 if turn == 1 else 1.0 + turn / 1000, "wild": 2.0**turn}[point.key]
        ]

    journal = Journal(tmp_path / "j", RUN)
    results = run_points(points, 2, measure, journal, most_visits=12)
    counts = {point.key: asked.count(point.key) for point in points}
    assert (counts["steady"], counts["wild"], counts["large"]) == (2, 12, 1)
    assert 2 < counts["settles"] < 12
    figure = results.figure(points[1])
    assert figure is not None and not figure.noisy
    journal.close()
    before = len(asked)
    journal = Journal(tmp_path / "j", RUN)
    assert run_points(points, 2, measure, journal, most_visits=12).visits == results.visits
    journal.close()
    assert len(asked) == before, "a run that goes on visits nothing again"


def test_running_out_of_memory_is_a_result_that_is_kept(tmp_path: Path) -> None:
    asked: list[str] = []

    def measure(point: Point) -> list[float]:
        asked.append(point.key)
        if point.key == "large":
            raise CannotMeasure("out of memory: 1 TiB")
        return [1.0]

    points = [Point("small"), Point("large")]
    for _ in range(2):
        journal = Journal(tmp_path / "j", RUN)
        results = run_points(points, 2, measure, journal)
        journal.close()
    assert asked == ["small", "large", "small"], "neither tried at the second visit nor by the second run"
    assert results.failed == {"large": "out of memory: 1 TiB"}
    assert results.figure(points[1]) is None
    assert results.figure(points[0]) is not None


def test_a_point_that_kills_its_process_is_given_up(tmp_path: Path) -> None:
    for _ in range(DEATHS):
        journal = Journal(tmp_path / "j", RUN)
        assert journal.failed == {}
        journal.begin("deadly", 0)
        journal.close()
    journal = Journal(tmp_path / "j", RUN)
    assert journal.failed == {"deadly": f"the process died here {DEATHS} times"}
    journal.close()


@pytest.mark.parametrize("fresh", [False, True])
def test_another_run_or_a_fresh_one_begins_anew(tmp_path: Path, fresh: bool) -> None:
    journal = Journal(tmp_path / "j", RUN)
    journal.done("a", 0, [1.0])
    journal.close()
    again = Journal(tmp_path / "j", RUN if fresh else RUN | {"device": "another"}, fresh=fresh)
    assert again.samples == {}
    again.close()
    assert len((tmp_path / "j").read_bytes().splitlines()) == 1


def test_a_line_that_was_being_written_is_cut_off(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "j", RUN)
    journal.done("a", 0, [1.0])
    journal.close()
    whole = (tmp_path / "j").read_bytes()
    for end in range(len(whole)):
        (tmp_path / "j").write_bytes(whole[:end])
        journal = Journal(tmp_path / "j", RUN)
        assert journal.samples == ({("a", 0): [1.0]} if end == len(whole) else {})
        journal.done("a", 0, [1.0])
        journal.close()
        assert (tmp_path / "j").read_bytes() == whole


def test_a_second_run_may_not_write_to_it(tmp_path: Path) -> None:
    first = Journal(tmp_path / "j", RUN)
    with pytest.raises(ProfileError, match="a journal that no other run writes to"):
        Journal(tmp_path / "j", RUN)
    first.close()
    Journal(tmp_path / "j", RUN).close()


def test_a_place_where_no_journal_can_be_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ProfileError, match="a place where a journal can be kept"):
        Journal(tmp_path / "file" / "j", RUN)


lines = st.one_of(
    st.binary(max_size=40),
    st.text(max_size=40).map(str.encode),
    st.fixed_dictionaries(
        {},
        optional={
            "journal": st.integers(),
            "run": st.just(RUN) | st.integers(),
            "begin": st.text(max_size=3) | st.none(),
            "done": st.text(max_size=3),
            "fail": st.text(max_size=3),
            "visit": st.integers() | st.floats(),
            "samples": st.lists(st.floats() | st.text(max_size=2), max_size=3) | st.integers(),
            "reason": st.text(max_size=3),
            "other": st.none(),
        },
    ).map(lambda entry: json.dumps(entry).encode()),
)


@settings(max_examples=150)
@given(st.lists(lines, max_size=5), st.booleans())
def test_no_journal_makes_anything_but_our_own_error(
    tmp_path_factory: pytest.TempPathFactory, entries: list[bytes], headed: bool
) -> None:
    path = tmp_path_factory.mktemp("journal") / "j"
    head = [json.dumps({"journal": 1, "run": RUN}).encode()] if headed else []
    path.write_bytes(b"".join(line + b"\n" for line in (*head, *entries)))
    try:
        journal = Journal(path, RUN)
    except AutoplanError:
        return
    journal.done("x", 0, [1.0])
    journal.close()
    again = Journal(path, RUN)
    assert again.samples == journal.samples
    again.close()


# --- figures -----------------------------------------------------------------------------------

times = st.floats(1e-7, 10.0)


def test_the_figure_is_the_median_of_visits_that_lie_far_apart() -> None:
    figure = figure_of([[1.0, 1.1, 9.0], [1.0], [1.2, 1.2]])
    assert (figure.value, figure.samples) == (1.1, 6)
    assert 0.2 < figure.spread < 0.5
    assert figure.noisy


def test_a_steady_figure_still_admits_what_two_processes_differ_by() -> None:
    figure = figure_of([[1.0, 1.0]] * 5)
    assert (figure.value, figure.spread, figure.noisy) == (1.0, LEAST_SPREAD, False)


def test_a_repetition_lies_within_the_spread_as_often_as_it_says() -> None:
    """95 % by construction; seeded, so that chance does not fail it."""
    import random

    chance = random.Random(0)

    def measured() -> list[list[float]]:
        return [[chance.gauss(1.0, 0.1) for _ in range(3)] for _ in range(5)]

    pairs = [(figure_of(measured()), figure_of(measured())) for _ in range(2000)]
    inside = sum(abs(a.value - b.value) <= b.spread * b.value for a, b in pairs)
    assert 0.9 < inside / len(pairs) < 0.99


@given(st.lists(st.lists(times, min_size=1, max_size=5), min_size=1, max_size=6))
def test_a_figure_lies_among_its_samples(visits: list[list[float]]) -> None:
    figure = figure_of(visits)
    every = [sample for samples in visits for sample in samples]
    assert min(every) <= figure.value <= max(every)
    assert figure.samples == len(every)
    assert figure.spread >= LEAST_SPREAD
