"""What each decision of a plan is worth: the best plan that decides otherwise, found by the same search."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from autoplan.errors import InputError, PlanError
from autoplan.search.graphs import Graphs
from autoplan.search.outer import search
from autoplan.search.result import SearchResult
from autoplan.search.rules import NUMBERS

if TYPE_CHECKING:
    from autoplan.cost.estimate import Estimate
    from autoplan.hardware import AnyCluster
    from autoplan.plan import Job, Plan

__all__ = ["Otherwise", "difference", "otherwise"]

_DECISIONS = ("schedule", "pp", "vpp", "dp", "fsdp", "cp", "tp", "ep", "zero", "micro_batch")


@dataclass(frozen=True, slots=True)
class Otherwise:
    """A decision with the value that the plan has, and the search that was not allowed it; no result where every
    candidate has that value."""

    name: str
    value: str
    result: SearchResult | None


def otherwise(
    graphs: Graphs,
    job: Job,
    cluster: AnyCluster,
    plan: Plan,
    *,
    pin: Mapping[str, Any] | None = None,
    forbid: Sequence[tuple[str, Any]] = (),
    gap: float = 0.01,
    progress: Callable[[str], object] | None = None,
) -> Iterator[Otherwise]:
    """For each decision of ``plan`` that ``pin`` leaves free, the best plan without it."""
    names = [name for name in _DECISIONS if name in NUMBERS]
    names += ["recompute", "boundary"] if plan.tp > 1 else ["recompute"]
    for name in names:
        if name in (pin or {}):
            continue
        value = str(getattr(plan, name))
        if progress is not None:
            progress(f"what if {name} were not {value}")
        held = (
            {**(pin or {}), "tp": plan.tp} if name == "boundary" else pin
        )  # without tp there is no boundary
        try:
            found = search(
                graphs, job, cluster, pin=held, forbid=[*forbid, (name, value)], gap=gap, top=1, cures=False
            )
        except (InputError, PlanError):
            yield Otherwise(name, value, None)
            continue
        yield Otherwise(name, value, found)


def difference(mine: Estimate, theirs: Estimate) -> tuple[dict[str, float], dict[str, float]]:
    """Seconds by cause, and bytes by owner on each one's worst rank, that ``theirs`` has more."""
    parts = {
        name: theirs.parts.get(name, 0.0) - mine.parts.get(name, 0.0)
        for name in dict.fromkeys((*mine.parts, *theirs.parts))
    }
    before, after = (max(e.stages, key=lambda stage: stage.filled).memory for e in (mine, theirs))
    owners = {name: getattr(after, name) - getattr(before, name) for name in before.__struct_fields__}
    return parts, owners
