"""A bar on stderr, for whoever waits longer than two seconds at a terminal."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence

__all__ = ["Task", "run_tasks"]

Task = tuple[str, Callable[[], None]]
PATIENCE_S = 2.0


def run_tasks(tasks: Sequence[Task], *, show: bool) -> None:
    """Run each task in order; with ``show`` and a terminal, tell which one is running."""
    if not (show and sys.stderr.isatty()):
        for _, task in tasks:
            task()
        return
    from rich.console import Console
    from rich.progress import Progress

    progress = Progress(console=Console(stderr=True), transient=True)
    bar = progress.add_task("measuring", total=len(tasks))
    start_s = time.monotonic()
    try:
        for label, task in tasks:
            if not progress.live.is_started and time.monotonic() - start_s > PATIENCE_S:
                progress.start()
            progress.update(bar, description=label)
            task()
            progress.advance(bar)
    finally:
        progress.stop()
