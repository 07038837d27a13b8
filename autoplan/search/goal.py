"""What a search has least of, and what no plan may exceed.

Time and cost go together on one cluster, where every device is paid for as long as the run takes. Energy is
another order: a device that waits draws its power at rest, so

    value   idle power · step + (full power - idle power) · busy seconds      joules of a device in a step

and its bound is the same of a bound of the step and of the least that the mean rank can be busy. A deadline and
a budget are both a longest step.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

from autoplan.errors import InputError, PlanError, ProfileError

if TYPE_CHECKING:
    from autoplan.cost.estimate import Estimate
    from autoplan.hardware import AnyCluster
    from autoplan.plan import Job

__all__ = ["Goal", "Objective", "require_power", "require_price", "steps_of"]


class Objective(StrEnum):
    """What to have least of."""

    TIME = "time"
    COST = "cost"
    ENERGY = "energy"


@dataclass(frozen=True, slots=True)
class Goal:
    """An objective on one cluster, and limits of a whole run.

    Args:
        max_days, max_cost: plans that take longer, or more US dollars, are not allowed.
        days_of_s, cost_of_s: what a second of a step makes of a run.
        idle_w, full_w: watts of a device at rest and at work, for the objective of energy.
    """

    objective: Objective = Objective.TIME
    max_days: float = math.inf
    max_cost: float = math.inf
    days_of_s: float = 0.0
    cost_of_s: float = 0.0
    idle_w: float = 0.0
    full_w: float = 0.0

    @classmethod
    def of(
        cls,
        objective: Objective,
        job: Job,
        cluster: AnyCluster,
        *,
        tokens: float | None = None,
        price: float | None = None,
        max_cost: float | None = None,
        max_days: float | None = None,
    ) -> Goal:
        """``price`` is US dollars for an hour of one device, and replaces the profile's.

        Raises ProfileError if the profile lacks a price or a power that is needed, and InputError for a limit of a
        run whose ``tokens`` are not said.
        """
        if tokens is None and (max_cost is not None or max_days is not None):
            name = "--max-days" if max_cost is None else "--max-cost"
            expected = f"the tokens of the run that {name} is about"
            raise InputError("--tokens", None, expected, "give --tokens 1e12")
        steps = 0.0 if tokens is None else steps_of(tokens, job)
        paid = max_cost is not None or objective is Objective.COST
        hourly = require_price(cluster, price) if paid else 0.0
        idle_w, full_w = require_power(cluster) if objective is Objective.ENERGY else (0.0, 0.0)
        return cls(
            objective,
            math.inf if max_days is None else max_days,
            math.inf if max_cost is None else max_cost,
            steps / 86_400,
            steps * cluster.world_size * hourly / 3600,
            idle_w,
            full_w,
        )

    @property
    def limited(self) -> bool:
        """True if some plan is not allowed."""
        return self.max_days < math.inf or self.max_cost < math.inf

    def allows(self, step_s: float) -> bool:
        """Whether a plan may have such a step."""
        return step_s * self.days_of_s <= self.max_days and step_s * self.cost_of_s <= self.max_cost

    def value(self, estimate: Estimate) -> float:
        """What a plan has of it; infinite where it is not allowed."""
        return self.bound(estimate.step_time_s, estimate.busy_s)

    def bound(self, step_s: float, busy_s: float) -> float:
        """The least that plans have of it whose steps take ``step_s`` or more with a mean rank busy for ``busy_s``."""
        if not self.allows(step_s):
            return math.inf
        if self.objective is not Objective.ENERGY:
            return step_s
        return self.idle_w * step_s + (self.full_w - self.idle_w) * busy_s


def steps_of(tokens: float, job: Job) -> float:
    """Optimizer steps of a run of ``tokens`` (of samples, where samples are no sequences)."""
    return tokens / (job.global_batch * max(job.tokens_per_sample, 1))


def require_price(cluster: AnyCluster, price: float | None) -> float:
    """US dollars for an hour of one device (of the mean one, where they differ). Raises ProfileError if nobody says."""
    known = cluster.price_per_hour
    hourly = price if price is not None or known is None else known / cluster.world_size
    if hourly is None:
        raise ProfileError(
            f"{cluster.name}: device.price_per_hour",
            None,
            "US dollars for one device's hour",
            f"add it to the profile, or give a price for {cluster.name}: --price",
        )
    return hourly


def require_power(cluster: AnyCluster) -> tuple[float, float]:
    """Watts of a device at rest and at work. Raises ProfileError if the profile does not say,
    and PlanError for several types of device."""
    only, *others = cluster.types
    if others:
        raise PlanError(
            "objective", "energy", f"time or cost, on {cluster.devices_text}", "use one type of device"
        )
    device = only.device
    idle_w, full_w = device.idle_w, device.tdp_w
    for name, value in (("tdp_w", full_w), ("idle_w", idle_w)):
        if value is None:
            raise ProfileError(
                f"{cluster.name}: device.{name}", None, "watts of one device", "add it to the profile"
            )
    assert idle_w is not None and full_w is not None
    return idle_w, full_w
