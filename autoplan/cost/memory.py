"""Bytes on the worst moment of a stage's step, by owner.

Model state as stock FSDP2 keeps it (P elements on this tp rank, d = fsdp, c and M the bytes of the
compute and the master dtype, u the largest unit):

    zero   masters, moments   gradients                  gathered copy
    0      M·P                M·P                        c·P, none in one dtype on one data rank
    1      M·P/d              max(c·P, M·P/d) + c·u      c·P
    2      M·P/d              M·P/d + 2c·u               c·P
    3      M·P/d              M·P/d + 2c·u               the two largest neighbours

Activations: with 1F1B stage s of p holds min(m, p - s) micro-batches (Narayanan et al., 2021,
section 2.2.1). A recomputed unit keeps its input of each, and all it saves of one of them at a time.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

from autoplan.cost.degrees import Degrees
from autoplan.cost.estimate import MemoryEstimate
from autoplan.cost.unit import UnitCost

if TYPE_CHECKING:
    from autoplan.hardware import Device
    from autoplan.plan import Job

__all__ = ["ALLOCATOR_SLACK", "fixed_reserve_bytes", "in_flight", "keeps_copy", "stage_memory"]

ALLOCATOR_SLACK = 0.04
"""Reserved over allocated memory, less one: typical of 43 runs (1.08 at the 95th percentile)."""

_FIXED_BYTES = {"cuda": 1.5e9, "cpu": 0.1e9}
"""Communicators and library workspaces beside what ``Device.usable_bytes`` already leaves out. For a
GPU the low end of 1.5 to 2.5 GB with the context; assumed, not measured."""


def in_flight(stage: int, stages: int, micro_batches: int) -> int:
    """Micro-batches whose activations ``stage`` holds at once under 1F1B."""
    return min(micro_batches, stages - stage)


def keeps_copy(degrees: Degrees, job: Job) -> bool:
    """True if the runtime computes on a copy of the masters: in another dtype, or gathered."""
    return job.precision.compute_bytes != job.precision.master_bytes or degrees.data_ranks > 1


def fixed_reserve_bytes(device: Device) -> float:
    """Bytes that no tensor of ours owns, whatever the plan."""
    return _FIXED_BYTES[device.kind]


def stage_memory(
    units: Sequence[UnitCost],
    recompute: Sequence[bool],
    shared: UnitCost | None,
    sent_bytes: float,
    stage: int,
    degrees: Degrees,
    job: Job,
    device: Device,
) -> MemoryEstimate:
    """The peak of one stage.

    Args:
        units, recompute: the stage's units, and which of them run their forward again.
        shared: parameters that ``units`` counts twice because they are tied.
        sent_bytes: what the stage sends on for one micro-batch, and keeps until its backward.
    """
    held = in_flight(stage, degrees.pp, degrees.num_micro_batches)
    parameters = sum(unit.parameters for unit in units) - (shared.parameters if shared else 0.0)
    trainable = sum(unit.trainable for unit in units) - (shared.trainable if shared else 0.0)
    masters = job.precision.master_bytes / (degrees.fsdp if degrees.zero else 1)

    kept = sum(u.input_bytes if again else u.saved_bytes for u, again in zip(units, recompute, strict=True))
    rerun = max((u.saved_bytes for u, again in zip(units, recompute, strict=True) if again), default=0.0)
    owners = {
        "parameters": parameters * masters,
        "gradients": _gradient_bytes(units, trainable, degrees, job),
        "optimizer": trainable * masters * job.optimizer_states,
        "activations": held * (kept + sent_bytes),
        "gathered": _gathered_bytes(units, parameters, degrees, job),
        "workspace": rerun + max(unit.workspace_bytes for unit in units),
    }
    reserve = fixed_reserve_bytes(device) + ALLOCATOR_SLACK * sum(owners.values())
    return MemoryEstimate(**owners, reserve=reserve)


def _gradient_bytes(units: Sequence[UnitCost], trainable: float, degrees: Degrees, job: Job) -> float:
    master, compute = job.precision.master_bytes, job.precision.compute_bytes
    if not degrees.zero:
        return master * trainable
    sharded = master * trainable / degrees.fsdp
    unit = compute * max(unit.trainable for unit in units)
    if degrees.zero == 1:
        return max(compute * trainable, sharded) + unit
    return sharded + 2 * unit


def _gathered_bytes(units: Sequence[UnitCost], parameters: float, degrees: Degrees, job: Job) -> float:
    if not keeps_copy(degrees, job):
        return 0.0
    if degrees.zero < 3:
        return job.precision.compute_bytes * parameters
    pair = max((a.parameters + b.parameters for a, b in pairwise(units)), default=units[0].parameters)
    return job.precision.compute_bytes * pair
