"""One rank of a program of any size, on a process group that pretends and with tensors that hold nothing."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributed.pipelining._utils import InferenceMode
from torch.testing._internal.distributed.fake_pg import FakeStore

from autoplan.graph.ir import ModelGraph
from autoplan.plan import Plan
from autoplan.runtime import Program
from autoplan.runtime.groups import forget_groups
from autoplan.runtime.live_bytes import LiveBytes
from autoplan.runtime.parallelize import allocated, local_stages
from autoplan.runtime.world import lay_mesh

__all__ = ["fake_program", "pretending", "step_bytes"]


@contextlib.contextmanager
def pretending(rank: int, world_size: int) -> Iterator[None]:
    """A process group of ``world_size`` of which this process is ``rank``, and the others do not exist."""
    forget_groups()
    dist.init_process_group("fake", store=FakeStore(), rank=rank, world_size=world_size)
    try:
        yield
    finally:
        dist.destroy_process_group()
        forget_groups()


def adamw(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.AdamW(parameters, lr=1e-3)


def fake_program(
    model: nn.Module, graph: ModelGraph, plan: Plan, optimizer: Callable[[Any], Any] = adamw
) -> Program:
    """This rank's program; ``model`` is on the meta device. Call it inside ``pretending``."""
    world = lay_mesh(plan, False)
    parameters = dict(model.named_parameters(remove_duplicate=False))
    buffers: Mapping[str, Tensor] = dict(model.named_buffers(remove_duplicate=False))
    stages = local_stages(graph, plan, world, parameters, buffers, model.training)
    with FakeTensorMode(allow_non_fake_inputs=True):
        allocated(stages, world.device)
    program = Program(stages, plan, graph, world, optimizer, model, buffers)
    if program._pipeline is not None:
        program._pipeline.schedule._warmup_p2p = _without_vote
    return program


def _without_vote(stages: Any, *_: Any) -> None:
    """Stages ask each other whether all know their shapes; nobody would answer."""
    for stage in stages:
        stage._inference_mode = InferenceMode.STATIC


def step_bytes(program: Program, batch: Mapping[str, Tensor]) -> int:
    """The most bytes of tensors that live at once in the program's second step (the first makes the moments).

    ``batch`` is this rank's share, on the meta device.
    """
    with FakeTensorMode(allow_non_fake_inputs=True):
        share = {name: torch.empty(t.shape, dtype=t.dtype) for name, t in batch.items()}
        state = [*program.parameters(), *program.buffers()]
        with LiveBytes(state) as live:
            program.step(share)
            live.restart()
            program.step(share)
    return live.peak
