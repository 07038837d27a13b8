"""Bytes on the worst moment of a stage's step, by owner.

Model state as stock FSDP2 keeps it (P elements on this tp rank, d = fsdp · cp, c and M the bytes of the
compute and the master dtype, u the elements of the largest unit):

    zero   masters, moments   gradients         gathered copy
    0      M·P                M·P               c·P
    1      M·P/d              M·P               c·P
    2      M·P/d              M·P/d + M·u       c·P
    3      M·P/d              M·P/d + M·u       c of the two largest neighbours

M·u is the buffer that gradients were reduced in last: it stays until the next reduction, over the worst moment,
which is where the loss's backward begins. Zero 0 in one dtype needs neither it nor a copy. Under zero
0 and 1 gradients add up whole, in the master dtype, and are reduced when activations have gone.

Activations: what the schedule's order of passes keeps at its worst moment (``cost.pipeline.activations``);
with 1F1B stage s of p holds min(m, p - s) micro-batches (Narayanan et al., 2021, section 2.2.1). A unit
keeps of each what its policy says (``cost.keep``: all that backward reads, its input alone, or something between),
and the rest too of one of them at a time, while its own backward works. Between the halves of a backward, a stage keeps what its products dW read.

A step of one micro-batch without a pipeline has no gradients before activations go: as its backward passes through the
units, what each kept and its gathered copy give place to its gradients (which zero 1 shards at once, too). So a unit
takes the larger of the two, which is the worst moment where it is the same one of all units, and never below it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import compress, pairwise
from typing import TYPE_CHECKING

from autoplan.cost.degrees import Degrees
from autoplan.cost.estimate import MemoryEstimate
from autoplan.cost.keep import Keep
from autoplan.cost.pipeline.activations import peak_activation_bytes
from autoplan.cost.unit import UnitCost
from autoplan.plan.schedule import Schedule

if TYPE_CHECKING:
    from autoplan.hardware import Device
    from autoplan.plan import Job

__all__ = [
    "ALLOCATOR_SLACK",
    "HEADROOM",
    "StageLoad",
    "StateRates",
    "activation_bytes",
    "at_work",
    "fixed_reserve_bytes",
    "in_flight",
    "largest_pair",
    "limit_bytes",
    "rank_memory",
    "reduced_bytes",
    "state_bytes",
]

ALLOCATOR_SLACK = 0.08
"""Reserved over allocated memory, less one, at the 95th percentile of 43 runs (typical 0.04): a plan that
runs out of memory is worse than one that is a little slower."""

_FIXED_BYTES = {"cuda": 2.0e9, "cpu": 0.1e9}
"""Context, library workspaces and communicators, in the middle of 1.5 to 2.5 GB for a GPU; assumed, not
measured."""


HEADROOM = 0.1
"""Share of a device's usable memory that plans leave free: what is not modelled (fragmentation beyond the
slack, a longer batch, another process) must not end a run."""


def limit_bytes(device: Device) -> float:
    """Bytes that a plan may use of a device."""
    return float(device.usable_bytes) * (1 - HEADROOM)


def in_flight(stage: int, stages: int, micro_batches: int) -> int:
    """Micro-batches whose activations ``stage`` holds at once under 1F1B."""
    return min(micro_batches, stages - stage)


@dataclass(frozen=True, slots=True)
class StateRates:
    """The table above as bytes per element of this tp rank.

    Args:
        master, optimizer: of every parameter, and of every one that trains.
        gradient: kept from one micro-batch to the next.
        late_gradient: of a step of one micro-batch, which come while activations go.
        copy: the compute-dtype copy of every parameter; 0 if only some units are gathered at a time.
        gathered_units: the copy of the two units gathered at a time.
        reduced_units: the gradient of a unit that was reduced last.
    """

    master: float
    optimizer: float
    gradient: float
    late_gradient: float
    copy: float
    gathered_units: float
    reduced_units: float

    @classmethod
    def of(cls, degrees: Degrees, job: Job) -> StateRates:
        full, compute = float(job.precision.master_bytes), float(job.precision.compute_bytes)
        master = full / degrees.shard_ranks
        wrapped = compute != full or degrees.zero > 0 or degrees.ep > 1
        late = has_late_gradients(degrees)
        return cls(
            master=master,
            optimizer=master * job.optimizer_states,
            gradient=0.0 if late else full if degrees.zero < 2 else master,
            late_gradient=master if late else 0.0,
            copy=compute if wrapped and degrees.zero < 3 else 0.0,
            gathered_units=compute if degrees.zero == 3 else 0.0,
            reduced_units=full if wrapped and (late or degrees.zero >= 2) else 0.0,
        )


def has_late_gradients(degrees: Degrees) -> bool:
    """True for a step of one micro-batch without a pipeline."""
    return degrees.pp == degrees.num_micro_batches == 1


def fixed_reserve_bytes(device: Device) -> float:
    """Bytes that no tensor of ours owns, whatever the plan."""
    return _FIXED_BYTES[device.kind]


@dataclass(frozen=True, slots=True)
class StageLoad:
    """What one stage holds: its units, what each keeps, and what it sends on for one micro-batch and keeps until
    its backward."""

    units: Sequence[UnitCost]
    keeps: Sequence[Keep]
    sent_bytes: float

    @property
    def kept_bytes(self) -> float:
        """Bytes that the forward of one micro-batch leaves."""
        return sum(keep.kept_bytes for keep in self.keeps) + self.sent_bytes

    @property
    def half_bytes(self) -> float:
        """Bytes of it between the halves of its backward."""
        return sum(unit.weight_half_bytes for unit in self.units)


def activation_bytes(loads: Sequence[StageLoad], degrees: Degrees) -> list[float]:
    """Of each pipeline rank, the most that forwards have left for backwards to come."""
    p, v, m = degrees.pp, degrees.vpp, degrees.num_micro_batches
    kept = [load.kept_bytes for load in loads]
    if degrees.schedule is Schedule.ONE_F_ONE_B:
        return [in_flight(stage, p, m) * each for stage, each in enumerate(kept)]
    halves = [load.half_bytes for load in loads]
    return peak_activation_bytes(degrees.schedule, p, v, m, kept, halves).tolist()


def rank_memory(
    loads: Sequence[StageLoad], activations: float, degrees: Degrees, job: Job, device: Device
) -> MemoryEstimate:
    """The peak of one pipeline rank, which holds the stages ``loads``."""
    units = [unit for load in loads for unit in load.units]
    parameters = sum(unit.parameters for unit in units)
    trainable = sum(unit.trainable for unit in units)
    stored = sum(unit.stored(degrees) for unit in units)
    stepped = sum(unit.stepped(degrees) for unit in units)
    rates = StateRates.of(degrees, job)
    pair = max(largest_pair(load.units) for load in loads)
    gradients = (trainable if degrees.zero < 2 else stepped) * rates.gradient
    copies = parameters * rates.copy
    if rates.late_gradient:
        late = [unit.stepped(degrees) * rates.late_gradient for unit in units]
        copied = [unit.parameters * rates.copy for unit in units]
        kept = [keep.kept_bytes for load in loads for keep in load.keeps]
        early = [k + c >= g for k, c, g in zip(kept, copied, late, strict=True)]
        activations, copies = sum(compress(kept, early)), sum(compress(copied, early))
        gradients = sum(g for g, before in zip(late, early, strict=True) if not before)
    working = [
        unit.workspace_bytes + keep.again_bytes
        for load in loads
        for unit, keep in zip(load.units, load.keeps, strict=True)
    ]
    reduced, workspace = at_work(units, working, rates)
    owners = {
        "parameters": stored * rates.master,
        "gradients": gradients + reduced,
        "optimizer": stepped * rates.optimizer,
        "activations": activations,
        "gathered": copies + rates.gathered_units * pair,
        "workspace": workspace,
    }
    reserve = fixed_reserve_bytes(device) + ALLOCATOR_SLACK * sum(owners.values())
    return MemoryEstimate(**owners, reserve=reserve)


def at_work(units: Sequence[UnitCost], working: Sequence[float], rates: StateRates) -> tuple[float, float]:
    """The buffer of gradients that were reduced last, and what a unit's backward works with beside it; ``working``: bytes
    that each unit's does. Where all gradients are late, the last unit of the chain works before there is such a buffer."""
    reduced = reduced_bytes(units, rates)
    *others, last = working
    if not rates.late_gradient:
        return reduced, max(working)
    if not others or last >= reduced + max(others):
        return 0.0, last
    return reduced, max(others)


def reduced_bytes(units: Sequence[UnitCost], rates: StateRates) -> float:
    """The gradients of the unit that was reduced last."""
    return rates.reduced_units * max(unit.trainable for unit in units)


def state_bytes(unit: UnitCost, degrees: Degrees, rates: StateRates) -> float:
    """Masters, moments, gradients and copy of one unit: what grows with the number of units. Without the copy where it
    gives place to late gradients."""
    stepped = unit.stepped(degrees)
    gradients = unit.trainable if degrees.zero < 2 else stepped
    kept = unit.stored(degrees) * rates.master
    if not rates.late_gradient:
        kept += unit.parameters * rates.copy
    return kept + stepped * rates.optimizer + gradients * rates.gradient


def largest_pair(units: Sequence[UnitCost]) -> float:
    """Elements of the two largest neighbours: the unit at work and the one gathered ahead."""
    return max((a.parameters + b.parameters for a, b in pairwise(units)), default=units[0].parameters)
