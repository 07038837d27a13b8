"""Time against money, as a table for people and as data."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import msgspec
from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from autoplan.plan import Job
from autoplan.report.explain_report import plan_words
from autoplan.search.frontier import Point
from autoplan.search.goal import Objective
from autoplan.units import count, seconds

__all__ = ["frontier_json", "frontier_report"]


def frontier_report(
    name: str,
    job: Job,
    tokens: float,
    objective: Objective,
    found: Sequence[Point],
    curve: Sequence[Point],
    best: Point | None,
) -> RenderableType:
    """Every point, those on the curve marked, and the one that is best."""
    return Group(*_sections(name, job, tokens, objective, found, curve, best))


def _sections(
    name: str,
    job: Job,
    tokens: float,
    objective: Objective,
    found: Sequence[Point],
    curve: Sequence[Point],
    best: Point | None,
) -> Iterator[RenderableType]:
    unit = "tokens" if job.tokens_per_sample else "samples"
    yield Text.assemble((name, "bold"), f", {count(tokens)} {unit}, batch {job.global_batch:,}")
    yield Text()
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1), pad_edge=False, show_edge=False)
    table.add_column("", no_wrap=True)
    table.add_column("cluster", no_wrap=True)
    for title in ("nodes", "GPUs", "step", "days", "cost", "MWh"):
        table.add_column(title, justify="right", no_wrap=True)
    table.add_column("plan")
    for point in found:
        row = (point.cluster.name, str(point.cluster.nodes), str(point.cluster.world_size))
        if point.run is None or point.result is None or point.result.best is None:
            table.add_row("", *row, "", "", "", "", point.reason, style="dim")
            continue
        plan, estimate = point.result.best.plan, point.result.best.estimate
        mark = "★" if point is best else "●" if point in curve else ""
        energy = "" if point.run.energy_kwh is None else f"{point.run.energy_kwh / 1000:,.0f}"
        table.add_row(
            mark,
            *row,
            seconds(estimate.step_time_s),
            f"{point.run.days:,.1f}",
            "" if point.run.cost is None else f"${point.run.cost:,.0f}",
            energy,
            plan_words(plan),
            style="bold" if point is best else "",
        )
    yield table
    yield Text()
    said = f"● nothing else is both faster and cheaper; ★ least {objective.value}"
    yield Text(said if best is not None else f"{said} (no point is within the limits)")


def frontier_json(found: Sequence[Point], curve: Sequence[Point], best: Point | None) -> dict[str, Any]:
    """All points; ``on_curve`` and ``best`` say which."""
    return {
        "points": [
            {
                "cluster": point.cluster.name,
                "nodes": point.cluster.nodes,
                "gpus": point.cluster.world_size,
                "status": "refused" if point.result is None else point.result.status.value,
                "reason": point.reason,
                "on_curve": point in curve,
                "best": point is best,
                "days": None if point.run is None else point.run.days,
                "cost": None if point.run is None else point.run.cost,
                "energy_kwh": None if point.run is None else point.run.energy_kwh,
                "plan": None if point.result is None else _plan(point),
                "estimate": None if point.result is None else msgspec.to_builtins(point.result.estimate),
            }
            for point in found
        ]
    }


def _plan(point: Point) -> dict[str, Any] | None:
    result = point.result
    return None if result is None or result.plan is None else msgspec.to_builtins(result.plan)
