"""Bytes on the worst moment of a stage's step, by owner.

Model state as stock FSDP2 keeps it (P elements on this tp rank, d = fsdp, c and M the bytes of the
compute and the master dtype, u the elements of the largest unit):

    zero   masters, moments   gradients         gathered copy
    0      M·P                M·P + M·u         c·P
    1      M·P/d              M·P + M·u         c·P
    2      M·P/d              M·P/d + 2M·u      c·P
    3      M·P/d              M·P/d + 2M·u      c of the two largest neighbours

The M·u are buffers that gradients are reduced in. One data rank in one dtype needs neither them nor a
copy. Under zero 0 and 1 gradients add up whole, in the master dtype, until the last micro-batch.

Activations: with 1F1B stage s of p holds min(m, p - s) micro-batches (Narayanan et al., 2021,
section 2.2.1). A recomputed unit keeps its input of each, and all it saves of one of them at a time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

from autoplan.cost.degrees import Degrees
from autoplan.cost.estimate import MemoryEstimate
from autoplan.cost.unit import UnitCost

if TYPE_CHECKING:
    from autoplan.hardware import Device
    from autoplan.plan import Job

__all__ = [
    "ALLOCATOR_SLACK",
    "HEADROOM",
    "StateRates",
    "fixed_reserve_bytes",
    "in_flight",
    "largest_pair",
    "limit_bytes",
    "stage_memory",
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
        copy: the compute-dtype copy of every parameter; 0 if only some units are gathered at a time.
        gathered_units: the copy of the two units gathered at a time.
        reduced_units: the gradient of the units being reduced, times how many they are.
    """

    master: float
    optimizer: float
    gradient: float
    copy: float
    gathered_units: float
    reduced_units: float

    @classmethod
    def of(cls, degrees: Degrees, job: Job) -> StateRates:
        full, compute = float(job.precision.master_bytes), float(job.precision.compute_bytes)
        master = full / degrees.fsdp if degrees.zero else full
        wrapped = compute != full or degrees.data_ranks > 1
        return cls(
            master=master,
            optimizer=master * job.optimizer_states,
            gradient=full if degrees.zero < 2 else master,
            copy=compute if wrapped and degrees.zero < 3 else 0.0,
            gathered_units=compute if degrees.zero == 3 else 0.0,
            reduced_units=full * (1 if degrees.zero < 2 else 2) if wrapped else 0.0,
        )


def fixed_reserve_bytes(device: Device) -> float:
    """Bytes that no tensor of ours owns, whatever the plan."""
    return _FIXED_BYTES[device.kind]


def stage_memory(
    units: Sequence[UnitCost],
    recompute: Sequence[bool],
    sent_bytes: float,
    stage: int,
    degrees: Degrees,
    job: Job,
    device: Device,
) -> MemoryEstimate:
    """The peak of one stage.

    Args:
        units, recompute: the stage's units, and which of them run their forward again.
        sent_bytes: what the stage sends on for one micro-batch, and keeps until its backward.
    """
    held = in_flight(stage, degrees.pp, degrees.num_micro_batches)
    parameters = sum(unit.parameters for unit in units)
    trainable = sum(unit.trainable for unit in units)
    rates = StateRates.of(degrees, job)
    kept = sum(u.input_bytes if again else u.saved_bytes for u, again in zip(units, recompute, strict=True))
    rerun = max((u.saved_bytes for u, again in zip(units, recompute, strict=True) if again), default=0.0)
    owners = {
        "parameters": parameters * rates.master,
        "gradients": trainable * rates.gradient + rates.reduced_units * max(unit.trainable for unit in units),
        "optimizer": trainable * rates.optimizer,
        "activations": held * (kept + sent_bytes),
        "gathered": parameters * rates.copy + rates.gathered_units * largest_pair(units),
        "workspace": rerun + max(unit.workspace_bytes for unit in units),
    }
    reserve = fixed_reserve_bytes(device) + ALLOCATOR_SLACK * sum(owners.values())
    return MemoryEstimate(**owners, reserve=reserve)


def largest_pair(units: Sequence[UnitCost]) -> float:
    """Elements of the two largest neighbours: the unit at work and the one gathered ahead."""
    return max((a.parameters + b.parameters for a, b in pairwise(units)), default=units[0].parameters)
