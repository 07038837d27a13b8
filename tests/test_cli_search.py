"""``autoplan search`` from the command line to the plan file, with the real tracer, cost model and search."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from autoplan.cli.main import main
from autoplan.plan import read_plan

MODELS = """
import torch
from torch import nn
from torch.nn import functional as F


class Block(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.up = nn.Linear(width, 4 * width)
        self.down = nn.Linear(4 * width, width)

    def forward(self, x):
        return x + self.down(F.gelu(self.up(x)))


def perceptron():
    model = nn.Sequential(*[Block(256) for _ in range(4)], nn.Linear(256, 8))
    return model, lambda samples: torch.empty(samples, 256), lambda output, batch: output.square().mean()
"""

H100 = ["--cluster", "h100-sxm", "--gpus", "4", "--global-batch", "64"]


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models.py").write_text(MODELS, encoding="utf-8")
    return tmp_path


def test_from_a_factory_to_a_plan_file(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["search", "models.py:perceptron", *H100, "--out", "plan.json"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert "samples/s" in out
    assert out.endswith("written to plan.json\n")
    assert max(map(len, out.splitlines())) <= 100
    plan = read_plan("plan.json")
    assert plan.world_size == 4
    assert plan.global_batch == 64
    assert main(["show", "plan.json"]) == 0
    assert plan.hash() in capsys.readouterr().out


def test_the_same_question_has_the_same_answer_byte_for_byte(capsys: pytest.CaptureFixture[str]) -> None:
    question = ["search", "models.py:perceptron", *H100, "--tp", "2", "--quiet", "--out"]
    assert main([*question, "one.json"]) == 0
    assert main([*question, "two.json"]) == 0
    assert Path("one.json").read_bytes() == Path("two.json").read_bytes()
    assert capsys.readouterr() == ("", "")


def test_the_trace_is_the_step_that_was_priced(capsys: pytest.CaptureFixture[str]) -> None:
    pins = ["--pp", "2", "--schedule", "1f1b", "--fsdp", "2", "--micro-batch", "4", "--recompute", "full"]
    assert main(["search", "models.py:perceptron", *H100, *pins, "--json", "--trace", "trace.json"]) == 0
    result = json.loads(capsys.readouterr().out)
    trace = json.loads(Path("trace.json").read_text(encoding="utf-8"))
    assert trace["otherData"]["step_time_s"] == result["estimate"]["step_time_s"]
    slices = [record for record in trace["traceEvents"] if record["ph"] == "X"]
    m = result["plan"]["num_micro_batches"]
    for rank, stage in enumerate(result["estimate"]["stages"]):
        assert {f"F{rank}.{i}" for i in range(m)} | {f"B{rank}.{i}" for i in range(m)} <= {
            record["name"] for record in slices if record["pid"] == rank
        }
        forward, backward = (
            next(record for record in slices if record["name"] == f"{kind}{rank}.0") for kind in "FB"
        )
        assert forward["dur"] == pytest.approx(stage["forward_s"] * 1e6)
        assert backward["dur"] == pytest.approx(stage["backward_s"] * 1e6)
        inside = [
            record
            for record in slices
            if record.get("args") == backward["args"]
            and record is not backward
            and "send" not in record["name"]
        ]
        assert sum(record["dur"] for record in inside) == pytest.approx(backward["dur"])
        assert any(record["name"].endswith(" again") for record in inside)
        counted = [
            sum(record["args"].values())
            for record in trace["traceEvents"]
            if record["ph"] == "C" and record["pid"] == rank
        ]
        assert max(counted) == pytest.approx(sum(stage["memory"].values()))


def test_a_trace_that_cannot_be_written(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    question = ["search", "models.py:perceptron", *H100]
    assert main([*question, "--trace", "no/such/directory/trace.json"]) == 2
    assert "--trace: got 'no/such/directory/trace.json'" in capsys.readouterr().err
    assert main([*question, "--trace", "."]) == 2
    assert "--trace: got '.', expected a path that can be written" in capsys.readouterr().err


def test_pins_hold(capsys: pytest.CaptureFixture[str]) -> None:
    pins = [
        "--pp",
        "2",
        "--tp",
        "1",
        "--fsdp",
        "2",
        "--zero",
        "3",
        "--micro-batch",
        "4",
        "--recompute",
        "full",
    ]
    assert main(["search", "models.py:perceptron", *H100, *pins, "--json"]) == 0
    data = json.loads(capsys.readouterr().out)
    plan, estimate = data["plan"], data["estimate"]
    held = {name: plan[name] for name in ("pp", "tp", "fsdp", "zero", "micro_batch", "recompute")}
    assert held == {"pp": 2, "tp": 1, "fsdp": 2, "zero": 3, "micro_batch": 4, "recompute": "full"}
    assert data["status"] in ("optimal", "within_gap", "limit")
    assert data["bound_s"] <= estimate["step_time_s"] * (1 + 1e-9)
    assert sum(estimate["parts"].values()) == pytest.approx(estimate["step_time_s"])


@pytest.mark.parametrize(
    ("options", "parts"),
    [
        (["--tp", "3"], ["--tp", "3", "a divisor of the 4 ranks"]),
        (["--micro-batch", "7"], ["--micro-batch", "7", "a divisor of the global batch, 64"]),
        (["--dp", "4", "--global-batch", "63"], ["--global-batch", "63", "60 or 64"]),
        (["--fsdp", "2", "--zero", "0"], ["--zero", "0", "fsdp is 2"]),
    ],
)
def test_pins_that_cannot_hold_are_named(
    options: list[str], parts: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["search", "models.py:perceptron", *H100, *options]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    for part in parts:
        assert part in err


def test_what_does_not_fit_says_what_would(capsys: pytest.CaptureFixture[str]) -> None:
    job = ["--cluster", "h100-sxm", "--nodes", "1", "--seq", "2048", "--global-batch", "64"]
    assert main(["search", "llama3-70b", *job, "--no-recompute", "--tp", "8", "--json"]) == 3
    out, err = capsys.readouterr()
    data = json.loads(out)
    assert data["status"] == "infeasible"
    assert data["plan"] is None
    assert "--nodes" in {cure["option"] for cure in data["cures"]}
    assert err.startswith("autoplan: error: no plan fits: ")
    assert "nodes" in err
    assert err.count("\n") == 1
