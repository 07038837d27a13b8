"""A pool of gloo ranks that tests share: started once per world size, since importing torch takes seconds."""

from __future__ import annotations

import os
import socket
import traceback
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

_TIMEOUT_S = 240


class Ranks:
    """``ranks(function, *args)`` runs ``function(*args)`` on every rank and returns what each rank returned."""

    def __init__(self, size: int) -> None:
        context = mp.get_context("spawn")
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self.size = size
        self.pipes = []
        self.processes = []
        for rank in range(size):
            here, there = context.Pipe()
            process = context.Process(target=_serve, args=(there, rank, size, port), daemon=True)
            process.start()
            there.close()
            self.pipes.append(here)
            self.processes.append(process)

    def __call__(self, function: Callable[..., Any], *args: Any) -> list[Any]:
        for pipe in self.pipes:
            pipe.send((function, args))
        answers = []
        for rank, pipe in enumerate(self.pipes):
            if not pipe.poll(_TIMEOUT_S):
                raise TimeoutError(f"rank {rank} of {self.size} did not answer within {_TIMEOUT_S} s")
            answers.append(pipe.recv())
        failures = [(rank, text) for rank, (good, text) in enumerate(answers) if not good]
        if failures:
            raise AssertionError("\n".join(f"rank {rank}: {text}" for rank, text in failures))
        return [value for _, value in answers]

    def close(self) -> None:
        for pipe in self.pipes:
            pipe.close()
        for process in self.processes:
            process.join(10)
            if process.is_alive():
                process.kill()


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
