"""When nothing fits: what is in conflict, and the smallest changes that would mend it.

A change is tried by asking of the most frugal candidates whether any assignment of units to stages fits
in memory; time plays no part.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from autoplan.cost.degrees import Degrees
from autoplan.cost.memory import limit_bytes
from autoplan.cost.step import Assignment
from autoplan.errors import AutoplanError
from autoplan.search.pins import Pins
from autoplan.search.result import Candidate, Cure
from autoplan.search.space import Space
from autoplan.units import bytes_binary

if TYPE_CHECKING:
    from autoplan.hardware import Cluster

__all__ = ["explain"]

_TRIED = 8  # of the candidates that need least; if none of them fits, hardly any other does
_LARGEST = 64  # times as many nodes as there are


def explain(space: Space, pin: Mapping[str, Any]) -> tuple[str, tuple[Cure, ...]]:
    """The conflict in a sentence, and the cures that were found: pins to release, then nodes to add."""
    needed = min(_needed_bytes(space, degrees) for degrees in _frugal(space))
    held = f" with {_written(pin)}" if pin else ""
    device = space.cluster.device
    conflict = (
        f"the most frugal plan of {space.chain.name}{held} on {space.cluster.world_size} ranks needs "
        f"{bytes_binary(needed)} on the worst of them, and {device.name} leaves {bytes_binary(limit_bytes(device))} to a plan"
    )
    cures = tuple(_cures(space, pin))
    if not cures:
        text = f"use devices with at least {bytes_binary(needed)} of memory"
        cures = (Cure("--cluster", bytes_binary(needed), text),)
    return conflict, cures


def _written(pin: Mapping[str, Any]) -> str:
    return ", ".join(f"{name}={value}" for name, value in pin.items())


def _cures(space: Space, pin: Mapping[str, Any]) -> Iterator[Cure]:
    released = False
    for name in pin:
        freed = {key: value for key, value in pin.items() if key != name}
        if fitting := _fitting(_changed(space, space.cluster, freed)):
            value = str(getattr(fitting.plan, name))
            option = f"--{name.replace('_', '-')}"
            yield Cure(option, value, f"leave {option} to the search: {name}={value} fits")
            released = True
    if len(pin) > 1 and not released and (fitting := _fitting(_changed(space, space.cluster, {}))):
        options = " ".join(f"--{name.replace('_', '-')}" for name in pin)
        yield Cure(options, "", f"leave {options} to the search: {_summary(fitting)} fits")
    multiple = 2
    while multiple <= _LARGEST:
        nodes = space.cluster.nodes * multiple
        if fitting := _fitting(_enlarged(space, nodes, pin)):
            text = f"use {nodes} nodes ({fitting.plan.world_size} ranks): {_summary(fitting)} fits"
            yield Cure("--nodes", str(nodes), text)
            return
        multiple *= 2


def _summary(candidate: Candidate) -> str:
    plan = candidate.plan
    degrees = {"pp": plan.pp, "tp": plan.tp, "fsdp": plan.fsdp, "zero": plan.zero}
    return _written({**degrees, "recompute": plan.recompute})


def _enlarged(space: Space, nodes: int, pin: Mapping[str, Any]) -> Space | None:
    from autoplan.hardware import Cluster

    try:
        cluster = Cluster.of(space.cluster, nodes=nodes)
    except AutoplanError:
        return None
    return _changed(space, cluster, pin)


def _changed(space: Space, cluster: Cluster, pin: Mapping[str, Any]) -> Space | None:
    """The same question on another cluster or under other pins, if it can be asked."""
    try:
        return space.changed(cluster, Pins.parse(pin, space.job, cluster))
    except AutoplanError:
        return None


def _frugal(space: Space) -> list[Degrees]:
    return sorted(space.candidates, key=lambda degrees: (space.least_bytes(degrees), degrees))[:_TRIED]


def _fitting(space: Space | None) -> Candidate | None:
    """A plan that fits, if one of the most frugal candidates has one."""
    if space is None:
        return None
    for degrees in _frugal(space):
        if space.least_bytes(degrees) > limit_bytes(space.cluster.device):
            break
        for choice in space.choices(degrees):
            if space.choice_bound_s(degrees, choice) < math.inf and (staging := space.solve(degrees, choice)):
                return space.candidate(degrees, choice, staging.stages)
    return None


def _needed_bytes(space: Space, degrees: Degrees) -> float:
    """Peak memory when the chain is cut evenly and recomputes all it may."""
    units = len(space.chain.units)
    ends = [round(stage * units / degrees.pp) for stage in range(degrees.pp + 1)]
    rerun = frozenset() if space.pins.recompute is False else space.repeats
    stages = [
        Assignment(start, stop, rerun & frozenset(range(start, stop))) for start, stop in pairwise(ends)
    ]
    plans = (space.candidate(degrees, choice, stages) for choice in space.choices(degrees))
    return min(candidate.estimate.peak_memory_bytes for candidate in plans)
