"""A line of progress for work that turns out to take long: on a terminal only, and only after a while."""

from __future__ import annotations

import sys
import threading
from types import TracebackType
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from rich.status import Status

__all__ = ["LateProgress"]

_DELAY_S = 2.0


class LateProgress:
    """A context in which ``update`` says what is going on; stderr shows it from the third second on."""

    def __init__(self, quiet: bool = False, delay_s: float = _DELAY_S) -> None:
        self._text = ""
        self._status: Status | None = None
        self._lock = threading.Lock()
        self._timer = threading.Timer(delay_s, self._show)
        self._timer.daemon = True
        self._wanted = not quiet and sys.stderr.isatty()

    def __enter__(self) -> Self:
        if self._wanted:
            self._timer.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._timer.cancel()
        with self._lock:
            self._wanted = False
            if self._status is not None:
                self._status.stop()

    def update(self, text: str) -> None:
        """Show ``text`` from now on; cheap enough to call for every candidate."""
        self._text = text
        if self._status is not None:
            self._status.update(text)

    def _show(self) -> None:
        from rich.console import Console

        with self._lock:
            if self._wanted:
                self._status = Console(stderr=True, highlight=False, markup=False).status(self._text)
                self._status.start()
