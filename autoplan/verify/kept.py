"""What backward reads of a unit on one rank: every storage once, in each layout that it is read in.

Under a policy some of it is made again, or waits on the host. One sweep from the last thing that ran back to the
first tells which: by the time it comes to what made a storage, all that reads the storage has been seen.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from autoplan.graph.layout import REPLICATE, REPLICATE_STAR, Layout
from autoplan.verify.verdict import Illegal
from autoplan.verify.ways import Way

if TYPE_CHECKING:
    from autoplan.graph.ir import Block

__all__ = ["Ledger", "Left", "ledger_of"]

_Home = tuple[str, str]
"""A value that lies in a storage of its own, and how."""


@dataclass(frozen=True, slots=True)
class Left:
    """What one forward leaves of a unit: bytes on the device, and on the host; and what the backward does again for
    it, in seconds of computing and of sending, with the bytes that are there again."""

    kept: float
    again_s: float = 0.0
    again_sent_s: float = 0.0
    again_bytes: float = 0.0
    host: float = 0.0


@dataclass(frozen=True, slots=True)
class _Ran:
    """An op, or a change of layout: what it reads, what it makes (None for a view), its own bytes that backward
    reads, whether it may run again."""

    name: str
    reads: frozenset[_Home]
    makes: _Home | None
    inside: float = 0.0
    repeatable: bool = True


@dataclass(slots=True)
class Ledger:
    """Storages of a unit with their bytes, those that its backward reads, and all that ran, in order."""

    sizes: dict[_Home, float] = field(default_factory=dict)
    read: set[_Home] = field(default_factory=set)
    ran: list[_Ran] = field(default_factory=list)
    entered: dict[str, _Home] = field(default_factory=dict)
    views: set[str] = field(default_factory=set)

    @property
    def kept(self) -> float:
        """Bytes that backward reads."""
        return sum(one.inside for one in self.ran) + sum(self.sizes.get(place, 0.0) for place in self.read)

    def under(self, policy: Mapping[str, str], seconds: Mapping[str, tuple[float, float]]) -> Left:
        """What ``policy`` leaves; ``seconds``: computing and sending of each op and change of layout.

        Raises Illegal for what cannot run again, or is not there.
        """
        self._check(policy)
        needed, again, inside, away = set(self.read), [0.0, 0.0], 0.0, 0.0
        host_names = {name for name, action in policy.items() if action == "offload"}
        parked = {self.entered[name] for name in host_names & self.entered.keys()}
        for one in reversed(self.ran):
            if policy.get(one.name) == "recompute" and (one.inside or one.makes in needed):
                needed -= {one.makes}
                needed |= one.reads
                for kind in (0, 1):
                    again[kind] += seconds[one.name][kind]
            elif one.name in host_names:
                away += one.inside
                parked |= {one.makes}
            else:
                inside += one.inside
        kept = inside + sum(self.sizes.get(place, 0.0) for place in needed - parked)
        host = away + sum(self.sizes.get(place, 0.0) for place in needed & parked)
        return Left(kept, again[0], again[1], max(self.kept - kept, 0.0), host)

    def _check(self, policy: Mapping[str, str]) -> None:
        may = {one.name: one.repeatable for one in self.ran}
        for name, action in policy.items():
            if name in self.views:
                continue  # kept, or not, with what it is a view of
            if action not in ("recompute", "offload"):
                raise Illegal(f"{name} is to {action}, which is nothing that a policy does")
            if name not in may and not (action == "offload" and name in self.entered):
                raise Illegal(f"{name} is nothing that runs in this block")
            if action == "recompute" and not may[name]:
                raise Illegal(f"{name} does not give the same when it runs again")


def ledger_of(
    block: Block,
    ways: Mapping[str, Way],
    made: Mapping[str, Layout],
    leaves: Mapping[str, Layout],
    degree: int,
) -> Ledger:
    """The ledger of one of ``degree`` ranks; ``made``: how each value lies where it comes from, and ``leaves``: how
    those that the unit passes on do there."""
    first = {saved.root: saved.nbytes for op in block.ops for saved in op.saved if saved.root}
    home: dict[str, _Home] = {name: (name, "as it is") for name in made}
    found = Ledger()
    for name in block.inputs:
        if block.values[name].requires_grad:
            found.sizes[home[name]] = block.values[name].nbytes / (degree if made[name].is_shard else 1)
            found.entered[name] = home[name]
    apart = set()

    def at(name: str, wanted: Layout) -> _Home:
        have, value = made[name], block.values[name]
        if not value.requires_grad:
            have, wanted = (REPLICATE if layout == REPLICATE_STAR else layout for layout in (have, wanted))
        if str(have).rstrip("*") == str(wanted).rstrip("*"):
            return home[name]
        place = name, str(wanted)
        if place not in found.sizes:
            found.sizes[place] = value.nbytes / (degree if wanted.is_shard else 1)
            found.ran.append(_Ran(f"{name}:{wanted}", frozenset({home[name]}), place))
        return place

    seen = set(block.inputs) | set(block.parameters) | set(block.buffers)
    for op in block.ops:
        way = ways[op.name]
        places = {name: at(name, layout) for name, layout in zip(op.inputs, way.inputs, strict=True)}
        if op.alias:
            home[op.output] = places[op.alias]
            found.views.add(op.name)
        else:
            whole = 0 if op.output in apart else first.get(op.output, block.values[op.output].nbytes)
            found.sizes[home[op.output]] = whole / (degree if way.output.is_shard else 1)
        reads = frozenset(places.values())
        places[op.output] = home[op.output]
        seen.add(op.output)
        found.read |= {places[name] for name in op.keeps}
        own = [saved for saved in op.saved if saved.root not in seen]
        apart |= {saved.root for saved in own}
        found.ran.append(
            _Ran(
                op.name,
                reads,
                None if op.alias else home[op.output],
                sum(saved.nbytes / (degree if way.shares else 1) for saved in own),
                op.again and not op.alias,
            )
        )
    for name, layout in leaves.items():
        at(name, layout)
    return found
