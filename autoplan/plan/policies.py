"""Whether a plan's policies fit a model: each unit's policy is one of its block kind, for ops that it has."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from autoplan.errors import PlanError

if TYPE_CHECKING:
    from autoplan.graph.ir import Block, ModelGraph
    from autoplan.plan.plan import Plan

__all__ = ["check_policies"]

_AGAIN = "search again for this model"


def check_policies(graph: ModelGraph, plan: Plan) -> None:
    """Raises PlanError for a policy that a unit of ``graph`` cannot follow.

    ``graph`` is one cp rank's part of the model where cp is above 1. That a change of layout is there is known only
    when layouts are chosen, and checked then. What is a view on this kind of device, and may be a copy on another,
    may be named, and is kept or not as what it is a view of.
    """
    kind_of = {unit.name: unit.kind for unit in graph.units}
    for index, stage in enumerate(plan.stages):
        for unit, name in stage.policies.items():
            known = plan.policies.get(kind_of.get(unit, ""), {})
            if name not in known:
                expected = (
                    f"a policy of its block kind, {kind_of.get(unit)} ({', '.join(sorted(known)) or 'none'})"
                )
                raise PlanError(f"stages[{index}].policies.{unit}", name, expected, _AGAIN)
    for kind, policies in plan.policies.items():
        if kind not in graph.kinds:
            raise PlanError("policies", kind, f"one of {', '.join(graph.kinds)}", _AGAIN)
        for name, policy in policies.items():
            _check_policy(f"policies.{kind}.{name}", graph.kinds[kind], policy)


def _check_policy(where: str, block: Block, policy: Mapping[str, str]) -> None:
    ops = {op.name: op for op in block.ops}
    for name, action in policy.items():
        op, value = ops.get(name), name.partition(":")[0]
        if op is None and not (
            (":" in name and value in block.values) or (action == "offload" and name in block.inputs)
        ):
            raise PlanError(f"{where}.{name}", action, "an op or a change of layout of this block", _AGAIN)
        if op is not None and not op.alias and action == "recompute" and not op.again:
            expected = (
                "offload, or nothing: random, changing a buffer, or of several results, it cannot run again"
            )
            raise PlanError(f"{where}.{name}", action, expected, _AGAIN)
