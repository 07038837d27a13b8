"""The chain as runs of equal units, each with the rates that a linear program adds up."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from itertools import groupby
from typing import TYPE_CHECKING

from autoplan.cost.degrees import Degrees
from autoplan.cost.memory import StateRates, state_bytes
from autoplan.cost.stage import optimizer_s
from autoplan.cost.state_traffic import StateTraffic, state_traffic
from autoplan.cost.unit import UnitCost
from autoplan.search.optimist import least_cost

if TYPE_CHECKING:
    from autoplan.graph.ir import ModelGraph
    from autoplan.hardware import Cluster
    from autoplan.plan import Job

__all__ = ["Run", "best_runs", "chain_runs", "least_optimizer_s"]


@dataclass(frozen=True, slots=True)
class Run:
    """``count`` units of one kind, one after another, from ``start`` in the chain.

    Args:
        repeats: the unit may be recomputed (it is a copy of a repeated block).
        traffic: what the data axes send for one unit.
        optimizer_s: never more than a unit's share of a stage's optimizer step.
        state_bytes: masters, moments, gradients and copy that grow with the number of units.
        late_bytes, early_bytes: gradients of a unit that come as what it kept goes, and the copy that goes with it
            (see ``cost.memory``).
    """

    start: int
    count: int
    cost: UnitCost
    repeats: bool
    traffic: StateTraffic
    optimizer_s: float
    state_bytes: float
    late_bytes: float = 0.0
    early_bytes: float = 0.0

    def taken_bytes(self, kept_bytes: float) -> float:
        """What a unit that keeps so much takes beside its state, at the worst moment."""
        return max(kept_bytes + self.early_bytes, self.late_bytes)


def chain_runs(
    graph: ModelGraph, costs: Mapping[str, UnitCost], degrees: Degrees, job: Job, cluster: Cluster
) -> tuple[Run, ...]:
    """The runs of ``graph`` in order."""
    rates, runs, start = StateRates.of(degrees, job), [], 0
    whole = sum(costs[unit.kind].stepped(degrees) for unit in graph.units)
    for kind, units in groupby(graph.units, key=lambda unit: unit.kind):
        cost, count = costs[kind], len(list(units))
        own = cost.stepped(degrees)
        per_element = least_optimizer_s((own, whole), degrees, job, cluster)
        runs.append(
            Run(
                start=start,
                count=count,
                cost=cost,
                repeats=bool(graph.kinds[kind].path),
                traffic=state_traffic(cost, degrees, job.precision, cluster),
                optimizer_s=per_element * own,
                state_bytes=state_bytes(cost, degrees, rates),
                late_bytes=own * rates.late_gradient,
                early_bytes=cost.parameters * rates.copy if rates.late_gradient else 0.0,
            )
        )
        start += count
    return tuple(runs)


def best_runs(chains: Sequence[Sequence[Run]]) -> tuple[Run, ...]:
    """One chain on several types of device as if each unit had the best of them: no figure is above any chain's."""
    return tuple(
        replace(
            alike[0],
            cost=least_cost([run.cost for run in alike]),
            traffic=StateTraffic(
                *(min(getattr(run.traffic, f.name) for run in alike) for f in fields(StateTraffic))
            ),
            optimizer_s=min(run.optimizer_s for run in alike),
            state_bytes=min(run.state_bytes for run in alike),
        )
        for alike in zip(*chains, strict=True)
    )


def least_optimizer_s(sizes: Sequence[float], degrees: Degrees, job: Job, cluster: Cluster) -> float:
    """Seconds per element where it is least: of one unit (it may fit a cache) or of all of them."""
    return min((optimizer_s(size, degrees, job, cluster) / size for size in sizes if size), default=0.0)
