"""Where reports are printed: colour on a terminal, plain text of 100 columns anywhere else."""

from __future__ import annotations

from typing import TextIO

from rich.console import Console, RenderableType

__all__ = ["print_report"]

_WIDTH = 100


def print_report(report: RenderableType, stream: TextIO) -> None:
    """Print ``report`` on ``stream``; names and numbers as they are given, no trailing blanks in plain text."""
    console = Console(file=stream, highlight=False, markup=False, emoji=False)
    console.width = min(_WIDTH, console.width) if console.is_terminal else _WIDTH
    if console.is_terminal:
        console.print(report)
        return
    with console.capture() as captured:
        console.print(report)
    stream.write("".join(f"{line.rstrip()}\n" for line in captured.get().splitlines()))
