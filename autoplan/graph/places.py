"""Where in the user's code a call of torch comes from."""

from __future__ import annotations

import sys
from pathlib import Path
from types import FrameType

import torch

__all__ = ["calling_line"]

_NOT_THEIRS = str(Path(__file__).parent), str(Path(torch.__file__).parent)


def calling_line() -> str:
    """`` at file:line`` of the innermost call that is neither torch's nor ours; empty if there is none."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        if not frame.f_code.co_filename.startswith(_NOT_THEIRS):
            return f" at {Path(frame.f_code.co_filename).name}:{frame.f_lineno}"
        frame = frame.f_back
    return ""
