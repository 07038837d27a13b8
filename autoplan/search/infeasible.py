"""When nothing fits: what is in conflict, and the smallest changes that would mend it.

A change is tried by asking of the most frugal candidates whether any assignment of units to stages fits
in memory; time plays no part.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from autoplan.cost.degrees import Degrees
from autoplan.cost.keep import NONE
from autoplan.cost.memory import limit_bytes
from autoplan.cost.step import Assignment
from autoplan.errors import AutoplanError
from autoplan.plan.schedule import Schedule
from autoplan.search.branch_and_bound import BranchAndBound
from autoplan.search.pins import Pins
from autoplan.search.result import Candidate, Cure
from autoplan.search.space import Space
from autoplan.units import bytes_binary, seconds

if TYPE_CHECKING:
    from autoplan.hardware import AnyCluster

__all__ = ["explain"]

_TRIED = 8  # of the candidates that need least; if none of them fits, hardly any other does
_LARGEST = 64  # times as many nodes as there are
_LOOKS = 60  # at candidates, to price a cure
_DEGREES = ("pp", "dp", "fsdp", "cp", "tp", "ep", "vpp", "zero", "micro_batch")


@dataclass(frozen=True, slots=True)
class _Decision:
    """One pin or ban of the user's."""

    name: str
    value: Any
    pinned: bool

    @property
    def option(self) -> str:
        if not self.pinned:
            return f"--forbid {self.name}={self.value}"
        plain = self.name in {field.name for field in fields(Pins)}
        return f"--{self.name.replace('_', '-')}" if plain else f"--pin {self.name}"

    def __str__(self) -> str:
        return f"{self.name}={self.value}" if self.pinned else f"no {self.name}={self.value}"


def explain(
    space: Space,
    pin: Mapping[str, Any],
    forbid: Iterable[tuple[str, Any]] = (),
    stop_at: float = math.inf,
) -> tuple[str, tuple[Cure, ...], tuple[str, ...]]:
    """The conflict in a sentence; the cures that were found, decisions to release before nodes to add, each with
    the step time of a plan under it; and the decisions that conflict: without any one of them a plan fits. They are
    none if no plan fits even without them. At ``stop_at``, a time of ``time.monotonic``, what was found must do."""
    decisions = [_Decision(name, value, True) for name, value in pin.items()]
    decisions += [_Decision(name, value, False) for name, value in forbid]
    core = _conflicting(space, decisions, stop_at)
    needed = min(_needed_bytes(space, degrees) for degrees in _frugal(space))
    held = f" with {', '.join(map(str, core or decisions))}" if decisions else ""
    devices = {only.device.name: limit_bytes(only.device) for only in space.cluster.types}
    leaves = " and ".join(f"{name} leaves {bytes_binary(limit)}" for name, limit in devices.items())
    conflict = (
        f"the most frugal plan of {space.chain.name}{held} on {space.cluster.world_size} ranks needs "
        f"{bytes_binary(needed)} on the worst of them, and {leaves} to a plan"
    )
    cures = tuple(_cures(space, decisions, core, stop_at))
    if not cures:
        text = f"use devices with at least {bytes_binary(needed)} of memory"
        cures = (Cure("--cluster", bytes_binary(needed), text),)
    return conflict, cures, tuple(map(str, core))


def _conflicting(space: Space, decisions: Sequence[_Decision], stop_at: float) -> list[_Decision]:
    """A set of decisions that nothing fits with, while something fits without any one of them; empty if nothing
    fits without all of them, or time does not do to tell."""
    if not decisions or time.monotonic() > stop_at or not _fitting(_changed(space, space.cluster, ())):
        return []
    core = list(decisions)
    for decision in decisions:
        if time.monotonic() > stop_at:
            return []
        rest = [other for other in core if other != decision]
        if not _fitting(_changed(space, space.cluster, rest)):
            core = rest
    return core


def _cures(
    space: Space, decisions: Sequence[_Decision], core: Sequence[_Decision], stop_at: float
) -> Iterator[Cure]:
    for freed in core:
        if time.monotonic() > stop_at:
            return
        changed = _changed(space, space.cluster, [d for d in decisions if d != freed])
        if found := _cheapest(changed, stop_at):
            if freed.pinned and freed.name in _DEGREES:
                value = str(getattr(found.plan, freed.name))
                text = f"leave {freed.option} to the search: {freed.name}={value} fits"
            else:
                value, text = "", f"release {freed.option}: {_summary(found)} fits"
            yield _priced(Cure(freed.option, value, text), found)
    multiple = 2
    while multiple <= _LARGEST and time.monotonic() <= stop_at:
        nodes = space.cluster.nodes * multiple
        if found := _cheapest(_enlarged(space, multiple, decisions), stop_at):
            text = f"use {nodes} nodes ({found.plan.world_size} ranks): {_summary(found)} fits"
            option = "--nodes" if len(space.cluster.types) == 1 else "--cluster"
            yield _priced(Cure(option, str(nodes), text), found)
            return
        multiple *= 2


def _priced(cure: Cure, found: Candidate) -> Cure:
    step_s = found.estimate.step_time_s
    return replace(cure, text=f"{cure.text}, {seconds(step_s)} a step", step_s=step_s)


def _cheapest(space: Space | None, stop_at: float) -> Candidate | None:
    """The fastest plan that a short search finds, if one fits."""
    if space is None or not (fitting := _fitting(space)):
        return None
    tree = BranchAndBound(space, gap=0.02, stop_at=stop_at, most_looks=_LOOKS)
    tree.run()
    return min((fitting, *tree.found), key=lambda candidate: candidate.estimate.step_time_s)


def _summary(candidate: Candidate) -> str:
    plan = candidate.plan
    decided = {name: getattr(plan, name) for name in ("pp", "tp", "fsdp", "zero", "recompute")}
    return ", ".join(f"{name}={value}" for name, value in decided.items())


def _enlarged(space: Space, multiple: int, decisions: Sequence[_Decision]) -> Space | None:
    try:
        cluster = space.cluster.times(multiple)
    except AutoplanError:
        return None
    return _changed(space, cluster, decisions)


def _changed(space: Space, cluster: AnyCluster, decisions: Sequence[_Decision]) -> Space | None:
    """The same question on another cluster or under other decisions, if it can be asked."""
    pin = {decision.name: decision.value for decision in decisions if decision.pinned}
    forbid = [(decision.name, decision.value) for decision in decisions if not decision.pinned]
    try:
        return space.changed(cluster, Pins.parse(pin, space.job, cluster, forbid))
    except AutoplanError:
        return None


def _frugal(space: Space) -> list[Degrees]:
    # 1F1B keeps the least; others stand among the candidates where it cannot run, or is not asked for.
    frugal = [degrees for degrees in space.candidates if degrees.schedule is Schedule.ONE_F_ONE_B]
    return sorted(frugal or space.candidates, key=lambda degrees: (space.least_bytes(degrees), degrees))[
        :_TRIED
    ]


def _fitting(space: Space | None) -> Candidate | None:
    """A plan that fits, if one of the most frugal candidates has one."""
    if space is None:
        return None
    for degrees in _frugal(space):
        if space.least_bytes(degrees) > space.limit_bytes:
            break
        for choice in space.choices(degrees):
            if space.choice_bound_s(degrees, choice) < math.inf and (staging := space.solve(degrees, choice)):
                return space.candidate(degrees, choice, staging.stages)
    return None


def _needed_bytes(space: Space, degrees: Degrees) -> float:
    """Peak memory when the chain is cut evenly and recomputes all it may."""
    units = len(space.chain.units)
    count = degrees.pp * degrees.vpp
    ends = [round(stage * units / count) for stage in range(count + 1)]
    rerun = frozenset() if space.pins.recompute == NONE else space.repeats
    stages = [
        Assignment(start, stop, rerun & frozenset(range(start, stop))) for start, stop in pairwise(ends)
    ]
    plans = (space.candidate(degrees, choice, stages) for choice in space.choices(degrees))
    return min(candidate.estimate.peak_memory_bytes for candidate in plans)
