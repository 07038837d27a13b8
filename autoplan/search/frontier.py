"""Time against money: the best plan on each of several clusters and sizes, and which of them nothing beats in both."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from autoplan.errors import InputError, PlanError
from autoplan.search.goal import Goal, Objective, require_power, require_price
from autoplan.search.graphs import Graphs
from autoplan.search.objective import Run, run_of
from autoplan.search.outer import search
from autoplan.search.result import SearchResult

if TYPE_CHECKING:
    from autoplan.hardware import Cluster
    from autoplan.plan import Job

__all__ = ["Point", "best_point", "curve", "points"]


@dataclass(frozen=True, slots=True)
class Point:
    """One cluster at one size. ``run`` is None where no plan fits or the batch cannot be cut; ``reason`` says why."""

    cluster: Cluster
    result: SearchResult | None
    run: Run | None
    reason: str = ""


def points(
    graphs_on: Callable[[Cluster], Graphs],
    job: Job,
    clusters: Iterable[Cluster],
    tokens: float,
    *,
    prices: Mapping[str, float] | None = None,
    objective: Objective = Objective.COST,
    max_cost: float | None = None,
    max_days: float | None = None,
    gap: float = 0.01,
    pin: Mapping[str, Any] | None = None,
    forbid: Sequence[tuple[str, Any]] = (),
    progress: Callable[[str], object] | None = None,
) -> Iterator[Point]:
    """The best plan on each of ``clusters`` and what a run of ``tokens`` takes.

    Args:
        graphs_on: the model's graphs for a cluster's kind of device.
        prices: US dollars for an hour of one device, by name of the profile, in place of the profile's.
        objective: what the plan of a point has least of. On one cluster the cheapest is the fastest; for energy,
            ``max_cost`` and ``max_days`` say which plans are allowed where any of them is within both.

    Raises ProfileError before any search if a profile lacks a price, or for the objective of energy a power.
    """
    clusters, prices = list(clusters), dict(prices or {})
    for cluster in clusters:
        require_price(cluster, prices.get(cluster.name))
        if objective is Objective.ENERGY:
            require_power(cluster)
    for index, cluster in enumerate(clusters):
        if progress is not None:
            progress(f"{index + 1} of {len(clusters)}: {cluster.nodes} × {cluster.name}")
        price = prices.get(cluster.name)
        goal = Goal()
        if objective is Objective.ENERGY:
            goal = Goal.of(
                objective, job, cluster, tokens=tokens, price=price, max_cost=max_cost, max_days=max_days
            )
        options: dict[str, Any] = {"pin": pin, "forbid": forbid, "gap": gap, "top": 1, "cures": False}
        try:
            found = search(graphs_on(cluster), job, cluster, goal=goal, **options)
            if found.best is None and goal.limited:  # its fastest plan says how far it is from the limits
                found = search(graphs_on(cluster), job, cluster, **options)
        except (InputError, PlanError) as error:
            yield Point(cluster, None, None, str(error))
            continue
        if found.best is None:
            yield Point(cluster, found, None, "no plan fits in memory")
            continue
        yield Point(cluster, found, run_of(found.best, tokens, job, cluster, price))


def curve(found: Sequence[Point]) -> list[Point]:
    """The points that no other beats in time and money both, the fastest first."""
    priced = [point for point in found if point.run is not None and point.run.cost is not None]
    priced.sort(key=lambda point: (_figure(point, Objective.TIME), _figure(point, Objective.COST)))
    kept: list[Point] = []
    for point in priced:
        if not kept or _figure(point, Objective.COST) < _figure(kept[-1], Objective.COST):
            kept.append(point)
    return kept


def best_point(
    found: Sequence[Point],
    objective: Objective,
    max_cost: float | None = None,
    max_days: float | None = None,
) -> Point | None:
    """The point with least of ``objective`` within the budget and the deadline; None if there is none."""
    allowed = [
        point
        for point in found
        if point.run is not None
        and (max_cost is None or (point.run.cost is not None and point.run.cost <= max_cost))
        and (max_days is None or point.run.days <= max_days)
    ]
    return min(allowed, key=lambda point: _figure(point, objective), default=None)


def _figure(point: Point, objective: Objective) -> float:
    value = point.run.of(objective) if point.run is not None else None
    return float("inf") if value is None else value
