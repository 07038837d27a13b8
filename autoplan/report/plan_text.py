"""The text form of a plan: every decision, nothing that must be looked up elsewhere."""

from __future__ import annotations

from autoplan.plan import Plan
from autoplan.report.layers import stage_lines

__all__ = ["plan_text"]


def plan_text(plan: Plan) -> str:
    """Lines of plain text: what is trained, the mesh, the batch, the stages, the layouts by block."""
    lines = [
        f"{plan.model} on {plan.world_size} ranks, {plan.precision.value}  (plan {plan.hash()})",
        f"mesh    {_mesh(plan)}",
        f"batch   {plan.global_batch} = {plan.micro_batch} × {plan.num_micro_batches} micro-batches"
        f" × {plan.data_ranks} data ranks",
        f"state   ZeRO-{plan.zero} over {plan.shard_ranks} ranks"
        if plan.zero
        else "state   whole on every rank",
        *stage_lines(plan),
    ]
    if plan.cp > 1:
        lines.append(f"cp layout between units: {plan.cp_boundary}, {plan.cp_order} order")
        for kind, choices in sorted(plan.cp_layouts.items()):
            lines += [f"cp layouts of {kind}", *_choices(choices)]
    if plan.tp > 1:
        lines.append(f"layout between units: {plan.boundary}")
        for kind, choices in sorted(plan.layouts.items()):
            lines += [f"layouts of {kind}", *_choices(choices)]
    return "\n".join(lines)


def _mesh(plan: Plan) -> str:
    degrees = {name: getattr(plan, name) for name in ("pp", "dp", "fsdp", "cp", "tp", "ep", "vpp")}
    shown = [f"{name} {degree}" for name, degree in degrees.items() if degree > 1]
    schedule = f", schedule {plan.schedule.value}" if plan.pp > 1 else ""
    return (" × ".join(shown) or "one rank") + schedule


def _choices(choices: dict[str, str]) -> list[str]:
    """A line for each strategy with the ops and parameters that take it; ``R``, the rest, is counted."""
    takers: dict[str, list[str]] = {}
    for name, strategy in choices.items():
        takers.setdefault(strategy, []).append(name)
    whole = len(takers.pop("R", []))
    lines = [f"  {strategy:<8} {', '.join(sorted(names))}" for strategy, names in sorted(takers.items())]
    return [*lines, f"  {'R':<8} {whole} others"] if whole else lines
