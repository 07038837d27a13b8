"""Start the ranks that measure, and join them."""

from __future__ import annotations

import contextlib
import datetime
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator, MutableMapping, Sequence
from typing import IO

from autoplan.errors import DistributedError
from autoplan.hardware.machine import cores, local_gpu
from autoplan.hardware.measure_progress import PROGRESS

__all__ = ["process_group", "spawn", "under_torchrun"]

COLLECTIVE_TIMEOUT = datetime.timedelta(minutes=5)
RUN_TIMEOUT_S = 3600.0
READ_TIMEOUT_S = 10.0  # for the last words of ranks that have ended
SLURM_NAMES = {"RANK": "SLURM_PROCID", "WORLD_SIZE": "SLURM_NTASKS", "LOCAL_RANK": "SLURM_LOCALID"}


def under_torchrun(environment: MutableMapping[str, str] = os.environ) -> bool:
    """True in a process that torchrun (or anything that sets the same variables) has started.

    srun numbers its tasks under other names, which are translated: ``srun python -m autoplan profile``
    needs only MASTER_ADDR and MASTER_PORT beside them.
    """
    if "MASTER_ADDR" in environment and "RANK" not in environment:
        for name, slurm in SLURM_NAMES.items():
            if slurm in environment:
                environment.setdefault(name, environment[slurm])
    return all(name in environment for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"))


@contextlib.contextmanager
def process_group() -> Iterator[int]:
    """The default process group of torchrun's ranks, NCCL with GPUs and gloo without; gives the rank."""
    import torch
    import torch.distributed as dist

    if torch.cuda.is_available():
        torch.cuda.set_device(local_gpu())
    dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo", timeout=COLLECTIVE_TIMEOUT)
    try:
        yield dist.get_rank()
    finally:
        dist.destroy_process_group()


def spawn(nproc: int, arguments: Sequence[str], *, silent: bool = False) -> None:
    """Run ``python -m autoplan profile`` with ``arguments`` as ``nproc`` ranks of this machine.

    The ranks share the cores: each computes with cores / nproc threads unless OMP_NUM_THREADS says
    otherwise. Their output is this process's, unless ``silent``.

    Raises:
        DistributedError: a rank failed, or the run took more than an hour.
    """
    threads = os.environ.get("OMP_NUM_THREADS") or str(max(1, cores() // nproc))
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(nproc)]
    command = [sys.executable, *launcher, "-m", "autoplan", "profile", *arguments]
    shown = not silent and sys.stderr.isatty()  # a progress bar needs the terminal itself
    process = subprocess.Popen(
        command,
        env=os.environ | {"OMP_NUM_THREADS": threads},
        stdout=subprocess.DEVNULL if silent else None,
        stderr=None if shown else subprocess.PIPE,
        text=True,
    )
    errors: list[str] = []
    reader = threading.Thread(target=_read, args=(process.stderr, errors, not silent), daemon=True)
    reader.start()
    try:
        process.wait(timeout=RUN_TIMEOUT_S)
    except BaseException as error:
        process.terminate()  # the launcher passes it on to the ranks
        process.wait()
        if isinstance(error, subprocess.TimeoutExpired):
            raise DistributedError(
                "--nproc",
                nproc,
                f"a run of at most {RUN_TIMEOUT_S:.0f} s",
                "run it again: it goes on where it stopped",
            ) from error
        raise
    if process.returncode:
        reader.join(READ_TIMEOUT_S)
        raise DistributedError(
            "--nproc",
            nproc,
            f"{nproc} ranks that finish (exit status {process.returncode}: {_reason(''.join(errors))})",
            "run it again to go on where it stopped, with fewer ranks, or under torchrun to see all that they say",
        )


def _read(stream: IO[str] | None, lines: list[str], tell: bool) -> None:
    """Keep what the ranks write to stderr; ``tell`` their progress."""
    for line in stream or ():
        lines.append(line)
        if tell and line.startswith(PROGRESS):
            print(line, end="", file=sys.stderr, flush=True)


def _reason(errors: str) -> str:
    """What the ranks say went wrong: the last line of the first traceback, or autoplan's own message."""
    named = re.findall(r"^(?:\[rank\d+\]: |autoplan: )?((?:[\w.]*Error|error)\b.*)$", errors, re.MULTILINE)
    return named[0].strip() if named else "no reason given"
