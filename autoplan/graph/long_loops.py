"""Refusing loops over time steps: each step would be ops of its own, thousands of them in one block.

A loop is told by one line of one function call that calls torch, or a function that calls torch, again and again.
Loops over chunks of a sequence, over experts or over layers stay far below the limit.
"""

from __future__ import annotations

import sys
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

import torch
from torch.overrides import TorchFunctionMode

from autoplan.errors import TraceError

__all__ = ["LONGEST_LOOP", "NoLongLoops"]

LONGEST_LOOP = 512
"""Steps of a loop that are still traced one by one."""
_MOST_CALLS = 200_000
"""Calls of torch that one capture may make, over loops within loops; models make a tenth of them."""
_TORCH = str(Path(torch.__file__).parent)
_MODULES = str(Path(torch.__file__).parent / "nn")
_OURS = str(Path(__file__).parent)
_MODELS = str(Path(__file__).parent / "sources")


def _is_user(frame: FrameType) -> bool:
    """Whether the frame's line may be a loop of the model: it is in its own code, or in a container of torch.nn."""
    file = frame.f_code.co_filename
    if file.startswith(_TORCH):
        return file.startswith(_MODULES)
    return not file.startswith(_OURS) or file.startswith(_MODELS)


class NoLongLoops(TorchFunctionMode):
    """Raises TraceError when one line of a function call runs more than ``LONGEST_LOOP`` times."""

    def __init__(self, path: str) -> None:
        super().__init__()
        self._path = path
        self._calls = 0
        self._seen: set[FrameType] = set()  # holding a frame keeps its identity its own
        self._runs: dict[tuple[FrameType, int], int] = {}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self._calls += 1
        if self._calls > _MOST_CALLS:
            self._refuse(f"more than {_MOST_CALLS:,} calls of torch")
        frame: FrameType | None = sys._getframe(1)
        while frame is not None:
            if _is_user(frame):
                self._count(frame)
            if frame in self._seen:
                break
            self._seen.add(frame)
            frame = frame.f_back
        return func(*args, **(kwargs or {}))

    def _count(self, frame: FrameType) -> None:
        """One more call at the line where ``frame`` stands: of torch, or of a function not seen before."""
        key = frame, frame.f_lasti
        self._runs[key] = self._runs.get(key, 0) + 1
        if self._runs[key] > LONGEST_LOOP:
            line = f"{Path(frame.f_code.co_filename).name}:{frame.f_lineno}"
            self._refuse(f"a loop of more than {LONGEST_LOOP} steps at {line}")

    def _refuse(self, value: str) -> NoReturn:
        raise TraceError(
            self._path,
            value,
            "steps that are few, or one operator that does them all",
            "use the model's parallel or chunked form, or make the loop an operator: torch.library.custom_op, "
            "with register_fake and register_autograd",
        )

    def __exit__(self, *error: Any) -> None:
        self._seen.clear()
        self._runs.clear()
        super().__exit__(*error)
