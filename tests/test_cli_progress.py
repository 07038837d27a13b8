"""Progress: on a terminal, after a while, and gone when the work is done; nowhere else."""

from __future__ import annotations

import io

import pytest

from autoplan.cli.progress import LateProgress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def shown(monkeypatch: pytest.MonkeyPatch, stream: io.StringIO, *, quiet: bool, delay_s: float) -> str:
    monkeypatch.setattr("sys.stderr", stream)
    monkeypatch.setenv("TERM", "xterm")
    with LateProgress(quiet, delay_s) as progress:
        progress.update("tracing")
        if delay_s < 1 and progress._timer.is_alive():
            progress._timer.join()  # the line is there from now on; its last text is shown at the end at least
        progress.update("searching")
    return stream.getvalue()


def test_a_terminal_sees_what_is_going_on(monkeypatch: pytest.MonkeyPatch) -> None:
    text = shown(monkeypatch, Terminal(), quiet=False, delay_s=0.01)
    assert "searching" in text


@pytest.mark.parametrize(
    ("stream", "quiet", "delay_s"),
    [(io.StringIO(), False, 0.01), (Terminal(), True, 0.01), (Terminal(), False, 60.0)],
    ids=["no terminal", "quiet", "soon over"],
)
def test_others_see_nothing(
    stream: io.StringIO, quiet: bool, delay_s: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert shown(monkeypatch, stream, quiet=quiet, delay_s=delay_s) == ""
