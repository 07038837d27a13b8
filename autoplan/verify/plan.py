"""``verify_plan``: everything about a plan that can be derived again."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from autoplan.errors import PlanError
from autoplan.graph.layout import Layout
from autoplan.verify.pipeline import step_s
from autoplan.verify.stage import HeldUnit, StageSums, device_limit, stage_sums
from autoplan.verify.structure import check_structure
from autoplan.verify.unit import UnitSums, held, passed, unit_sums
from autoplan.verify.verdict import Claim, Finding, Verdict

if TYPE_CHECKING:
    from autoplan.graph.ir import ModelGraph
    from autoplan.hardware import Cluster
    from autoplan.plan import Job, Plan

__all__ = ["verify_plan"]

_ROUNDING = 1e-6
_UNKNOWN = ("cp", "ep", "vpp")  # their layouts, memory and order of passes are not derived here


def verify_plan(
    graph: ModelGraph, plan: Plan, job: Job, cluster: Cluster, claim: Claim | None = None
) -> Verdict:
    """Derive ``plan`` again and compare.

    Args:
        graph: the model, traced for ``plan.micro_batch`` samples.
        claim: the price that was said; None to check the plan alone, and that it fits.
    """
    verdict = Verdict()
    check_structure(verdict, graph, plan, job, cluster)
    unknown = [f"{name}={getattr(plan, name)}" for name in _UNKNOWN if getattr(plan, name) > 1]
    if plan.pp > 1 and str(plan.schedule) != "1f1b":
        unknown.append(f"schedule={plan.schedule}")
    if claim is not None:
        verdict.close("sum of parts_s", claim.step_s, sum(claim.parts_s.values()), _ROUNDING)
        verdict.close("memory limit", claim.limit_bytes, device_limit(cluster), _ROUNDING)
        verdict.expect("fits", claim.fits, max(claim.stage_bytes) <= claim.limit_bytes)
    if not verdict.holds:
        return verdict
    if unknown:
        verdict.unchecked += unknown
        return verdict
    sums = _units(verdict, graph, plan, cluster)
    if sums is None:
        return verdict
    verdict.checked.append("layouts")
    stages, sends = _stages(graph, plan, job, cluster, sums)
    _compare(verdict, stages, sends, plan, cluster, claim)
    return verdict


def _units(verdict: Verdict, graph: ModelGraph, plan: Plan, cluster: Cluster) -> dict[str, UnitSums] | None:
    try:
        boundary = Layout.parse(plan.boundary)
    except PlanError:
        verdict.findings.append(Finding("boundary", plan.boundary, "no layout"))
        return None
    for kind in plan.layouts.keys() - graph.kinds.keys():
        verdict.findings.append(Finding(f"layouts.{kind}", "a block", "no block of this model"))
    _check_tied(verdict, graph, plan)
    found = {
        kind: unit_sums(verdict, block, plan.layouts.get(kind, {}), boundary, plan.tp, cluster)
        for kind, block in graph.kinds.items()
    }
    sums = {kind: one for kind, one in found.items() if one is not None}
    return sums if verdict.holds and len(sums) == len(found) else None


def _check_tied(verdict: Verdict, graph: ModelGraph, plan: Plan) -> None:
    """A parameter under several names lies in one way."""
    kind_of = {unit.name: unit.kind for unit in graph.units}
    for group in graph.tied:
        ways = {plan.layouts.get(kind_of[unit], {}).get(name, "R") for unit, name in group}
        if len(ways) > 1:
            verdict.findings.append(Finding(f"layouts of {group[0][1]}", sorted(ways), "one tensor"))


def _stages(
    graph: ModelGraph, plan: Plan, job: Job, cluster: Cluster, sums: dict[str, UnitSums]
) -> tuple[list[StageSums], list[float]]:
    ends = []
    for stage in plan.stages:
        ends.append((ends[-1] if ends else 0) + len(stage.units))
    starts = [0, *ends[:-1]]
    stride = plan.tp * plan.cp * plan.fsdp * plan.dp
    boundary = Layout.parse(plan.boundary)
    tied = _tied_s(graph, plan, job, cluster, sums, starts, ends)
    found, sends = [], []
    for s, stage in enumerate(plan.stages):
        last = s + 1 == len(plan.stages)
        sent = 0.0 if last else _crossing(graph, boundary, plan.tp, ends[s])
        units = _held(graph, sums, starts[s], ends[s], frozenset(stage.recompute))
        in_flight = min(plan.num_micro_batches, plan.pp - s)
        found.append(stage_sums(units, in_flight, sent, tied[s], plan, job, cluster))
        if not last:
            sends.append(cluster.p2p_time_s(sent, stride, plan.pp))
    return found, sends


def _held(
    graph: ModelGraph, sums: dict[str, UnitSums], start: int, end: int, again: frozenset[str]
) -> list[HeldUnit]:
    units = graph.units[start:end]
    order = {unit.name: index for index, unit in enumerate(units)}
    spare: dict[str, set[str]] = {}
    for group in graph.tied:
        here = [(name, value) for name, value in group if name in order]
        for name, value in here[1:]:
            spare.setdefault(name, set()).add(value)
    return [
        HeldUnit(
            sums[unit.kind],
            frozenset(sums[unit.kind].elements.keys() - spare.get(unit.name, set())),
            unit.name in again,
        )
        for unit in units
    ]


def _crossing(graph: ModelGraph, boundary: Layout, degree: int, end: int) -> float:
    """Bytes made before unit ``end`` that units from there on read."""
    needed = {name for unit in graph.units[end:] for name in unit.arguments}
    total = 0.0
    for unit in graph.units[:end]:
        block = graph.kinds[unit.kind]
        for name, output in zip(unit.results, block.outputs, strict=True):
            if name in needed:
                value = block.values[output]
                total += held(value, passed(value, boundary, degree), degree)
    return total


def _tied_s(
    graph: ModelGraph,
    plan: Plan,
    job: Job,
    cluster: Cluster,
    sums: dict[str, UnitSums],
    starts: Sequence[int],
    ends: Sequence[int],
) -> list[float]:
    """Of each stage, seconds to add up gradients of parameters that other stages hold too."""
    total = [0.0] * len(starts)
    place = {unit.name: index for index, unit in enumerate(graph.units)}
    for group in graph.tied:
        at = {place[name] for name, _ in group}
        homes = [s for s in range(len(starts)) if any(starts[s] <= i < ends[s] for i in at)]
        if len(homes) < 2:
            continue
        name, value = group[0]
        nbytes = sums[graph.units[place[name]].kind].elements[value] * job.precision.master_bytes / plan.fsdp
        apart = max(1, (homes[-1] - homes[0]) // (len(homes) - 1))
        stride = plan.tp * plan.cp * plan.fsdp * plan.dp * apart
        for s in homes:
            total[s] += cluster.collective_time_s("all_reduce", nbytes, len(homes), stride=stride)
    return total


def _compare(
    verdict: Verdict,
    stages: Sequence[StageSums],
    sends: Sequence[float],
    plan: Plan,
    cluster: Cluster,
    claim: Claim | None,
) -> None:
    worst = max(stage.bytes for stage in stages)
    if claim is None or claim.fits:
        limit = device_limit(cluster)
        if worst > limit * (1 + _ROUNDING):
            verdict.findings.append(Finding("memory", f"at most {limit:.6g} bytes", f"{worst:.6g} bytes"))
    if claim is not None:
        verdict.expect("stages priced", len(claim.stage_bytes), len(stages))
        for s, (said, stage) in enumerate(zip(claim.stage_bytes, stages, strict=False)):
            verdict.close(f"bytes of stage {s}", said, stage.bytes, _ROUNDING)
    verdict.checked.append("memory")
    if claim is not None:
        verdict.close("step", claim.step_s, step_s(stages, sends, plan.num_micro_batches), _ROUNDING)
        verdict.checked.append("time")
