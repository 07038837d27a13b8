"""What must hold inside a plan, whatever the model: degrees, batch, stages, layouts.

Whether a plan fits a *model* (its units, its fingerprint) or a *world* (the number of ranks) is for
those who have the model and the world to check.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from autoplan.errors import PlanError
from autoplan.graph.layout import Layout
from autoplan.plan.plan import Plan, StagePlan
from autoplan.plan.schedule import SCHEDULE_NEEDS, Schedule

__all__ = ["least_micro_batches", "validate_plan"]

_CORRECT = "correct the plan, or search for one with `autoplan search`"
_COUNTS = ("global_batch", "pp", "dp", "fsdp", "cp", "tp", "ep", "vpp", "micro_batch", "num_micro_batches")
_STRATEGY = {"": r"cut \S+", "cp_": r"(cut|ring) \S+"}
_RESERVED = ("none", "full")


def validate_plan(plan: Plan) -> None:
    """Raises PlanError naming the first decision of ``plan`` that contradicts another."""
    _check_degrees(plan)
    _check_experts(plan)
    _check_batch(plan)
    _check_schedule(plan)
    _check_stages(plan)
    _check_layouts(plan)


def _check_degrees(plan: Plan) -> None:
    for name in _COUNTS:
        if getattr(plan, name) < 1:
            raise PlanError(name, getattr(plan, name), "an integer of at least 1", _CORRECT)
    if plan.zero not in (0, 1, 2, 3):
        raise PlanError("zero", plan.zero, "0, 1, 2 or 3", _CORRECT)
    if plan.zero == 0 and plan.fsdp > 1:
        raise PlanError("zero", plan.zero, f"1, 2 or 3, as fsdp is {plan.fsdp}", _CORRECT)
    if plan.zero and plan.fsdp * plan.cp == 1:
        raise PlanError("zero", plan.zero, "0, as fsdp is 1 and nothing is sharded", _CORRECT)


def _check_experts(plan: Plan) -> None:
    ep, data = plan.ep, plan.data_ranks
    if ep == 1:
        return
    if data % ep:
        raise PlanError("ep", ep, f"a divisor of the dp · fsdp = {data} data ranks", _CORRECT)
    if ep % plan.fsdp and plan.fsdp % ep:
        raise PlanError("ep", ep, f"a divisor or a multiple of fsdp = {plan.fsdp}", _CORRECT)
    if plan.cp > 1:
        raise PlanError("ep", ep, f"1, as cp is {plan.cp}: the two are not run together", _CORRECT)


def _check_batch(plan: Plan) -> None:
    product = plan.micro_batch * plan.num_micro_batches * plan.dp * plan.fsdp
    if plan.global_batch != product:
        raise PlanError(
            "global_batch",
            plan.global_batch,
            f"micro_batch · num_micro_batches · dp · fsdp = {plan.micro_batch} · {plan.num_micro_batches} · "
            f"{plan.dp} · {plan.fsdp} = {product}",
            _CORRECT,
        )


def _check_schedule(plan: Plan) -> None:
    schedule, needs = plan.schedule, SCHEDULE_NEEDS[plan.schedule]
    if plan.pp == 1:
        for name, value, only in (("schedule", schedule.value, Schedule.ONE_F_ONE_B), ("vpp", plan.vpp, 1)):
            if value != only:
                raise PlanError(name, value, f"{only}, as pp is 1 and there is no pipeline", _CORRECT)
    if needs.vpp is not None and plan.vpp != needs.vpp:
        raise PlanError(
            "vpp", plan.vpp, f"{needs.vpp}, the stages that each rank holds under {schedule}", _CORRECT
        )
    least, reason = least_micro_batches(schedule, plan.pp)
    if plan.num_micro_batches < least:
        raise PlanError("num_micro_batches", plan.num_micro_batches, f"at least {reason}", _CORRECT)


def least_micro_batches(schedule: Schedule, pp: int) -> tuple[int, str]:
    """The fewest micro-batches that a plan may have, and the same in words."""
    if pp == 1 or schedule is Schedule.GPIPE:
        return 1, "1"
    if per_rank := SCHEDULE_NEEDS[schedule].least_per_rank:
        return per_rank * pp, f"{per_rank} · pp = {per_rank * pp}, which {schedule} needs"
    return pp, f"pp = {pp}: {schedule} gives each rank a micro-batch to start with"


def _check_stages(plan: Plan) -> None:
    count = plan.pp * plan.vpp
    if len(plan.stages) != count:
        product = f"pp = {count}" if plan.vpp == 1 else f"pp · vpp = {plan.pp} · {plan.vpp} = {count}"
        raise PlanError("stages", f"{len(plan.stages)} stages", f"{product} stages", _CORRECT)
    home: dict[str, int] = {}
    for index, stage in enumerate(plan.stages):
        where = f"stages[{index}]"
        if not stage.units:
            raise PlanError(f"{where}.units", [], "at least one unit", _CORRECT)
        for unit in stage.units:
            if unit in home:
                expected = f"each unit once ({unit} is already in stages[{home[unit]}])"
                raise PlanError(f"{where}.units", unit, expected, _CORRECT)
            home[unit] = index
        _check_recompute(f"{where}.recompute", stage.units, stage.recompute)
        _check_policies(where, plan, stage)
    _check_devices(plan)
    for kind, policies in plan.policies.items():
        for name, ops in policies.items():
            if name in _RESERVED:
                expected = f"a name other than {' and '.join(_RESERVED)}, which mean all and nothing"
                raise PlanError(f"policies.{kind}", name, expected, _CORRECT)
            if not ops:
                raise PlanError(f"policies.{kind}.{name}", {}, "at least one op", _CORRECT)
            for op, action in ops.items():
                if action not in ("recompute", "offload"):
                    field = f"policies.{kind}.{name}.{op}"
                    raise PlanError(field, action, "recompute or offload", _CORRECT)


def _check_devices(plan: Plan) -> None:
    """All stages name their device or none does, and those of one rank name the same."""
    known: dict[int, str] = {}
    for index, (stage, rank) in enumerate(zip(plan.stages, plan.stage_ranks, strict=True)):
        first, own = plan.stages[0].device, known.setdefault(rank, stage.device)
        if bool(stage.device) != bool(first) or own != stage.device:
            expected = "none" if not first else own or "a profile"
            raise PlanError(
                f"stages[{index}].device", stage.device, f"{expected}, as other stages say", _CORRECT
            )


def _check_recompute(where: str, units: Sequence[str], recompute: Sequence[str]) -> None:
    seen: set[str] = set()
    for unit in recompute:
        if unit not in units:
            raise PlanError(where, unit, "units of the same stage", _CORRECT)
        if unit in seen:
            raise PlanError(where, unit, "each unit once", _CORRECT)
        seen.add(unit)


def _check_policies(where: str, plan: Plan, stage: StagePlan) -> None:
    known = sorted({name for policies in plan.policies.values() for name in policies})
    for unit, name in stage.policies.items():
        if unit not in stage.units:
            raise PlanError(f"{where}.policies", unit, "units of the same stage", _CORRECT)
        if unit in stage.recompute:
            raise PlanError(f"{where}.policies", unit, "units that are not in recompute too", _CORRECT)
        if name not in known:
            expected = f"a name in policies ({', '.join(known) or 'which is empty'})"
            raise PlanError(f"{where}.policies.{unit}", name, expected, _CORRECT)


def _check_layouts(plan: Plan) -> None:
    if plan.cp == 1 and plan.cp_order != "plain":
        raise PlanError("cp_order", plan.cp_order, "plain, as cp is 1 and no sequence is cut", _CORRECT)
    for axis, boundary, layouts in (
        ("", plan.boundary, plan.layouts),
        ("cp_", plan.cp_boundary, plan.cp_layouts),
    ):
        _check_layout(f"{axis}boundary", boundary)
        for kind, choices in layouts.items():
            for name, strategy in choices.items():
                if not re.fullmatch(_STRATEGY[axis], strategy):
                    _check_layout(f"{axis}layouts.{kind}.{name}", strategy)


def _check_layout(field: str, text: str) -> None:
    try:
        Layout.parse(text)
    except PlanError as error:
        raise PlanError(field, text, error.expected, _CORRECT) from None
