"""What a training run takes in days, money and energy, from a plan's step time.

    steps   tokens of the run / tokens of a step
    cost    steps · step · devices · price of a device's hour
    energy  steps · devices · (idle power · step + (full power - idle power) · busy seconds)

A device counts as busy while it computes; while it waits (for collectives, in the bubble) it draws its power at
rest, which communication exceeds: the energy is a lower estimate. On one cluster money grows with the step alone,
so the cheapest plan of a cluster is its fastest one; energy also counts what is computed twice.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

from autoplan.errors import ProfileError
from autoplan.search.result import Candidate

if TYPE_CHECKING:
    from autoplan.hardware import Cluster
    from autoplan.plan import Job

__all__ = ["Objective", "Run", "require_power", "require_price", "run_of"]

_BUSY = ("compute", "recompute", "optimizer")


class Objective(StrEnum):
    """What to have least of."""

    TIME = "time"
    COST = "cost"
    ENERGY = "energy"


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

    def of(self, objective: Objective) -> float | None:
        """The figure that ``objective`` is about."""
        return {
            Objective.TIME: self.seconds,
            Objective.COST: self.cost,
            Objective.ENERGY: self.energy_kwh,
        }[objective]


def run_of(
    candidate: Candidate, tokens: float, job: Job, cluster: Cluster, price: float | None = None
) -> Run:
    """Figures of a run of ``tokens`` (of samples, where samples are no sequences); ``price`` is US dollars for an
    hour of one device, and replaces the profile's."""
    estimate = candidate.estimate
    steps = tokens / (job.global_batch * max(job.tokens_per_sample, 1))
    device, ranks = cluster.device, cluster.world_size
    seconds = steps * estimate.step_time_s
    hourly = device.price_per_hour if price is None else price
    cost = None if hourly is None else seconds / 3600 * ranks * hourly
    energy = None
    if device.tdp_w is not None and device.idle_w is not None:
        busy = sum(estimate.parts.get(name, 0.0) for name in _BUSY)
        joules = device.idle_w * estimate.step_time_s + (device.tdp_w - device.idle_w) * busy
        energy = steps * ranks * joules / 3.6e6
    return Run(tokens, seconds, cost, energy)


def require_price(cluster: Cluster, price: float | None) -> None:
    """Raises ProfileError if nobody says what the cluster costs."""
    if price is None and cluster.device.price_per_hour is None:
        raise ProfileError(
            f"{cluster.name}: device.price_per_hour",
            None,
            "US dollars for one device's hour",
            f"add it to the profile, or give --price {cluster.name}=2.50",
        )


def require_power(cluster: Cluster) -> None:
    """Raises ProfileError if the profile does not say what power a device draws."""
    for name in ("tdp_w", "idle_w"):
        if getattr(cluster.device, name) is None:
            raise ProfileError(
                f"{cluster.name}: device.{name}", None, "watts of one device", "add it to the profile"
            )
