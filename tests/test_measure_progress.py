"""How far a measurement is: a bar at a terminal, a line now and then without one, nothing where nobody waits."""

from __future__ import annotations

import sys

import pytest

from autoplan.hardware import measure_progress
from autoplan.hardware.measure_progress import MeasureProgress


class Clock:
    """A clock that is set by hand."""

    now_s = 100.0

    def monotonic(self) -> float:
        return self.now_s


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(measure_progress, "time", clock)
    return clock


def run(clock: Clock, *, show: bool) -> None:
    """Ten points of 5 s each that were thought to take 2 s."""
    with MeasureProgress(20.0, show=show) as progress:
        for number in range(10):
            progress.begin(f"point {number}")
            clock.now_s += 5.0
            progress.end(2.0)


def test_without_a_terminal_a_line_now_and_then(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    run(clock, show=True)
    told = capsys.readouterr().err.splitlines()
    assert told == ["autoplan: measured 50%, about 25 s left (point 5)"]


def test_at_a_terminal_a_bar_with_the_time_left(
    clock: Clock, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setenv("TERM", "xterm")
    run(clock, show=True)
    told = capsys.readouterr().err
    assert "point" in told
    assert "%" in told
    assert ":" in told, "the time left"


def test_who_does_not_wait_sees_nothing(
    clock: Clock, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run(clock, show=False)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setattr(measure_progress, "PATIENCE_S", 1000.0)
    run(clock, show=True)
    assert capsys.readouterr().err == ""
