"""Calls in a local graph whose meaning needs the ranks of a mesh axis, which a graph does not hold.

A block that is cut along one mesh axis (``graph.cut``) is a block again, to be cut along another. Where its ops
must talk to the other ranks, it holds one of these; ``rewrite`` turns them into calls on a process group.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

__all__ = ["Drawn", "ExpertCall", "MeshCall", "Moved", "OnMesh"]


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


@dataclass(frozen=True)
class ExpertCall(MeshCall):
    """A part of sending rows to their experts, which ``degree`` ranks share out, and back (``graph.expert_cut``).

    ==========  =========================  ==================================================================
    step        takes                      gives
    ==========  =========================  ==================================================================
    ``counts``  where experts' rows end    rows that this rank sends, and gets, for each expert of each rank
    ``ends``    counts, the ends           where the rows of each of this rank's experts end
    ``there``   rows, counts               the rows of this rank's experts, those of one after another's
    ``back``    those, counts              this rank's own rows again, of which there are ``rows``
    ==========  =========================  ==================================================================
    """

    step: Literal["counts", "ends", "there", "back"]
    degree: int
    rows: int = 0

    def __str__(self) -> str:
        return f"experts[{self.step}]"
