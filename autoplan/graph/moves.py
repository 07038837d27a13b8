"""What a change of layout sends and touches, in bytes."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from autoplan.graph.layout import Collective, Layout, conversion

if TYPE_CHECKING:
    from autoplan.graph.ir import Value

__all__ = ["Traffic", "traffic"]


@dataclass(frozen=True, slots=True)
class Traffic:
    """One way of a change of layout, on one rank.

    Args:
        kind: the collective, or None if nothing leaves the device.
        sent: its bytes, by the convention of ``conversion``.
        touched: bytes read and written beside it.
    """

    kind: Collective | None = None
    sent: float = 0.0
    touched: float = 0.0


def traffic(value: Value, src: Layout, dst: Layout, degree: int) -> tuple[Traffic, Traffic]:
    """What ``src → dst`` takes among ``degree`` ranks, forward and (if ``value`` needs a gradient) backward.

    Beside what travels, a collective along a dim other than the outermost must lay its pieces out anew: one more
    reading and writing of the whole value.
    """
    if src == dst or degree == 1:
        return Traffic(), Traffic()
    change = conversion(src, dst)
    forward = _one_way(value, change.forward, src, dst, degree)
    backward = _one_way(value, change.backward, dst, src, degree) if value.requires_grad else Traffic()
    return forward, backward


def _one_way(value: Value, kind: Collective | None, src: Layout, dst: Layout, degree: int) -> Traffic:
    whole = value.nbytes
    match kind:
        case None:
            return Traffic()
        case Collective.MASK:
            return Traffic(touched=whole)
        case Collective.SLICE:
            return Traffic(touched=2 * whole / degree)
        case Collective.ALL_TO_ALL:
            return Traffic(kind, whole / degree, 2 * whole / degree)
    cut = {Collective.ALL_GATHER: src, Collective.REDUCE_SCATTER: dst}.get(kind)
    anew = cut is not None and cut.is_shard and not _outermost(value, cut)
    return Traffic(kind, whole, 2 * whole if anew else 0.0)


def _outermost(value: Value, layout: Layout) -> bool:
    """True if the pieces of a cut lie one after another in memory."""
    return layout.parts == 1 and math.prod(value.shape[: layout.dim]) == 1
