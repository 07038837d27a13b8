"""Plans for tests: one made by hand, and a hypothesis strategy for any that validates."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import strategies as st

from autoplan.plan import SCHEDULE_NEEDS, Plan, Precision, Schedule, StagePlan

LAYERS = tuple(f"model.layers.{index}" for index in range(8))


def hand_made_plan(**changes: object) -> Plan:
    """Eight layers on 2 stages × 2 fsdp × 2 tp; ``changes`` replace fields."""
    fields = {
        "model": "tiny",
        "fingerprint": "0f1e2d3c",
        "global_batch": 32,
        "precision": Precision.BF16,
        "pp": 2,
        "fsdp": 2,
        "tp": 2,
        "micro_batch": 2,
        "num_micro_batches": 8,
        "zero": 2,
        "stages": (
            StagePlan(units=("prologue", *LAYERS[:4]), recompute=LAYERS[1:3]),
            StagePlan(units=(*LAYERS[4:], "epilogue")),
        ),
        "boundary": "S(1)",
        "layouts": {
            "block": {"linear": "cut o", "linear_1": "cut i", "add": "R"},
            "prologue": {"embedding": "cut v"},
        },
    }
    return Plan(**{**fields, **changes})  # pyright: ignore[reportArgumentType]


_names = st.text(min_size=1, max_size=8).filter(lambda text: text.isprintable())
_layouts = st.sampled_from(["R", "R*", "P", "S(0)", "S(1)", "S(2/3)"])
_choices = st.dictionaries(
    _names, st.one_of(_layouts, st.sampled_from(["cut o", "cut i", "cut b"])), max_size=3
)


@st.composite
def plans(draw: st.DrawFn) -> Plan:
    """Any plan that ``validate_plan`` accepts."""
    pp, dp, tp, micro_batch = (draw(st.integers(1, 4)) for _ in range(4))
    schedule = draw(st.sampled_from(Schedule)) if pp > 1 else Schedule.ONE_F_ONE_B
    needs = SCHEDULE_NEEDS[schedule]
    vpp = needs.vpp or draw(st.integers(1, 3))
    count = pp * vpp
    num_micro_batches = pp * max(needs.least_per_rank, 1) + draw(st.integers(0, 4))
    fsdp = draw(st.sampled_from([1, 2, 8]))
    units = draw(st.lists(_names, min_size=count, max_size=count + 6, unique=True))
    cuts = sorted(draw(st.permutations(range(1, len(units))))[: count - 1])
    ends = [0, *cuts, len(units)]
    stages = []
    for first, last in pairwise(ends):
        mine = tuple(units[first:last])
        stages.append(StagePlan(units=mine, recompute=tuple(draw(st.sets(st.sampled_from(mine))))))
    return Plan(
        model=draw(_names),
        fingerprint=draw(_names),
        global_batch=micro_batch * num_micro_batches * dp * fsdp,
        precision=draw(st.sampled_from(Precision)),
        pp=pp,
        dp=dp,
        fsdp=fsdp,
        tp=tp,
        vpp=vpp,
        schedule=schedule,
        micro_batch=micro_batch,
        num_micro_batches=num_micro_batches,
        zero=0 if fsdp == 1 else draw(st.integers(1, 3)),
        stages=tuple(stages),
        boundary=draw(_layouts),
        layouts=draw(st.dictionaries(_names, _choices, max_size=3)),
    )
