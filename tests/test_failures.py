"""A rank that dies, hangs or is given a wrong batch: the others stop with an error that says so, and nothing hangs."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from equality import Case, plan_for
from torch import nn

import autoplan
from autoplan.graph.trace import trace
from autoplan.plan import Precision, write_plan

LIMIT_S = 200


def _loss(output: torch.Tensor, batch: torch.Tensor) -> torch.Tensor:
    return output.square().mean()


def _model() -> nn.Module:
    return nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 1))


@pytest.mark.parametrize("how", ["killed", "stopped", "wrong batch"])
def test_the_ranks_that_are_left_stop_and_say_why(how: str, tmp_path: Path) -> None:
    graph = trace(_model(), torch.zeros(2, 8), _loss, Precision.FP32)
    case = Case(dp=2, micro_batch=2, num_micro_batches=1, dtype="fp32")
    write_plan(plan_for(graph, case), tmp_path / "plan.json")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    script, last = Path(__file__).with_name("failing_rank.py"), tmp_path / "last"
    ranks = [
        subprocess.Popen(
            [sys.executable, str(script), how, str(tmp_path / "plan.json"), str(last)],
            env={**os.environ, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2",
                 "RANK": str(rank), "LOCAL_RANK": str(rank), "AUTOPLAN_TIMEOUT": "20" if how == "stopped" else "120"},
        )
        for rank in range(2)
    ]  # fmt: skip
    try:
        assert ranks[0].wait(LIMIT_S) == 1
        if how != "stopped":
            assert ranks[1].wait(LIMIT_S) == {"killed": -signal.SIGKILL, "wrong batch": 2}[how]
    finally:
        for rank in ranks:
            rank.kill()
            rank.wait()
    said = Path(f"{last}.rank0").read_text()
    assert said.startswith("DistributedError: ranks: got ")
    assert said.endswith("see that rank's own output, start again, and load the last checkpoint")
    if how == "wrong batch":
        assert "rank 1: batch.x: got (2, 3)" in said or "rank 1: batch.input: got (2, 3)" in said
    else:
        assert "a rank that has gone, or hangs" in said
    program = autoplan.parallelize(_model(), torch.zeros(4, 8), _loss, plan=plan_for(
        trace(_model(), torch.zeros(4, 8), _loss, Precision.FP32), Case(micro_batch=4, num_micro_batches=1, dtype="fp32")
    ), precision="fp32")  # fmt: skip
    program.load(last)
    assert program.steps_done == 1
