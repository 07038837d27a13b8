"""What one mesh axis does to a tensor, and the collective that changes it.

A layout says two things at once, since training runs every tensor's graph twice: how the value
lies on the ranks, and how its gradient does. With n ranks on the mesh axis:

    text      value                            gradient
    R         whole on every rank              whole on every rank
    R*        whole on every rank              partial: the sum over ranks is the gradient
    S(d)      dim d cut in n                   dim d cut in n
    S(d/p)    dim d seen as p parts, each cut  the same
    P         partial: the sum over ranks      whole on every rank

``R*`` is what an op needs of an operand that does not hold the iteration axis being cut, and ``P``
is what it gives when the axis is contracted; each is the other's mirror in the backward pass.
Megatron's f is ``R → R*`` and its g is ``P → R`` (Shoeybi et al., 2019, figure 3).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum

from autoplan.errors import PlanError

__all__ = [
    "PARTIAL",
    "REPLICATE",
    "REPLICATE_STAR",
    "Collective",
    "Conversion",
    "Layout",
    "conversion",
    "shard",
]


class LayoutKind(StrEnum):
    """The family of a layout."""

    REPLICATE = "R"
    REPLICATE_STAR = "R*"
    SHARD = "S"
    PARTIAL = "P"


class Collective(StrEnum):
    """What must travel to change a layout, and ``SEND_RECV``, what goes to the next rank. ``SLICE`` and ``MASK`` are
    local and move nothing."""

    ALL_REDUCE = "all_reduce"
    ALL_GATHER = "all_gather"
    REDUCE_SCATTER = "reduce_scatter"
    ALL_TO_ALL = "all_to_all"
    SEND_RECV = "send_recv"
    SLICE = "slice"
    MASK = "mask"

    @property
    def moves(self) -> bool:
        """True if bytes leave the device."""
        return self not in (Collective.SLICE, Collective.MASK)


@dataclass(frozen=True, slots=True, order=True)
class Layout:
    """One mesh axis seen by one tensor. ``dim`` and ``parts`` matter only to a shard."""

    kind: LayoutKind
    dim: int = -1
    parts: int = 1

    @property
    def is_shard(self) -> bool:
        return self.kind is LayoutKind.SHARD

    @property
    def value_kind(self) -> LayoutKind:
        """How the value lies: R, S or P."""
        return LayoutKind.REPLICATE if self.kind is LayoutKind.REPLICATE_STAR else self.kind

    @property
    def gradient_kind(self) -> LayoutKind:
        """How the gradient lies: R, S or P."""
        return _GRADIENT[self.kind]

    def local_shape(self, shape: tuple[int, ...], degree: int) -> tuple[int, ...]:
        """The shape that one of ``degree`` ranks holds of a tensor of ``shape``."""
        if not self.is_shard:
            return shape
        return (*shape[: self.dim], shape[self.dim] // degree, *shape[self.dim + 1 :])

    def __str__(self) -> str:
        if not self.is_shard:
            return self.kind.value
        return f"S({self.dim})" if self.parts == 1 else f"S({self.dim}/{self.parts})"

    @classmethod
    def parse(cls, text: str) -> Layout:
        """The inverse of ``str``. Raises PlanError on any other text."""
        if match := re.fullmatch(r"S\((0|[1-9][0-9]*)(?:/([2-9]|[1-9][0-9]+))?\)", text):
            return shard(int(match[1]), int(match[2] or 1))
        for layout in (REPLICATE, REPLICATE_STAR, PARTIAL):
            if text == layout.kind.value:
                return layout
        raise PlanError("layout", text, "R, R*, P, S(dim) or S(dim/parts)", "correct the plan file")


REPLICATE = Layout(LayoutKind.REPLICATE)
REPLICATE_STAR = Layout(LayoutKind.REPLICATE_STAR)
PARTIAL = Layout(LayoutKind.PARTIAL)


def shard(dim: int, parts: int = 1) -> Layout:
    """The layout that cuts ``dim`` (of each of ``parts`` equal parts of it)."""
    return Layout(LayoutKind.SHARD, dim, parts)


@dataclass(frozen=True, slots=True)
class Conversion:
    """What a change of layout does in the forward pass and, to the gradient, in the backward pass."""

    forward: Collective | None
    backward: Collective | None


_K = LayoutKind
_GRADIENT = {
    _K.REPLICATE: _K.REPLICATE,
    _K.REPLICATE_STAR: _K.PARTIAL,
    _K.SHARD: _K.SHARD,
    _K.PARTIAL: _K.REPLICATE,
}

_MOVES: dict[tuple[LayoutKind, LayoutKind], Collective | None] = {
    (_K.REPLICATE, _K.REPLICATE): None,
    (_K.REPLICATE, _K.SHARD): Collective.SLICE,
    (_K.REPLICATE, _K.PARTIAL): Collective.MASK,
    (_K.SHARD, _K.REPLICATE): Collective.ALL_GATHER,
    (_K.SHARD, _K.SHARD): Collective.ALL_TO_ALL,
    (_K.SHARD, _K.PARTIAL): Collective.MASK,
    (_K.PARTIAL, _K.REPLICATE): Collective.ALL_REDUCE,
    (_K.PARTIAL, _K.SHARD): Collective.REDUCE_SCATTER,
    (_K.PARTIAL, _K.PARTIAL): None,
}


def conversion(src: Layout, dst: Layout) -> Conversion:
    """The collectives that turn ``src`` into ``dst``; both None when they are the same layout.

    Sizes, by the convention used throughout: an all-reduce, all-gather or reduce-scatter is priced
    by the bytes of the *whole* tensor on the mesh axis, an all-to-all by the bytes one rank holds.
    """
    if src == dst:
        return Conversion(None, None)
    forward = _MOVES[src.value_kind, dst.value_kind]
    return Conversion(forward, _MOVES[dst.gradient_kind, src.gradient_kind])
