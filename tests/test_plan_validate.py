"""Each way in which a plan can contradict itself is refused by name."""

from __future__ import annotations

import pytest
from hypothesis import given
from plans import LAYERS, hand_made_plan, plans

from autoplan.errors import PlanError
from autoplan.plan import Plan, Schedule, StagePlan, validate_plan

FIRST = StagePlan(units=("prologue", *LAYERS[:4]))
SECOND = StagePlan(units=(*LAYERS[4:], "epilogue"))

ALONE: dict[str, object] = {"pp": 1, "fsdp": 4, "global_batch": 64}
FEW: dict[str, object] = {"global_batch": 4, "num_micro_batches": 1}


def stages(first: StagePlan = FIRST, second: StagePlan = SECOND) -> dict[str, object]:
    return {"stages": (first, second)}


@given(plans())
def test_a_consistent_plan_passes(plan: Plan) -> None:
    validate_plan(plan)


@pytest.mark.parametrize(
    ("changes", "field", "message"),
    [
        ({"tp": 0}, "tp", "an integer of at least 1"),
        ({"micro_batch": -1}, "micro_batch", "an integer of at least 1"),
        ({"cp_boundary": "S(x)"}, "cp_boundary", "S(dim)"),
        ({"cp_layouts": {"block": {"linear": "split"}}}, "cp_layouts.block.linear", "R, R*, P"),
        ({"ep": 8}, "ep", "a divisor of the dp · fsdp = 2 data ranks"),
        ({"fsdp": 4, "global_batch": 192, "dp": 3, "ep": 6}, "ep", "a divisor or a multiple of fsdp = 4"),
        ({"cp": 2, "ep": 2}, "ep", "1, as cp is 2"),
        ({"vpp": 2}, "vpp", "1, the stages that each rank holds under 1f1b"),
        ({"vpp": 3, "schedule": Schedule.ZBV}, "vpp", "2, the stages that each rank holds under zbv"),
        ({"vpp": 2, "schedule": Schedule.INTERLEAVED}, "stages", "pp · vpp = 2 · 2 = 4 stages"),
        ({**ALONE, "schedule": Schedule.GPIPE}, "schedule", "1f1b, as pp is 1"),
        ({**ALONE, "vpp": 2, "schedule": Schedule.ONE_F_ONE_B}, "vpp", "1, as pp is 1"),
        ({**FEW, "pp": 2}, "num_micro_batches", "at least pp = 2: 1f1b gives each rank a micro-batch"),
        (
            {**FEW, "global_batch": 12, "num_micro_batches": 3, "vpp": 2, "schedule": Schedule.DUALPIPE_V},
            "num_micro_batches",
            "at least 2 · pp = 4, which dualpipe-v needs",
        ),
        ({"zero": 4}, "zero", "0, 1, 2 or 3"),
        ({"zero": 0}, "zero", "1, 2 or 3, as fsdp is 2"),
        ({"fsdp": 1, "dp": 2}, "zero", "0, as fsdp is 1"),
        ({"global_batch": 33}, "global_batch", "2 · 8 · 1 · 2 = 32"),
        ({"stages": (FIRST,)}, "stages", "pp = 2 stages"),
        (stages(StagePlan(units=())), "stages[0].units", "at least one unit"),
        (
            stages(second=StagePlan(units=(LAYERS[0], *LAYERS[4:]))),
            "stages[1].units",
            "already in stages[0]",
        ),
        (stages(StagePlan(units=("prologue", "prologue"))), "stages[0].units", "each unit once"),
        (stages(StagePlan(units=FIRST.units, recompute=LAYERS[3:5])), "stages[0].recompute", "same stage"),
        (stages(StagePlan(units=FIRST.units, recompute=LAYERS[:1] * 2)), "stages[0].recompute", "once"),
        ({"boundary": "S(x)"}, "boundary", "S(dim)"),
        ({"layouts": {"block": {"linear": "split"}}}, "layouts.block.linear", "R, R*, P"),
        ({"layouts": {"block": {"linear": ""}}}, "layouts.block.linear", "R, R*, P"),
    ],
)
def test_a_contradiction_is_named(changes: dict[str, object], field: str, message: str) -> None:
    with pytest.raises(PlanError) as caught:
        validate_plan(hand_made_plan(**changes))
    assert caught.value.field == field
    assert message in str(caught.value)
    assert caught.value.remedy
