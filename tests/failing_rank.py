"""Two ranks train; in its third step, rank 1 fails in the way that the first argument names. Rank 0 says what it saw."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import torch
from torch import nn

import autoplan
from autoplan.errors import AutoplanError
from autoplan.plan import Plan, read_plan


def main(how: str, plan: Plan, checkpoint: str) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 1))
    program = autoplan.parallelize(
        model, torch.zeros(4, 8), lambda output, batch: output.square().mean(), plan=plan, precision="fp32"
    )
    batch = program.shard(torch.ones(4, 8))
    program.step(batch)
    program.save(checkpoint)
    if how == "load":
        return
    for step in range(1, 4):
        if step == 2 and program.data_rank == 1:
            if how == "killed":
                os.kill(os.getpid(), signal.SIGKILL)
            if how == "stopped":
                os.kill(os.getpid(), signal.SIGSTOP)
            if how == "wrong batch":
                batch = batch[:, :3]
        program.step(batch)


if __name__ == "__main__":
    try:
        main(sys.argv[1], read_plan(sys.argv[2]), sys.argv[3])
    except AutoplanError as error:
        Path(f"{sys.argv[3]}.rank{os.environ['RANK']}").write_text(f"{type(error).__name__}: {error}")
        sys.exit(error.exit_status)
