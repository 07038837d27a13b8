"""What a unit keeps for its backward pass: the numbers stay those of one process, and what is held is what is priced.

Policies are drawn by lot: of every op and change of layout, whether it keeps what it makes, makes it again, or parks it
in the host's memory.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from case_lists import and_slow
from equality import Case, check, make, make_batch, plan_for
from kept_bytes import check_bytes
from msgspec.structs import replace
from plans import LAYERS, hand_made_plan
from ranks import Ranks

from autoplan.errors import PlanError
from autoplan.graph.trace import trace
from autoplan.plan import (
    Precision,
    StagePlan,
    check_policies,
    plan_json,
    read_plan,
    validate_plan,
    write_plan,
)
from autoplan.rewrite.host_copies import Copies
from autoplan.rewrite.keeping import Keeping, Planned

_ONE = [
    Case("gpt", policy="offload"),
    Case("llama", policy="random", recompute="mixed", seed=2),
    Case("moe", micro_batch=2, policy="again", seed=3),
]
_MORE_ONE = [
    Case("gpt", micro_batch=2, policy="random", seed=1),
    Case("llama", policy="again"),
    Case("moe", micro_batch=2, policy="random", seed=3),
]
_TWO = [
    Case("gpt", tp=2, seed=1, boundary="S(1)", policy="random", micro_batch=2),
    Case("llama", pp=2, schedule="zbv", vpp=2, num_micro_batches=4, policy="random", seed=7),
    Case("llama", fsdp=2, zero=3, policy="random", seed=5),
]
_MORE_TWO = [
    Case("llama", tp=2, seed=2, policy="random", micro_batch=2),
    Case("llama", tp=2, seed=3, policy="again", boundary="S(1)"),
    Case("moe", tp=2, seed=1, policy="random", micro_batch=2),
    Case("gpt", fsdp=2, zero=2, policy="random", dtype="fp32", seed=6),
    Case("gpt", fsdp=2, zero=1, policy="again", seed=6),
    Case("gpt", pp=2, num_micro_batches=3, policy="again", seed=8),
    Case("gpt", cp=2, cp_attention="rows", policy="random", seed=9),
]
_FOUR = [
    Case("llama", pp=2, tp=2, schedule="zb-h1", num_micro_batches=4, policy="random", seed=10),
    Case("llama", fsdp=2, tp=2, zero=3, policy="random", seed=11, boundary="S(1)"),
    Case("llama", cp=2, tp=2, policy="random", seed=12, cp_attention="heads"),
]


def _name(case: Case) -> str:
    hidden = ("model", "cp_boundary", "dtype")
    shown = [f"{k}{v}" for k, v in vars(case).items() if k not in hidden and v not in (1, 0, "none", "R", "")]
    return "-".join([case.model, *shown])


@pytest.mark.parametrize("case", and_slow(_ONE, _MORE_ONE), ids=_name)
def test_one_process(case: Case) -> None:
    check(case)


@pytest.mark.parametrize("case", and_slow(_TWO, _MORE_TWO), ids=_name)
def test_two_ranks(two: Ranks, case: Case) -> None:
    two(check, case)


@pytest.mark.parametrize("case", and_slow([], _FOUR), ids=_name)
def test_four_ranks(four: Ranks, case: Case) -> None:
    four(check, case)


@pytest.mark.parametrize("case", and_slow([*_ONE, Case("llama", recompute="mixed")], _MORE_ONE), ids=_name)
def test_what_is_held_is_what_is_priced(case: Case) -> None:
    check_bytes(case)


@pytest.mark.parametrize("case", and_slow(_TWO[:1], [_MORE_TWO[1]]), ids=_name)
def test_what_is_held_under_tp_is_what_is_priced(two: Ranks, case: Case) -> None:
    two(check_bytes, case)


@pytest.mark.parametrize(
    "ops", [(torch.sin, torch.cos), (torch.exp, torch.sigmoid)], ids=["reads its input", "reads its results"]
)
def test_an_op_with_a_list_of_results_runs_again(ops: Any) -> None:
    runs = []

    def both(x: torch.Tensor) -> list[torch.Tensor]:
        runs.append(x)
        return [op(x) for op in ops]

    def body(x: torch.Tensor) -> torch.Tensor:
        one, other = op(x * 2)
        return (one * other[1:]).sum()

    x = torch.linspace(0, 1, 5, dtype=torch.float64)[None, :].expand(1, 5).clone().requires_grad_()
    op = both
    (expected,) = torch.autograd.grad(body(x.expand(2, 5)), x)
    op, before = Planned("both", both), len(runs)
    kept = Keeping({"both": "recompute"}, Copies()).run(body, (x.expand(2, 5),), ["x"])
    assert torch.equal(torch.autograd.grad(kept, x)[0], expected)
    assert len(runs) == before + 2  # once for both


def _stages(**policies: str) -> tuple[StagePlan, ...]:
    return (
        StagePlan(units=("prologue", *LAYERS), recompute=LAYERS[1:3], policies=policies),
        StagePlan(units=("epilogue",)),
    )


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"stages": _stages(**{"layers.9": "lean"})}, "stages[0].policies"),
        ({"stages": _stages(**{LAYERS[1]: "lean"})}, "stages[0].policies"),
        ({"stages": _stages(**{LAYERS[0]: "unknown"})}, f"stages[0].policies.{LAYERS[0]}"),
        ({"policies": {"block": {"full": {"add": "recompute"}}}}, "policies.block"),
        ({"policies": {"block": {"lean": {}}}}, "policies.block.lean"),
        ({"policies": {"block": {"lean": {"add": "forget"}}}}, "policies.block.lean.add"),
    ],
)
def test_policies_that_contradict_the_plan_are_refused(changes: dict[str, Any], field: str) -> None:
    plan = hand_made_plan(**{"policies": {"block": {"lean": {"add": "recompute"}}}, **changes})
    with pytest.raises(PlanError) as caught:
        validate_plan(plan)
    assert caught.value.field == field


@pytest.mark.parametrize(
    ("kind", "policy"),
    [
        ("nowhere", {"add": "recompute"}),
        ("PlainBlock_0", {"nothing": "recompute"}),
        ("PlainBlock_0", {"x": "recompute"}),
    ],
)
def test_policies_of_what_a_model_does_not_have_are_refused(kind: str, policy: dict[str, str]) -> None:
    model, loss = make("gpt", "fp32")
    graph = trace(model, make_batch("gpt", 1, 0), loss, Precision.FP32)
    plan = replace(plan_for(graph, Case("gpt", dtype="fp32")), policies={kind: {"lean": policy}})
    with pytest.raises(PlanError, match="policies"):
        check_policies(graph, plan)


def test_a_plan_file_without_policies_has_no_word_of_them(tmp_path: Path) -> None:
    plan = hand_made_plan()
    assert "policies" not in plan_json(plan)
    with_one = hand_made_plan(policies={"block": {"lean": {"add": "recompute"}}})
    write_plan(with_one, tmp_path / "plan.json")
    assert read_plan(tmp_path / "plan.json") == with_one
    assert with_one.hash() != plan.hash()
