"""What a program's tensors take at the worst moment of a step is what its plan says, on ranks that pretend."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from equality import Case, plan_for
from fake_program import fake_program, pretending, step_bytes
from torch.distributed.fsdp import fully_shard
from torch.distributed.fsdp._fully_shard._fsdp_param_group import FSDPParamGroup

from autoplan.cost import price
from autoplan.graph.ir import ModelGraph
from autoplan.graph.sources.builtin import build_decoder
from autoplan.graph.sources.sizes import DecoderConfig
from autoplan.graph.trace import trace
from autoplan.hardware import Cluster
from autoplan.plan import Job, Precision

CONFIG = DecoderConfig("rotary", 16_000, 512, 6, 8, 4, 64, 1408, 512, "a small Llama")
SEQ = 512

CASES = [
    Case("llama", dtype="bf16", dp=8, micro_batch=4),
    Case("llama", dtype="bf16", fsdp=8, zero=1, micro_batch=4),
    Case("llama", dtype="bf16", dp=2, fsdp=4, zero=3, micro_batch=4),
    Case("llama", dtype="bf16", fsdp=8, zero=3, micro_batch=4, recompute="full"),
    Case("llama", dtype="bf16", dp=8, micro_batch=4, num_micro_batches=1),
    Case("llama", dtype="bf16", fsdp=8, zero=1, micro_batch=4, num_micro_batches=1),
    Case("llama", dtype="bf16", pp=2, fsdp=2, zero=2, micro_batch=4, num_micro_batches=8),
    Case("llama", dtype="bf16", pp=2, fsdp=2, zero=2, micro_batch=4, num_micro_batches=4, schedule="zb-h1"),
]


def batch(samples: int) -> dict[str, torch.Tensor]:
    ids = torch.empty((samples, SEQ), dtype=torch.long, device="meta")
    return {"input_ids": ids, "labels": ids}


@pytest.fixture(scope="module")
def traced() -> tuple[torch.nn.Module, ModelGraph]:
    with torch.device("meta"):
        model = build_decoder(CONFIG)
    return model, trace(model, batch(4), None, Precision.BF16, device="cpu")


@pytest.mark.parametrize(
    "case",
    CASES,
    ids=lambda case: (
        f"pp{case.pp}-dp{case.dp}-zero{case.zero}-{case.num_micro_batches}-{case.recompute}-{case.schedule}"
    ),
)
def test_worst_moment(traced: tuple[torch.nn.Module, ModelGraph], case: Case) -> None:
    model, graph = traced
    plan = plan_for(graph, case)
    job = Job(global_batch=case.global_batch, tokens_per_sample=SEQ)
    estimate = price(graph, plan, job, Cluster.of("h100-sxm", gpus=plan.world_size))
    for stage in range(plan.pp):
        predicted = estimate.stages[stage].memory
        with pretending(stage * plan.world_size // plan.pp, plan.world_size):
            program = fake_program(model, graph, plan)
            real = step_bytes(program, batch(program.share))
        off = (predicted.total - predicted.reserve) / real - 1
        assert -0.02 < off < 0.05


@pytest.mark.parametrize("schedule", ["interleaved", "zbv"])
def test_stages_of_a_rank_hold_one_buffer_of_reduced_gradients(
    traced: tuple[torch.nn.Module, ModelGraph], monkeypatch: pytest.MonkeyPatch, schedule: str
) -> None:
    model, graph = traced
    case = Case(
        "llama",
        dtype="bf16",
        pp=2,
        fsdp=2,
        zero=2,
        micro_batch=4,
        num_micro_batches=4,
        vpp=2,
        schedule=schedule,
    )
    plan = plan_for(graph, case)
    held: list[int] = []
    reduce = FSDPParamGroup.post_backward
    with pretending(0, plan.world_size):
        program = fake_program(model, graph, plan)
        roots = [fully_shard.state(stage) for stage in program.stages]  # type: ignore[attr-defined]

        def counted(group: FSDPParamGroup, *args: Any) -> None:
            reduce(group, *args)
            buffers = {
                id(one.reduce_scatter_input) for r in roots for one in r._comm_ctx.reduce_scatter_states
            }
            held.append(len(buffers))

        monkeypatch.setattr(FSDPParamGroup, "post_backward", counted)
        step_bytes(program, batch(program.share))
    assert len(roots) == 2
    assert max(held) == 1
