"""``verify_plan``: everything about a plan that can be derived again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING

from autoplan.errors import PlanError
from autoplan.graph.layout import Layout
from autoplan.verify.devices import parts_of_ranks
from autoplan.verify.experts import check_experts
from autoplan.verify.kept import Left
from autoplan.verify.orders import rank_of_stage
from autoplan.verify.pipeline import Pipeline
from autoplan.verify.sequence import check_cut
from autoplan.verify.stage import HeldUnit, StageSums, device_limit, rank_bytes, sharing, stage_sums
from autoplan.verify.structure import check_structure
from autoplan.verify.unit import UnitSums, held, passed, unit_sums
from autoplan.verify.verdict import Claim, Finding, Illegal, Unfamiliar, Verdict

if TYPE_CHECKING:
    from autoplan.graph.ir import ModelGraph
    from autoplan.hardware import AnyCluster, Cluster
    from autoplan.plan import Job, Plan

__all__ = ["verify_plan"]

_ROUNDING = 1e-6

_Lefts = dict[tuple[str, str], Left]
"""By block kind and way (none, full or the name of a policy)."""


def verify_plan(
    graph: ModelGraph, plan: Plan, job: Job, cluster: AnyCluster, claim: Claim | None = None
) -> Verdict:
    """Derive ``plan`` again and compare.

    Args:
        graph: the model, traced for ``plan.micro_batch`` samples.
        claim: the price that was said; None to check the plan alone, and that it fits.
    """
    verdict = Verdict()
    check_structure(verdict, graph, plan, job, cluster)
    if claim is not None:
        verdict.close("sum of parts_s", claim.step_s, sum(claim.parts_s.values()), _ROUNDING)
        verdict.expect("fits", claim.fits, all(n <= limit for n, limit in claim.of_stages))
    if not verdict.holds:
        return verdict
    on = _devices(verdict, plan, cluster, claim)
    if not verdict.holds:
        return verdict
    if plan.cp > 1 or plan.ep > 1:
        graph = _on_cp(verdict, graph, plan) if plan.cp > 1 else _on_ep(verdict, graph, plan)
        if verdict.findings or verdict.unchecked:
            return verdict
    sums = [_units(verdict, graph, plan, only) for only in cluster.types]
    if not all(sums):
        return verdict
    lefts = [_lefts(verdict, plan, only, of) for only, of in zip(cluster.types, sums, strict=True)]
    if not verdict.holds:
        return verdict
    verdict.checked.append("layouts")
    try:
        pipeline = Pipeline(str(plan.schedule), plan.pp, plan.vpp, plan.num_micro_batches)
    except Unfamiliar as order:
        verdict.unchecked.append(str(order))
        return verdict
    types = [cluster.types.index(only) for only in on]
    known = [(sums[of], lefts[of]) for of in types]
    held_units, stages, sends = _stages(graph, plan, job, cluster, on, known, pipeline.home)
    ranks = []
    for rank in range(plan.pp):
        mine = [units for units, home in zip(held_units, pipeline.home, strict=True) if home == rank]
        kept = pipeline.held(rank, [stage.kept for stage in stages], [stage.between for stage in stages])
        ranks.append(rank_bytes(mine, kept, plan, job, on[rank]))
    limits = [device_limit(only) for only in on]
    _compare(verdict, [(ranks[home], limits[home]) for home in pipeline.home], claim)
    if claim is not None:
        step_s = pipeline.step_s(stages, sends, partial(_core_share, cluster, cluster.world_size // plan.pp))
        verdict.close("step", claim.step_s, step_s, _ROUNDING)
        if claim.busy_s is not None:
            busy_s = sum(stage.busy_s for stage in stages) / plan.pp
            verdict.close("busy seconds", claim.busy_s, busy_s, _ROUNDING)
        verdict.checked.append("time")
    return verdict


def _core_share(cluster: AnyCluster, of_stage: int, at_work: int) -> float:
    """Of the seconds of work, those that it takes while ``at_work`` stages of a machine whose ranks share cores are at work."""
    first = cluster.types[0]
    together = first.device.at_once
    if len(cluster.types) > 1 or first.nodes > 1 or together == 0:
        return 1.0
    return min(max(at_work * of_stage, together) / first.world_size, 1.0)


def _devices(verdict: Verdict, plan: Plan, cluster: AnyCluster, claim: Claim | None) -> list[Cluster]:
    """Of each pipeline rank, a cluster of its devices; what is said of them and of their memory is checked."""
    on = [cluster.types[part] for part in parts_of_ranks(verdict, plan, cluster)]
    for s, stage in enumerate(plan.stages):
        own = on[rank_of_stage(str(plan.schedule), s, plan.pp)]
        if stage.device:
            verdict.expect(f"stages[{s}].device", stage.device, own.name)
        if claim is not None and s < len(claim.stage_bytes):
            verdict.close("memory limit", claim.of_stages[s][1], device_limit(own), _ROUNDING)
    return on


def _on_cp(verdict: Verdict, graph: ModelGraph, plan: Plan) -> ModelGraph:
    """One cp rank's graph, each fact of it checked against the whole one."""
    from autoplan.graph.cut import cut_graph

    for kind in plan.cp_layouts.keys() - graph.kinds.keys():
        verdict.findings.append(Finding(f"cp_layouts.{kind}", "a block", "no block of this model"))
    try:
        boundary = Layout.parse(plan.cp_boundary)
        local = cut_graph(graph, plan.cp_layouts, boundary, plan.cp, plan.cp_order)
    except PlanError as error:
        verdict.findings.append(Finding(error.field, error.value, error.expected))
        return graph
    for kind, block in graph.kinds.items():
        names, zigzag = plan.cp_layouts.get(kind, {}), plan.cp_order == "zigzag"
        check_cut(verdict, block, local.kinds[kind], names, boundary, plan.cp, zigzag)
    return local


def _on_ep(verdict: Verdict, graph: ModelGraph, plan: Plan) -> ModelGraph:
    """One ep rank's graph, each fact of it checked against the whole one."""
    from autoplan.graph.expert_cut import cut_experts

    try:
        local = cut_experts(graph, plan.ep)
    except PlanError as error:
        verdict.findings.append(Finding(error.field, error.value, error.expected))
        return graph
    check_experts(verdict, graph, local, plan.ep)
    return local


def _lefts(verdict: Verdict, plan: Plan, cluster: Cluster, sums: dict[str, UnitSums]) -> _Lefts:
    """What a forward leaves of a unit of each kind, in each way that some unit goes or some policy says."""
    found: _Lefts = {}
    for kind, one in sums.items():
        policies = plan.policies.get(kind, {})
        for way in ("none", "full", *policies):
            try:
                left = found[kind, way] = one.left(way, policies)
                if left.host and cluster.device.host is None:
                    raise Illegal("an offload, and the profile has no link to the host")
            except Illegal as wrong:
                verdict.findings.append(Finding(f"policies.{kind}.{way}", "a policy", str(wrong)))
    return found


def _units(verdict: Verdict, graph: ModelGraph, plan: Plan, cluster: Cluster) -> dict[str, UnitSums]:
    """Of each kind, its sums on one type of device; none if they cannot be told."""
    try:
        boundary = Layout.parse(plan.boundary)
    except PlanError:
        verdict.findings.append(Finding("boundary", plan.boundary, "no layout"))
        return {}
    for kind in plan.layouts.keys() - graph.kinds.keys():
        verdict.findings.append(Finding(f"layouts.{kind}", "a block", "no block of this model"))
    _check_tied(verdict, graph, plan)
    found = {
        kind: unit_sums(verdict, block, plan.layouts.get(kind, {}), boundary, plan.tp, cluster)
        for kind, block in graph.kinds.items()
    }
    sums = {kind: one for kind, one in found.items() if one is not None}
    return sums if verdict.holds and len(sums) == len(found) else {}


def _check_tied(verdict: Verdict, graph: ModelGraph, plan: Plan) -> None:
    """A parameter under several names lies in one way."""
    kind_of = {unit.name: unit.kind for unit in graph.units}
    for group in graph.tied:
        ways = {plan.layouts.get(kind_of[unit], {}).get(name, "R") for unit, name in group}
        if len(ways) > 1:
            verdict.findings.append(Finding(f"layouts of {group[0][1]}", sorted(ways), "one tensor"))


def _stages(
    graph: ModelGraph,
    plan: Plan,
    job: Job,
    cluster: AnyCluster,
    on: Sequence[Cluster],
    known: Sequence[tuple[dict[str, UnitSums], _Lefts]],
    home: Sequence[int],
) -> tuple[list[list[HeldUnit]], list[StageSums], list[float]]:
    """Of each stage its units and their sums; and of each but the last, the seconds to send to the next.

    ``on``, ``known``: of each pipeline rank, what it runs on, and what units take and leave there.
    """
    ends = []
    for stage in plan.stages:
        ends.append((ends[-1] if ends else 0) + len(stage.units))
    starts = [0, *ends[:-1]]
    stride = plan.tp * plan.cp * plan.fsdp * plan.dp
    boundary = Layout.parse(plan.boundary)
    tied = _tied_s(graph, plan, job, cluster, known[0][0], starts, ends, home)
    units, found, sends = [], [], []
    for s, stage in enumerate(plan.stages):
        last = s + 1 == len(plan.stages)
        sent = 0.0 if last else _crossing(graph, boundary, plan.tp, ends[s])
        ways = {**dict.fromkeys(stage.recompute, "full"), **stage.policies}
        units.append(_held(graph, *known[home[s]], starts[s], ends[s], ways))
        found.append(stage_sums(units[-1], sent, tied[s], plan, job, on[home[s]]))
        if not last:
            sides = [on[home[s]], on[home[s + 1]]] if home[s] != home[s + 1] else []
            sends.append(max((side.p2p_time_s(sent, stride, plan.pp) for side in sides), default=0.0))
    return units, found, sends


def _held(
    graph: ModelGraph,
    sums: dict[str, UnitSums],
    lefts: _Lefts,
    start: int,
    end: int,
    ways: Mapping[str, str],
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
            lefts[unit.kind, ways.get(unit.name, "none")],
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
    cluster: AnyCluster,
    sums: dict[str, UnitSums],
    starts: Sequence[int],
    ends: Sequence[int],
    home: Sequence[int],
) -> list[float]:
    """Of each stage, seconds to add up gradients of parameters that other ranks hold too; the first stage of a rank
    that has one does it for the rank."""
    total = [0.0] * len(starts)
    place = {unit.name: index for index, unit in enumerate(graph.units)}
    for group in graph.tied:
        at = {place[name] for name, _ in group}
        holders = [s for s in range(len(starts)) if any(starts[s] <= i < ends[s] for i in at)]
        homes = sorted({home[s] for s in holders})
        if len(homes) < 2:
            continue
        name, value = group[0]
        nbytes = sums[graph.units[place[name]].kind].elements[value] * job.precision.master_bytes
        nbytes /= sharing(plan)[0]
        apart = max(1, (homes[-1] - homes[0]) // (len(homes) - 1))
        stride = plan.tp * plan.cp * plan.fsdp * plan.dp * apart
        for s in [next(s for s in holders if home[s] == rank) for rank in homes]:
            total[s] += cluster.collective_time_s("all_reduce", nbytes, len(homes), stride=stride)
    return total


def _compare(verdict: Verdict, found: Sequence[tuple[float, float]], claim: Claim | None) -> None:
    """``found``: for each stage, the bytes of its rank, and those of its device that a plan may use."""
    if claim is None or claim.fits:
        worst, limit = max(found, key=lambda one: one[0] / one[1])
        if worst > limit * (1 + _ROUNDING):
            verdict.findings.append(Finding("memory", f"at most {limit:.6g} bytes", f"{worst:.6g} bytes"))
    if claim is not None:
        verdict.expect("stages priced", len(claim.stage_bytes), len(found))
        for s, (said, (nbytes, _)) in enumerate(zip(claim.stage_bytes, found, strict=False)):
            verdict.close(f"bytes of stage {s}", said, nbytes, _ROUNDING)
    verdict.checked.append("memory")
