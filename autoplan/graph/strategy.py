"""The ways in which one op can run when one mesh axis cuts it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from autoplan.graph.layout import Collective, Layout

__all__ = ["GATHERED_ATTENTION", "RING_ATTENTION", "InternalCollective", "Strategy"]

GATHERED_ATTENTION = "gathered_attention"
"""The kernel of causal attention whose sequence is cut, and whose keys and values are gathered."""

RING_ATTENTION = "ring_attention"
"""The kernel of attention whose sequence is cut, and whose keys and values go round the ranks."""


@dataclass(frozen=True, slots=True)
class InternalCollective:
    """Communication that a special kernel does itself; ``nbytes`` by the convention of ``conversion``, and of a
    send_recv what one rank sends. ``beside``: so many times, each beside an equal part of the kernel's work."""

    kind: Collective
    nbytes: int
    phase: Literal["forward", "backward"]
    beside: int = 0


@dataclass(frozen=True, slots=True)
class Strategy:
    """One way to run an op on a mesh axis of n ranks.

    Args:
        name: ``R`` or ``R*`` (every rank does all of it), ``P`` (on partial sums), or the iteration
            axis that is cut (``cut o``); what a plan file holds.
        inputs: the layout that each entry of ``Op.inputs`` must have, in that order.
        output: the layout of the result. A list result (split, unbind) has one layout for all; of unlike
            results, this is the first one's, and the others' follow from the op's axes.
        share: True when each rank does 1/n of the op's work, False when each does all of it.
        gemm_axis: for a matrix product, which of its sizes shrinks by n.
        kernel: name of the local implementation when it is not the op itself on local tensors.
        internal: what that kernel sends.
        divided: names of the call's arguments of which a rank passes the n-th part (groups, heads).
    """

    name: str
    inputs: tuple[Layout, ...]
    output: Layout
    share: bool
    gemm_axis: Literal["batch", "m", "n", "k"] | None = None
    kernel: str | None = None
    internal: tuple[InternalCollective, ...] = ()
    divided: tuple[str, ...] = ()
