"""What people read: the report of a search and the text of a plan, against texts kept as files."""

from __future__ import annotations

import io
import os
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from msgspec.structs import replace as changed
from plans import hand_made_plan, plans
from results import JOB, hand_made_candidate, hand_made_result, infeasible_result

from autoplan.graph.unruled import UnruledOp
from autoplan.hardware import Cluster
from autoplan.plan import Job, Plan
from autoplan.report import no_plan_error, plan_text, print_report, search_report
from autoplan.report.layers import compress_names, stage_lines
from autoplan.search.result import SearchResult, Status

GOLDEN = Path(__file__).parent / "golden"
CLUSTER = Cluster.of("h100-sxm", nodes=8)


def report(result: SearchResult, job: Job = JOB, cluster: Cluster = CLUSTER) -> str:
    stream = io.StringIO()
    print_report(search_report(result, job, cluster), stream)
    return stream.getvalue()


def check(name: str, text: str) -> None:
    """Compare with ``golden/name``; run once with UPDATE_GOLDEN=1 to accept a change on purpose."""
    path = GOLDEN / name
    if os.environ.get("UPDATE_GOLDEN"):
        path.write_text(text, encoding="utf-8")
    assert text == path.read_text(encoding="utf-8")


def test_the_report_of_a_search() -> None:
    check("search_report.txt", report(hand_made_result()))


def test_the_report_of_one_gpu() -> None:
    best = hand_made_candidate(pp=1, fsdp=1, tp=1, zero=0, recompute=0)
    result = replace(hand_made_result(Status.OPTIMAL), best=best, runners_up=())
    check("search_report_one_gpu.txt", report(result, cluster=Cluster.of("h100-sxm", gpus=1)))


def test_the_text_of_a_plan() -> None:
    check("plan_text.txt", plan_text(hand_made_plan()) + "\n")


@pytest.mark.parametrize("status", [Status.OPTIMAL, Status.WITHIN_GAP, Status.LIMIT])
def test_a_report_is_one_screen(status: Status) -> None:
    best = hand_made_candidate(pp=16, fsdp=1, recompute=5)
    lines = report(
        replace(hand_made_result(status), best=best, runners_up=(hand_made_candidate(9.0),) * 20)
    ).splitlines()
    assert max(map(len, lines)) <= 100
    assert len(lines) <= 45
    assert not any(line.endswith(" ") for line in lines)


def test_the_report_lists_ops_without_axes() -> None:
    ops = (
        UnruledOp("own.scan.default", "model.layers.0.mixer", 80, 3_200_000_000, 12 << 30),
        *(UnruledOp("own.table.default", f"model.layers.{i}", 1, 0, 4096) for i in range(5)),
    )
    text = report(replace(hand_made_result(), unruled=ops))
    check("search_report_unruled.txt", text)
    assert max(map(len, text.splitlines())) <= 100
    one = report(replace(hand_made_result(), unruled=ops[:1]))
    assert "1 op has no rule and runs whole" in one


def test_samples_are_not_called_tokens() -> None:
    text = report(hand_made_result(), Job(global_batch=256))
    assert "samples/s" in text
    assert "token" not in text


def test_the_error_of_a_job_that_does_not_fit_names_the_cures() -> None:
    error = no_plan_error(infeasible_result())
    assert error.exit_status == 3
    assert error.remedy == "use --nodes 2; or use --optimizer sgd, whose state is smaller"


def test_the_error_without_a_cure_still_says_what_to_do() -> None:
    assert "more GPUs" in no_plan_error(replace(infeasible_result(), cures=())).remedy


@pytest.mark.parametrize(
    ("names", "text"),
    [
        ([], ""),
        (["a"], "a"),
        (["layers.9", "layers.10", "layers.11"], "layers.9-11"),
        (["layers.0", "layers.2"], "layers.0, layers.2"),
        (["prologue", "h.0", "h.1", "epilogue"], "prologue, h.0-1, epilogue"),
        (["a.1", "b.2"], "a.1, b.2"),
        (
            [f"layers.{i}.{part}" for i in range(3) for part in ("attn", "mlp")],
            "layers.0.attn, layers.0.mlp, layers.1.attn, …, layers.2.mlp (6 units)",
        ),
    ],
)
def test_names_are_compressed(names: list[str], text: str) -> None:
    assert compress_names(names) == text


def test_many_like_stages_share_a_line() -> None:
    plan = hand_made_candidate(pp=16, fsdp=1, recompute=2).plan
    assert stage_lines(plan) == [
        "stage 0: prologue, model.layers.0-4 (recompute 2)",
        "stages 1-14: model.layers.5-74, 5 units each (recompute 2)",
        "stage 15: model.layers.75-79, epilogue (recompute 2)",
    ]


def test_many_unlike_stages_are_cut_short() -> None:
    plan = hand_made_candidate(pp=16, fsdp=1, recompute=0).plan
    uneven = tuple(
        changed(stage, recompute=stage.units[:1] if index % 2 else ())
        for index, stage in enumerate(plan.stages)
    )
    lines = stage_lines(changed(plan, stages=uneven))
    assert len(lines) == 8
    assert lines[-2] == "… 9 more lines of stages"
    assert lines[-1].startswith("stage 15:")


@given(plans())
def test_any_plan_has_a_text(plan: Plan) -> None:
    text = plan_text(plan)
    assert plan.hash() in text
    assert str(plan.global_batch) in text
