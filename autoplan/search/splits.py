"""Candidates that differ only in how data ranks share the training state, and what that sharing comes to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from autoplan.cost.degrees import Degrees
from autoplan.cost.memory import StateRates, state_bytes
from autoplan.cost.state_traffic import added_s, state_traffic
from autoplan.cost.unit import UnitCost
from autoplan.search.run import least_optimizer_s

if TYPE_CHECKING:
    from autoplan.hardware import Cluster
    from autoplan.plan import Job

__all__ = ["SplitPrices", "Splits"]

Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Splits:
    """``members`` have equal pp, cp, tp, ep and micro-batches; whatever their schedule."""

    members: tuple[Degrees, ...]

    @cached_property
    def places(self) -> dict[tuple[int, int, int], int]:
        """The index of each of ``names``."""
        return {name: place for place, name in enumerate(self.names)}

    @cached_property
    def names(self) -> tuple[tuple[int, int, int], ...]:
        """(dp, fsdp, zero) of each."""
        return tuple((degrees.dp, degrees.fsdp, degrees.zero) for degrees in self.members)


class SplitPrices:
    """What units of given sizes send and hold under each split of a pipeline; worked out once for each.

    ``counts``: of each kind, how many units of the chain are of it.
    """

    def __init__(self, job: Job, cluster: Cluster, counts: Sequence[int]) -> None:
        self._job, self._cluster, self._counts = job, cluster, counts
        self._traffic: dict[tuple[object, ...], tuple[Floats, Floats]] = {}
        self._bytes: dict[tuple[object, ...], Floats] = {}

    def seconds(self, splits: Splits, units: Sequence[UnitCost], kinds: Sequence[UnitCost]) -> Floats:
        """Of a unit of each kind: what travels in a forward, in a backward, before the first and after the last pass,
        and its least share of the optimizer's step; shape (splits, kinds, 5).

        ``units`` may lack parameters that ``kinds`` have.
        """
        sizes = _sizes(units), _sizes(kinds)
        return np.array([self._seconds(split, units, kinds, sizes) for split in splits.members])

    def _seconds(
        self, split: Degrees, units: Sequence[UnitCost], kinds: Sequence[UnitCost], sizes: object
    ) -> Floats:
        key = *_sharing(split), sizes
        if key not in self._traffic:
            self._traffic[key] = self._once(split, units, kinds)
        once, added = self._traffic[key]
        return once + (1 - 1 / split.num_micro_batches) * added

    def _once(
        self, split: Degrees, units: Sequence[UnitCost], kinds: Sequence[UnitCost]
    ) -> tuple[Floats, Floats]:
        """``_seconds`` of one micro-batch alone, and what adding to others' gradients makes more of each figure."""
        alone, precision = replace(split, num_micro_batches=1), self._job.precision
        sent = [state_traffic(unit, alone, precision, self._cluster) for unit in units]
        own = [unit.stepped(split) for unit in units]
        whole = sum(n * kind.stepped(split) for n, kind in zip(self._counts, kinds, strict=True))
        element_s = least_optimizer_s((*own, whole), split, self._job, self._cluster)
        once = [
            (s.forward_s, s.backward_s, s.head_s, s.tail_fsdp_s + s.tail_dp_s, element_s * size)
            for s, size in zip(sent, own, strict=True)
        ]
        added = [(0.0, added_s(unit, split, precision, self._cluster), 0.0, 0.0, 0.0) for unit in units]
        return np.array(once), np.array(added)

    def state(self, splits: Splits, units: Sequence[UnitCost]) -> Floats:
        """Bytes of state of each unit; then, last, bytes an element of what is gathered and of what was reduced
        last; shape (splits, units + 2)."""
        sizes = _sizes(units)
        return np.array([self._state(split, units, sizes) for split in splits.members])

    def _state(self, split: Degrees, units: Sequence[UnitCost], sizes: object) -> Floats:
        key = *_sharing(split), sizes
        if key not in self._bytes:
            rates = StateRates.of(split, self._job)
            held = [state_bytes(unit, split, rates) for unit in units]
            self._bytes[key] = np.array([*held, rates.gathered_units, rates.reduced_units])
        return self._bytes[key]


def _sizes(units: Sequence[UnitCost]) -> tuple[tuple[float, ...], ...]:
    return tuple((u.parameters, u.trainable, u.experts, u.trainable_experts) for u in units)


def _sharing(split: Degrees) -> tuple[object, ...]:
    """What traffic and bytes of given units depend on."""
    return split.dp, split.fsdp, split.cp, split.tp, split.ep, split.zero
