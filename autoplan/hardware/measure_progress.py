"""A bar with the time left on stderr, for whoever waits longer than two seconds at a terminal.

Without a terminal (a batch job's log), a line now and then.
"""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from rich.progress import Progress

__all__ = ["PROGRESS", "MeasureProgress"]

PATIENCE_S = 2.0
LINE_S = 20.0
PROGRESS = "autoplan: measured"  # with what a line begins


class MeasureProgress:
    """A context in which ``begin`` names what runs and ``end`` counts it, by the time it was thought to take."""

    def __init__(self, total_s: float, *, show: bool) -> None:
        self._total_s = total_s
        self._done_s = 0.0
        self._show = show
        self._terminal = show and sys.stderr.isatty()
        self._start_s = self._line_s = time.monotonic()
        self._bar: Progress | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def begin(self, label: str) -> None:
        now_s = time.monotonic()
        if self._terminal and now_s - self._start_s > PATIENCE_S:
            self._draw(label)
        elif self._show and not self._terminal and now_s - self._line_s > LINE_S:
            self._line_s = now_s
            left_s = (now_s - self._start_s) * (self._total_s / max(self._done_s, 1e-9) - 1)
            share = self._done_s / max(self._total_s, 1e-9)
            print(
                f"{PROGRESS} {share:.0%}, about {left_s:.0f} s left ({label})",
                file=sys.stderr,
                flush=True,
            )

    def more(self, seconds: float) -> None:
        """There is more to do than was thought."""
        self._total_s += seconds
        if self._bar is not None:
            self._bar.update(self._bar.task_ids[0], total=self._total_s)

    def end(self, seconds: float) -> None:
        """A point that was thought to take ``seconds`` is done."""
        self._done_s += seconds
        if self._bar is not None:
            self._bar.update(self._bar.task_ids[0], completed=self._done_s)

    def _draw(self, label: str) -> None:
        if self._bar is None:
            from rich.console import Console
            from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

            columns = (
                BarColumn(),
                TaskProgressColumn(),
                TimeRemainingColumn(),
                TextColumn("{task.description}"),
            )
            self._bar = Progress(*columns, console=Console(stderr=True), transient=True)
            self._bar.add_task(label, total=self._total_s)
            self._bar.start()
        self._bar.update(self._bar.task_ids[0], description=label, completed=self._done_s)
