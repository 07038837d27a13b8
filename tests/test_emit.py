"""Emitted scripts: they run without autoplan, and their losses are the program's, bit for bit."""

from __future__ import annotations

import ast
import os
import re
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from case_lists import and_slow, case_name
from equality import Case, plan_for
from msgspec.structs import replace
from ranks import Ranks
from small_models import dropping, windows

import autoplan
from autoplan.cli.main import main
from autoplan.emit.code import forward_code
from autoplan.errors import PlanError
from autoplan.graph.trace import trace
from autoplan.plan import Plan, Precision, write_plan

HERE = Path(__file__).parent
STEPS = 3
FACTORIES = {"windows": windows, "dropping": dropping}
_FEW = [
    Case("dropping", tp=2, seed=3, dtype="fp32", recompute="mixed", policy="random"),
]
_MORE = [
    Case("windows", fsdp=2, zero=3, dtype="bf16"),
    Case("windows", fsdp=2, zero=2, dtype="fp32", policy="random", seed=1, num_micro_batches=3),
    Case("windows", pp=2, schedule="interleaved", vpp=2, dtype="bf16", recompute="full"),
    Case("dropping", dp=2, dtype="fp32", recompute="full"),
]


def _plan(case: Case) -> Plan:
    model, _ = FACTORIES.get(case.model, windows)()
    tokens = torch.zeros(case.micro_batch, 16, dtype=torch.long)
    return plan_for(trace(model, {"tokens": tokens, "targets": tokens}, None, Precision(case.dtype)), case)


def _batches(samples: int) -> list[dict[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(1)
    draws = [torch.randint(0, 128, (2, samples, 16), generator=generator) for _ in range(STEPS)]
    return [{"tokens": tokens, "targets": targets} for tokens, targets in draws]


def _losses(case: Case) -> list[str]:
    torch.manual_seed(0)
    model, _ = FACTORIES[case.model]()
    batches = _batches(case.global_batch)
    program = autoplan.parallelize(model, batches[0], plan=_plan(case), precision=case.dtype)
    return [repr(program.step(program.shard(batch)).item()) for batch in batches]


def _run(script: Path, ranks: int, *arguments: str) -> str:
    """What rank 0 prints; with a finder that refuses to import autoplan."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    bare = f"import sys, runpy; sys.modules['autoplan'] = None; sys.argv = {[str(script), *arguments]!r}; "
    common = {"WORLD_SIZE": str(ranks), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", bare + f"runpy.run_path({str(script)!r}, run_name='__main__')"],
            env={**os.environ, **common, "RANK": str(rank), "LOCAL_RANK": str(rank), "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(ranks)
    ]
    outputs = [process.communicate(timeout=200) for process in processes]
    assert all(process.returncode == 0 for process in processes), outputs[0][1]
    return outputs[0][0]


@pytest.mark.parametrize("case", and_slow(_FEW, _MORE), ids=case_name)
def test_a_script_gives_the_losses_of_the_program_bit_for_bit(two: Ranks, case: Case, tmp_path: Path) -> None:
    plan, script, data = tmp_path / "plan.json", tmp_path / "train.py", tmp_path / "data.pt"
    write_plan(_plan(case), plan)
    torch.save(_batches(case.global_batch), data)
    model = f"{HERE}/small_models.py:{case.model}"
    assert main(["emit", str(plan), "--model", model, "--out", str(script)]) == 0
    text = script.read_text()
    imported = {
        name.split(".")[0]
        for node in ast.walk(ast.parse(text))
        for name in (
            [alias.name for alias in node.names]
            if isinstance(node, ast.Import)
            else [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        )
    }  # fmt: skip
    assert "autoplan" not in imported
    assert "# layers.0.norm" in text  # ops stand under the modules that they come from
    said = _run(script, 2, "--steps", str(STEPS), "--data", str(data))
    expected = two(_losses, case)[0]
    assert re.findall(r"loss (\S+)", said) == expected
    assert len(set(expected)) == STEPS


@pytest.mark.parametrize(
    ("case", "arguments", "message"),
    [
        (Case(dtype="fp32"), {"model": f"{HERE}/small_models.py:windows", "seq": "8"}, "--seq"),
        (Case(tp=2, dtype="fp32"), {}, "layouts: got {}, expected how ops are cut"),
        (Case(dtype="fp32"), {"out": "/nowhere/train.py"}, "make the directory first"),
    ],
)
def test_what_cannot_be_written_is_refused(
    case: Case, arguments: dict[str, Any], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_plan(replace(_plan(case), layouts={}), tmp_path / "plan.json")
    given = {"model": f"{HERE}/small_models.py:windows", "out": str(tmp_path / "train.py"), **arguments}
    words = [word for name, value in given.items() for word in (f"--{name}", value)]
    assert main(["emit", str(tmp_path / "plan.json"), *words]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "train.py").exists()


def test_a_call_without_a_name_is_refused() -> None:
    def nameless(x: torch.Tensor) -> torch.Tensor:
        return x

    graph = torch.fx.Graph()
    graph.output(graph.call_function(nameless, (graph.placeholder("x"),)))
    with pytest.raises(PlanError, match="calls that a script can name"):
        forward_code(graph)
