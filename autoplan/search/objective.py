"""What a training run takes in days, money and energy, from a plan's step time.

    steps   tokens of the run / tokens of a step
    cost    steps · step · devices · price of a device's hour
    energy  steps · devices · (idle power · step + (full power - idle power) · busy seconds)

A device counts as busy while it computes, the mean of all devices; while it waits (for collectives, in the bubble)
it draws its power at rest, which communication exceeds: the energy is a lower estimate. On one cluster money grows
with the step alone, so the cheapest plan of a cluster is its fastest one; energy also counts what is computed twice.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from autoplan.search.goal import Objective, steps_of

if TYPE_CHECKING:
    from autoplan.hardware import AnyCluster
    from autoplan.plan import Job
    from autoplan.search.result import Candidate

__all__ = ["Run", "run_of"]


@dataclass(frozen=True, slots=True)
class Run:
    """A run of ``tokens`` under a plan. ``cost`` is in US dollars, ``energy_kwh`` of the devices alone; None where
    the profile does not say what it needs."""

    tokens: float
    seconds: float
    cost: float | None
    energy_kwh: float | None

    @property
    def days(self) -> float:
        return self.seconds / 86_400

    def to_json(self) -> dict[str, float | None]:
        """As ``--json`` prints it."""
        return {"tokens": self.tokens, "days": self.days, "cost": self.cost, "energy_kwh": self.energy_kwh}

    def of(self, objective: Objective) -> float | None:
        """The figure that ``objective`` is about."""
        return {
            Objective.TIME: self.seconds,
            Objective.COST: self.cost,
            Objective.ENERGY: self.energy_kwh,
        }[objective]


def run_of(
    candidate: Candidate, tokens: float, job: Job, cluster: AnyCluster, price: float | None = None
) -> Run:
    """Figures of a run of ``tokens`` (of samples, where samples are no sequences); ``price`` is US dollars for an
    hour of one device, and replaces the profile's. The energy
    of several types of device is not told."""
    estimate = candidate.estimate
    steps = steps_of(tokens, job)
    device, ranks = cluster.types[0].device, cluster.world_size
    seconds = steps * estimate.step_time_s
    hourly = cluster.price_per_hour if price is None else ranks * price
    cost = None if hourly is None else seconds / 3600 * hourly
    energy = None
    if len(cluster.types) == 1 and device.tdp_w is not None and device.idle_w is not None:
        joules = device.idle_w * estimate.step_time_s + (device.tdp_w - device.idle_w) * estimate.busy_s
        energy = steps * ranks * joules / 3.6e6
    return Run(tokens, seconds, cost, energy)
