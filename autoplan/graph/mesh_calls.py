"""Calls in a local graph whose meaning needs the ranks of a mesh axis, which a graph does not hold.

A block that is cut along one mesh axis (``graph.cut``) is a block again, to be cut along another. Where its ops
must talk to the other ranks, it holds one of these; ``rewrite`` turns them into calls on a process group.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

__all__ = ["Drawn", "MeshCall", "Moved", "OnMesh"]


class MeshCall:
    """A target of a graph's node that has no process group yet, and so cannot run."""

    __name__ = "mesh_call"

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        raise TypeError(f"{self} runs on a process group: rewrite the graph first")


@dataclass(frozen=True)
class Moved(MeshCall):
    """A change of layout among ``degree`` ranks, from ``src`` to ``dst`` as their text; ``zigzag``: see
    ``rewrite.move.convert``."""

    src: str
    dst: str
    degree: int
    zigzag: bool = False

    def __str__(self) -> str:
        return f"moved[{self.src} to {self.dst}]"


@dataclass(frozen=True)
class OnMesh(MeshCall):
    """``op`` done by ``kernel`` (see ``Strategy.kernel``), which talks to the other ranks of ``degree`` itself."""

    kernel: str
    op: Any
    degree: int
    zigzag: bool = False

    def __str__(self) -> str:
        return f"{self.op} by {self.kernel}"


@dataclass(frozen=True)
class Drawn(MeshCall):
    """``op``, which draws random numbers, for a piece of its result of ``shape``, cut among ``degree`` ranks as
    ``layout`` says."""

    op: Any
    shape: tuple[int, ...]
    layout: str
    degree: int
    zigzag: bool = False

    def __str__(self) -> str:
        return f"{self.op} of {self.layout}"
