"""What a search returns: always a value with a status, never an exception for "nothing fits"."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Any

import msgspec

from autoplan.cost.estimate import Estimate
from autoplan.plan import Plan

if TYPE_CHECKING:
    from autoplan.graph.unruled import UnruledOp

__all__ = ["Candidate", "Cure", "SearchResult", "Status"]


class Status(StrEnum):
    """How sure the answer is; the value is what people and ``--json`` see."""

    OPTIMAL = "optimal"
    WITHIN_GAP = "within_gap"
    LIMIT = "limit"
    INFEASIBLE = "infeasible"


@dataclass(frozen=True, slots=True)
class Candidate:
    """A plan with its price."""

    plan: Plan
    estimate: Estimate


@dataclass(frozen=True, slots=True)
class Cure:
    """A change that would make a job fit: the option to change, its new value, a sentence for people, and the step
    time of a plan under it."""

    option: str
    value: str
    text: str
    step_s: float | None = None


@dataclass(frozen=True, slots=True)
class SearchResult:
    """The best plan of the stated space.

    ``bound_s``: no plan of the space has a modelled step time below it. ``gap``: no plan has less of ``objective``
    (time, cost, energy) by more than this share of what it has; for time it is ``step_time / bound_s - 1``. ``best`` is None when the
    status is infeasible, or a limit was reached before the first plan; then ``conflict`` says what cannot be met
    together, ``conflicting`` names the decisions of the caller's that are to blame (all of
    them together, none of them spare), and ``cures`` what would mend it, the smallest change first. ``unruled`` lists the
    ops that no plan can cut, because nobody said how. ``assumptions`` are sentences about what the price rests
    on beside the cost model: how evenly a model's routed experts are loaded. ``checked`` says what an independent
    check (``autoplan.verify``) derived again of every plan in the result, ``unchecked`` what it cannot.
    """

    status: Status
    gap: float
    bound_s: float
    best: Candidate | None
    runners_up: tuple[Candidate, ...]
    seconds: float
    candidates: int
    pruned: int
    conflict: str = ""
    cures: tuple[Cure, ...] = ()
    conflicting: tuple[str, ...] = ()
    unruled: tuple[UnruledOp, ...] = ()
    assumptions: tuple[str, ...] = ()
    checked: tuple[str, ...] = ()
    unchecked: tuple[str, ...] = ()
    objective: str = "time"

    @property
    def plan(self) -> Plan | None:
        return self.best.plan if self.best else None

    @property
    def estimate(self) -> Estimate | None:
        return self.best.estimate if self.best else None

    def to_json(self) -> dict[str, Any]:
        """The object that ``autoplan search --json`` prints; its keys keep their meaning."""
        return {
            "status": self.status.value,
            "gap": self.gap,
            "bound_s": self.bound_s,
            "objective": self.objective,
            "plan": _plan_json(self.plan),
            "estimate": msgspec.to_builtins(self.estimate),
            "runners_up": [
                {"plan": _plan_json(c.plan, brief=True), "estimate": msgspec.to_builtins(c.estimate)}
                for c in self.runners_up
            ],
            "search": {"seconds": self.seconds, "candidates": self.candidates, "pruned": self.pruned},
            "conflict": self.conflict,
            "conflicting": list(self.conflicting),
            "cures": [asdict(cure) for cure in self.cures],
            "unruled": [asdict(op) for op in self.unruled],
            "assumptions": list(self.assumptions),
            "certificate": {"checked": list(self.checked), "unchecked": list(self.unchecked)},
        }


def _plan_json(plan: Plan | None, brief: bool = False) -> dict[str, Any] | None:
    if plan is None:
        return None
    data = msgspec.to_builtins(plan)
    data["recompute"] = plan.recompute
    data["world_size"] = plan.world_size
    del data["asked"]
    if brief:
        del data["layouts"], data["policies"]
    return data
