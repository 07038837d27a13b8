"""Where a rank's time goes: every moment of a step belongs to one label."""

from __future__ import annotations

import time
from collections.abc import Hashable
from dataclasses import dataclass, field
from typing import Any

import torch

__all__ = ["Timeline", "Timing"]


@dataclass(frozen=True, slots=True)
class Timing:
    """Seconds of one step: in all, by label, and of labels on other streams than the one that computes."""

    total_s: float
    by_label: dict[Hashable, float]
    beside: dict[Hashable, float] = field(default_factory=dict)


class Timeline:
    """A stack of labels; time counts for the one on top. On a GPU it is the stream's time, by events.

        timeline.start()
        timeline.push("a") … timeline.pop()
        timing = timeline.stop()

    What runs on another stream than the one of ``start`` is kept apart: it takes nothing from the labels.
    """

    def __init__(self, device: torch.device) -> None:
        self._cuda = device.type == "cuda"
        self._stack: list[Hashable] = []
        self._marks: list[tuple[Any, Hashable]] = []
        self._beside: list[tuple[Any, Any, Hashable]] = []
        self._open: list[tuple[Any, Hashable] | None] = []
        self._stream: Any = None

    @property
    def top(self) -> Hashable:
        """The label that time counts for now."""
        return self._stack[-1]

    def start(self) -> None:
        """Begin a step, under the label ``other``."""
        self._stack, self._open, self._beside = ["other"], [], []
        self._stream = torch.cuda.current_stream() if self._cuda else None
        self._marks = [(self._now(), "other")]

    def push(self, label: Hashable) -> None:
        """Let time count for ``label`` until the matching ``pop``."""
        if self._elsewhere():
            self._open.append((self._now(), label))
            return
        self._open.append(None)
        self._stack.append(label)
        self._marks.append((self._now(), label))

    def pop(self) -> None:
        """Go back to the label before the last ``push``."""
        opened = self._open.pop()
        if opened is not None:
            self._beside.append((opened[0], self._now(), opened[1]))
            return
        self._stack.pop()
        self._marks.append((self._now(), self._stack[-1]))

    def turn(self, label: Hashable) -> None:
        """Put ``label`` in the place of the one on top."""
        self._stack[-1] = label
        self._marks.append((self._now(), label))

    def stop(self) -> Timing:
        """End the step, once the device has done all of it."""
        last = self._now()
        if self._cuda:
            torch.cuda.synchronize()
        by_label: dict[Hashable, float] = {}
        ends = [mark for mark, _ in self._marks[1:]] + [last]
        for (begin, label), end in zip(self._marks, ends, strict=True):
            by_label[label] = by_label.get(label, 0.0) + self._seconds(begin, end)
        beside: dict[Hashable, float] = {}
        for begin, end, label in self._beside:
            beside[label] = beside.get(label, 0.0) + self._seconds(begin, end)
        return Timing(self._seconds(self._marks[0][0], last), by_label, beside)

    def _elsewhere(self) -> bool:
        return self._cuda and torch.cuda.current_stream() != self._stream

    def _now(self) -> Any:
        if not self._cuda:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def _seconds(self, begin: Any, end: Any) -> float:
        return begin.elapsed_time(end) * 1e-3 if self._cuda else end - begin
