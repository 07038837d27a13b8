"""Pins, bans and counterfactuals: what is held is held, what is forbidden is absent, and differences add up."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from test_cli_search import H100, MODELS
from test_cost_toys import toy_cluster
from test_search import best, find, step_s

from autoplan.cli.main import main
from autoplan.errors import AutoplanError, InputError, PlanError
from autoplan.plan import read_plan
from autoplan.search import Status


@pytest.mark.parametrize(
    ("name", "value"),
    [("tp", 1), ("pp", 1), ("zero", 3), ("micro_batch", 1), ("fsdp", 8), ("num_micro_batches", 4)],
)
def test_what_is_forbidden_is_absent_and_never_faster(name: str, value: int) -> None:
    free, without = find(), find(forbid=[(name, value)])
    assert getattr(best(without), name) != value
    assert step_s(without) >= free.bound_s * (1 - 1e-9)


def test_bans_leave_every_other_schedule() -> None:
    """The best schedule can be forbidden, and a ban on something else forbids no schedule."""
    free = find(pin={"pp": 2})
    fastest = str(best(free).schedule)
    assert fastest != "1f1b"
    without = find(pin={"pp": 2}, forbid=[("schedule", fastest)])
    assert str(best(without).schedule) != fastest
    others = [
        find(pin={"pp": 2, "schedule": name}) for name in ("1f1b", "zbv", "dualpipe-v") if name != fastest
    ]
    assert step_s(without) <= min(map(step_s, others)) * 1.01
    kept = find(pin={"pp": 2}, forbid=[("recompute", "mixed")])
    assert step_s(kept) <= step_s(find(pin={"pp": 2, "recompute": "none"})) * 1.01


@pytest.mark.parametrize("allowed", ["none", "full", "mixed"])
def test_recomputation_can_be_forbidden(allowed: str) -> None:
    others = [("recompute", value) for value in ("none", "full", "mixed") if value != allowed]
    plan = best(find(toy_cluster(nodes=2, memory=12e9), pin={"pp": 2}, forbid=others))
    assert plan.recompute == allowed


def test_the_boundary_can_be_held_and_forbidden() -> None:
    assert best(find(pin={"tp": 4, "boundary": "S(1)"})).boundary == "S(1)"
    assert best(find(pin={"tp": 4}, forbid=[("boundary", "S(1)")])).boundary == "R"


def test_one_op_can_be_held_and_forbidden() -> None:
    held = best(find(pin={"tp": 4, "layer.up": "cut s"}))
    assert held.layouts["layer"]["up"] == "cut s"
    barred = best(find(pin={"tp": 4}, forbid=[("layer.up", "cut o"), ("layer.w_down", "S(1)")]))
    assert barred.layouts["layer"]["up"] != "cut o"
    assert barred.layouts["layer"]["w_down"] != "S(1)"


def test_other_numbers_can_be_held() -> None:
    assert best(find(pin={"num_micro_batches": 8})).num_micro_batches == 8


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({"forbid": [("color", 1)]}, InputError, "forbid: got 'color', expected one of pp, dp"),
        ({"forbid": [("recompute", "some")]}, InputError, "mixed, none, full"),
        ({"forbid": [("recompute", w) for w in ("none", "full", "mixed")]}, PlanError, "left to choose"),
        ({"forbid": [("tp", n) for n in (1, 2, 4)]}, PlanError, "candidates left; release one"),
        ({"pin": {"layer.nothing": "cut o", "tp": 2}}, PlanError, "BLOCK.OP, of the blocks"),
        ({"pin": {"layer.up": "cut z", "tp": 2}}, PlanError, "one of R, cut s, cut o, cut i"),
        ({"pin": {"num_micro_batches": 7}}, PlanError, "num_micro_batches=7"),
    ],
)
def test_impossible_rules_are_refused(options: Any, error: type[AutoplanError], text: str) -> None:
    with pytest.raises(error) as caught:
        find(**options)
    assert text in str(caught.value)


def test_the_conflicting_set_is_as_small_as_it_can_be() -> None:
    """micro_batch=8 alone is to blame; tp=1 is not."""
    small = toy_cluster(nodes=2, memory=3.6e9)
    result = find(small, pin={"dp": 1, "micro_batch": 8})
    assert result.status is Status.INFEASIBLE
    assert result.conflicting == ("micro_batch=8",)
    cure = result.cures[0]
    assert cure.option == "--micro-batch" and cure.step_s is not None
    mended = find(small, pin={"dp": 1, "micro_batch": int(cure.value)})
    assert step_s(mended) <= cure.step_s * 1.03
    alone = find(toy_cluster(nodes=2, memory=2.75e9), batch=128, pin={"dp": 1})
    assert alone.conflicting == () and [cure.option for cure in alone.cures] == ["--nodes"]


@pytest.fixture
def plan_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models.py").write_text(MODELS, encoding="utf-8")
    assert main(["search", "models.py:perceptron", *H100, "--quiet", "--out", "plan.json"]) == 0
    return "plan.json"


def test_explaining_a_plan(plan_file: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explain", plan_file]) == 0
    out = capsys.readouterr().out
    assert "no plan of the space is below" in out and "pp=" in out
    assert max(map(len, out.splitlines())) <= 100
    assert main(["explain", plan_file, "--json"]) == 0
    data = json.loads(capsys.readouterr().out)
    plan = read_plan(plan_file)
    for decision in data["decisions"]:
        other = decision["otherwise"]
        assert decision["value"] == str(getattr(plan, decision["name"]))
        if other is not None and "plan" in other:
            assert str(other["plan"][decision["name"]]) != decision["value"]
            step = other["estimate"]["step_time_s"]
            assert step - data["estimate"]["step_time_s"] == pytest.approx(other["difference"]["step_time_s"])
            assert sum(other["difference"]["parts"].values()) == pytest.approx(
                other["difference"]["step_time_s"], abs=1e-9
            )


def test_why_not(plan_file: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explain", plan_file, "--why-not", "tp=4,recompute=full"]) == 0
    out = capsys.readouterr().out
    assert "seconds a step" in out and "bytes, worst rank" in out and "a step slower" in out
    assert main(["explain", plan_file, "--why-not", "pp=4", "--forbid", "micro_batch=1", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["why_not"]
    assert found["plan"]["pp"] == 4 and found["plan"]["micro_batch"] != 1


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (["--why-not", "tp"], "--why-not: got 'tp', expected KEY=VALUE"),
        (["--why-not", "tp=3"], "--why-not: tp: got 3, expected a divisor"),
        (["--pin", "tp"], "--pin: got 'tp', expected KEY=VALUE"),
        (["--gpus", "8"], "world size"),
        (["--model", "gpt2"], "fingerprint"),
    ],
)
def test_bad_questions(
    plan_file: str, options: list[str], text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["explain", plan_file, *options]) == 2
    assert text in capsys.readouterr().err


def test_a_plan_that_does_not_say_its_question(plan_file: str, capsys: pytest.CaptureFixture[str]) -> None:
    data = json.loads(Path(plan_file).read_text())
    assert data.pop("asked") == {"model": "models.py:perceptron", "cluster": "h100-sxm", "gpus": 4}
    Path("bare.json").write_text(json.dumps(data))
    assert main(["explain", "bare.json"]) == 2
    assert "--cluster: got None" in capsys.readouterr().err
    question = ["--model", "models.py:perceptron", "--cluster", "h100-sxm"]
    assert main(["explain", "bare.json", *question, "--why-not", "pp=1"]) == 0


def test_the_same_pin_twice_must_agree(plan_file: str, capsys: pytest.CaptureFixture[str]) -> None:
    question = ["search", "models.py:perceptron", *H100, "--quiet"]
    assert main([*question, "--tp", "2", "--pin", "tp=2", "--out", "two.json"]) == 0
    assert read_plan("two.json").tp == 2
    assert main([*question, "--tp", "2", "--pin", "tp=4"]) == 2
    assert "not also 2" in capsys.readouterr().err
