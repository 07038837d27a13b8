"""What ranks hold under an even cut, for all splits at once: how many units must make something again to fit, and how
long that takes at least."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from autoplan.cost.keep import Keep
from autoplan.cost.memory import ALLOCATOR_SLACK
from autoplan.cost.pipeline.activations import moments_of_rank
from autoplan.cost.unit import UnitCost
from autoplan.plan.schedule import Schedule
from autoplan.search.even_cut import EvenCut, Turns

__all__ = ["EvenMemory", "gained", "held_by_rank"]

Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class EvenMemory:
    """A cut whose units, one of each form, keep what they keep.

    Args:
        state: of each split, as ``SplitPrices.state`` gives it for ``units``.
        sent_bytes: what each stage keeps of what it sends on; shape (stages,).
        room: bytes of a device for tensors of ours.
    """

    cut: EvenCut
    units: Sequence[UnitCost]
    state: Floats
    sent_bytes: Floats
    room: float

    def figure(self, name: str) -> Floats:
        """Of each form."""
        return np.array([getattr(unit, name) for unit in self.units])

    @cached_property
    def beside(self) -> Floats:
        """Bytes beside activations when nothing is made again; shape (splits, ranks)."""
        cut, parameters = self.cut, self.figure("parameters")
        gathered, reduced = self.state[:, -2, None], self.state[:, -1, None]
        held = self.state[:, :-2] @ cut.of_rank.T + gathered * cut.largest_pair(parameters)
        return held + reduced * self._largest(self.figure("trainable")) + self.workspace

    @cached_property
    def workspace(self) -> Floats:
        """Bytes that the backward of one unit works with; shape (ranks,)."""
        return self._largest(self.figure("workspace_bytes"))

    def _largest(self, of_forms: Floats) -> Floats:
        return np.where(self.cut.of_rank > 0, of_forms, 0.0).max(axis=1)

    @cached_property
    def kept(self) -> Floats:
        """Bytes that a forward leaves on each stage, then bytes between the halves of its backward; shape (2, stages)."""
        counts = self.cut.counts
        whole = counts @ self.figure("saved_bytes") + self.sent_bytes
        return np.array((whole, counts @ self.figure("weight_half_bytes")))

    def kept_at(self, held: Floats) -> Floats:
        """Bytes at each of the moments ``held`` (as ``held_by_rank``) when nothing is made again; shape (ranks,
        moments)."""
        stages, vpp = self.cut.stages[: len(held)], self.cut.stages.shape[1]
        whole, half = self.kept
        kept = (held[..., :vpp] * whole[stages][:, None]).sum(axis=2)
        return kept + (held[..., vpp:] * half[stages][:, None]).sum(axis=2)

    def fewest(
        self, kept: Floats, turns: Turns, gains: Floats, keeps: Mapping[int, Keep], tried: slice = slice(None)
    ) -> NDArray[np.intp]:
        """How many units of each of the first ranks must go the way of ``keeps`` (by form), in their turns; -1 where all
        are too few; shape (splits, ranks).

        Args:
            kept: at what moments (``kept_at``).
            gains: what turns make of these (``gained``).
            tried: which numbers of units may be.
        """
        ranks = len(kept)
        workspace = self.workspace[:ranks, None]
        freed, more = np.zeros(len(self.units)), np.zeros(len(self.units))
        for form, keep in keeps.items():
            freed[form] = keep.kept_bytes - self.units[form].saved_bytes
            more[form] = self.units[form].workspace_bytes + keep.again_bytes
        activations = (kept[:, None] + gains @ freed).max(axis=2)
        rerun = (np.where(turns.some, more, 0.0).max(axis=2) - workspace).clip(min=0.0)
        total = self.beside[:, :ranks, None] + activations + rerun
        fits = np.zeros(total.shape, dtype=bool)
        fits[..., tried] = total[..., tried] * (1 + ALLOCATOR_SLACK) <= self.room
        return np.where(fits.any(axis=2), fits.argmax(axis=2), -1)

    def least_again_s(
        self, rank: int, held: Floats, points: Mapping[int, Sequence[tuple[float, float]]]
    ) -> Floats:
        """Seconds of a micro-batch that a rank spends at least on making again what does not fit at its fullest moment:
        the cheapest bytes first, of any units in any shares; infinite where that is too little; shape (splits,).

        Args:
            held: what it keeps at its worst moments.
            points: of forms that may make something again, (bytes kept, seconds), as ``UnitCost.least_again``.
        """
        stages = self.cut.stages[rank]
        kept = self.kept[:, stages].ravel()
        moment = held[int((held @ kept).argmax())]
        over = self.beside[:, rank] - self.room / (1 + ALLOCATOR_SLACK) + float(moment @ kept)
        pieces = []
        for times, counts in zip(moment, self.cut.counts[stages], strict=False):
            for form, found in points.items():
                over = over - times * counts[form] * (self.units[form].saved_bytes - found[0][0])
                for (k1, s1), (k2, s2) in pairwise(found):
                    if freed := times * (k1 - k2):
                        pieces.append(((s2 - s1) / freed, counts[form] * freed))
        pieces.sort()
        freed = np.cumsum([0.0, *(nbytes for _, nbytes in pieces)])
        seconds = np.cumsum([0.0, *(byte_s * nbytes for byte_s, nbytes in pieces)])
        again = np.interp(over, freed, seconds)
        return np.where(over <= freed[-1] + 1e-9 * self.room, again, np.inf)


@lru_cache(maxsize=1024)
def held_by_rank(schedule: Schedule, pp: int, vpp: int, micro_batches: int, ranks: int) -> Floats:
    """What each of the first ranks keeps at the moments when it may keep the most, as ``moments_of_rank``, with moments
    of nothing where others have more; shape (ranks, moments, 2 · vpp)."""
    shape = schedule, pp, vpp, micro_batches
    found = [_fullest(moments_of_rank(*shape, rank)) for rank in range(ranks)]
    held = np.zeros((ranks, max(map(len, found)), 2 * vpp))
    for rank, rows in enumerate(found):
        held[rank, : len(rows)] = rows
    return held


def _fullest(rows: Floats) -> Floats:
    """The rows that no other is above in everything, whatever the bytes."""
    above: Any = np.all(rows[:, None] <= rows, axis=2)
    np.fill_diagonal(above, False)
    return rows[~above.any(axis=1)]


def gained(held: Floats, turns: Turns) -> Floats:
    """By how much what is held at each moment changes for each byte that a unit of a form keeps more, when the first n
    of a rank do; shape (ranks, n, moments, forms)."""
    vpp = turns.made.shape[2]
    return np.einsum("rmv,rnvf->rnmf", held[..., :vpp], turns.made)
