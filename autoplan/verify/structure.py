"""Numbers and names of a plan that must go together, whatever they cost."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from autoplan.verify.verdict import Finding, Verdict

if TYPE_CHECKING:
    from autoplan.graph.ir import ModelGraph
    from autoplan.hardware import AnyCluster
    from autoplan.plan import Job, Plan

__all__ = ["check_structure"]


def check_structure(verdict: Verdict, graph: ModelGraph, plan: Plan, job: Job, cluster: AnyCluster) -> None:
    """Ranks, batch, state, stages and recomputation."""
    sizes = {name: getattr(plan, name) for name in ("pp", "dp", "fsdp", "cp", "tp", "ep", "vpp")}
    for name, size in sizes.items():
        if size < 1:
            verdict.findings.append(Finding(name, size, "a size of at least 1"))
    ranks = math.prod(sizes[name] for name in ("pp", "dp", "fsdp", "cp", "tp"))
    verdict.expect("ranks", ranks, cluster.world_size)
    verdict.expect("model", plan.fingerprint, graph.fingerprint)
    verdict.expect("micro_batch", plan.micro_batch, graph.micro_batch)
    verdict.expect("precision", plan.precision, job.precision)
    samples = plan.micro_batch * plan.num_micro_batches * plan.dp * plan.fsdp
    verdict.expect("samples of a step", samples, job.global_batch)
    verdict.expect("global_batch", plan.global_batch, job.global_batch)
    if cluster.node_size % plan.tp:
        verdict.findings.append(Finding("tp", plan.tp, f"no divisor of a node's {cluster.node_size} ranks"))
    if plan.fsdp > 1 or plan.cp == 1:
        verdict.expect("zero is 0", plan.zero == 0, plan.fsdp == 1)
    if graph.meetings and (plan.dp, plan.fsdp, plan.num_micro_batches) != (1, 1, 1):
        verdict.findings.append(Finding("batch", "cut", f"whole, since {graph.meetings[0]}"))
    if plan.cp == 1:
        verdict.expect("cp_order", plan.cp_order, "plain")
    data = plan.dp * plan.fsdp
    if plan.ep > 1 and (plan.cp > 1 or data % plan.ep or (plan.fsdp % plan.ep and plan.ep % plan.fsdp)):
        verdict.findings.append(Finding("ep", plan.ep, f"no part of {plan.dp} × {plan.fsdp} data ranks"))
    _check_stages(verdict, graph, plan)
    verdict.checked.append("structure")


def _check_stages(verdict: Verdict, graph: ModelGraph, plan: Plan) -> None:
    verdict.expect("number of stages", len(plan.stages), plan.pp * plan.vpp)
    units = [unit for stage in plan.stages for unit in stage.units]
    verdict.expect("units", units, [unit.name for unit in graph.units])
    may = {unit.name: unit.kind for unit in graph.units if graph.kinds[unit.kind].path}
    for index, stage in enumerate(plan.stages):
        if not stage.units:
            verdict.findings.append(Finding(f"stages[{index}]", "no unit", "at least one"))
        strange = [name for name in stage.recompute if name not in may or name not in stage.units]
        if strange or len(set(stage.recompute)) < len(stage.recompute):
            verdict.findings.append(
                Finding(f"stages[{index}].recompute", strange, "repeated units of the stage")
            )
        for name, way in stage.policies.items():
            where = f"stages[{index}].policies.{name}"
            if name not in may or name not in stage.units or name in stage.recompute:
                verdict.findings.append(Finding(where, way, "for a repeated unit of the stage, in one way"))
            elif way not in plan.policies.get(may[name], {}):
                verdict.findings.append(Finding(where, way, f"no policy of {may[name]}"))
    for kind in plan.policies.keys() - graph.kinds.keys():
        verdict.findings.append(Finding(f"policies.{kind}", "a block", "no block of this model"))
