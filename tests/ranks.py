"""A pool of gloo ranks that tests share: started once per world size, since importing torch takes seconds.

All pools are forked from one server, which imports what most tests need and nothing more: it has no threads.
"""

from __future__ import annotations

import os
import socket
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection, wait
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

_PRELOAD = [
    "equality",
    "torch.distributed.checkpoint",
    "torch.distributed.fsdp",
    "torch.distributed.pipelining",
    "autoplan.runtime.program",
    "autoplan.search.run",
    "transformers.models.llama.modeling_llama",
]
_TIMEOUT_S = 240
_GRACE_S = 20


class Ranks:
    """``ranks(function, *args)`` runs ``function(*args)`` on every rank and returns what each rank returned."""

    def __init__(self, size: int, start: str = "forkserver") -> None:
        """``start``: how processes start; those that ``fork`` have all that this one has worked out."""
        self.size, self.start = size, start
        self.pipes: list[Connection] = []
        self.processes: list[Any] = []

    def _start(self) -> None:
        context = mp.get_context(self.start)
        if self.start == "forkserver":
            context.set_forkserver_preload(_PRELOAD)
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        for rank in range(self.size):
            here, there = context.Pipe()
            process = context.Process(target=_serve, args=(there, rank, self.size, port), daemon=True)
            process.start()
            there.close()
            self.pipes.append(here)
            self.processes.append(process)

    def __call__(self, function: Callable[..., Any], *args: Any) -> list[Any]:
        if not self.pipes:
            self._start()
        for pipe in self.pipes:
            pipe.send((function, args))
        answers: dict[int, tuple[bool, Any]] = {}
        timeout = _TIMEOUT_S
        while len(answers) < self.size:
            missing = [pipe for rank, pipe in enumerate(self.pipes) if rank not in answers]
            heard = wait(missing, timeout)
            if not heard:
                break
            for pipe in heard:
                assert isinstance(pipe, Connection)
                rank = self.pipes.index(pipe)
                try:
                    answers[rank] = pipe.recv()
                except EOFError:
                    answers[rank] = False, "the process ended"
                if not answers[rank][0]:
                    timeout = _GRACE_S  # the others may wait for this one for ever
        failures = [f"rank {rank}: {text}" for rank, (good, text) in sorted(answers.items()) if not good]
        silent = sorted(set(range(self.size)) - set(answers))
        if silent:
            failures.append(f"ranks {silent} of {self.size} did not answer within {timeout} s")
            self.close()  # they cannot be spoken to again; the next call starts others
        if failures:
            raise AssertionError("\n".join(failures))
        return [answers[rank][1] for rank in range(self.size)]

    def close(self) -> None:
        for pipe in self.pipes:
            pipe.close()
        for process in self.processes:
            process.join(10)
            if process.is_alive():
                process.kill()
        self.pipes, self.processes = [], []


def _serve(pipe: Any, rank: int, size: int, port: int) -> None:
    os.environ.update(
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(port),
        RANK=str(rank),
        LOCAL_RANK=str(rank),
        WORLD_SIZE=str(size),
    )
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    while True:
        try:
            function, args = pipe.recv()
        except EOFError:
            break
        try:
            pipe.send((True, function(*args)))
        except BaseException as error:
            pipe.send((False, f"{type(error).__name__}: {error}\n{traceback.format_exc()}"))
    os._exit(0)  # gloo's own teardown can abort when a peer has gone first
