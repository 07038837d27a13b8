"""One small GPT, as a program of autoplan and written by hand for the same plan; for ``runtime_overhead.py``."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.pipelining import PipelineStage, Schedule1F1B
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module
from torch.nn.parallel import DistributedDataParallel

import autoplan
from autoplan.graph.trace import trace
from autoplan.hardware import Cluster
from autoplan.plan import Job, Plan, Precision, StagePlan
from autoplan.search import search

__all__ = ["CASES", "Case", "by_hand", "make_batch", "make_model", "ours"]

SEQ, VOCAB, WIDTH, HEADS, LAYERS = 128, 2048, 256, 8, 4
CLUSTER = "cpu-gloo-4"

Step = Callable[[], Tensor]


@dataclass(frozen=True)
class Case:
    """A plan by its degrees; ``hand`` names what one writes by hand for it."""

    hand: str
    dp: int = 1
    fsdp: int = 1
    tp: int = 1
    pp: int = 1
    zero: int = 0
    micro_batch: int = 8
    num_micro_batches: int = 1

    @property
    def world_size(self) -> int:
        return self.dp * self.fsdp * self.tp * self.pp

    @property
    def global_batch(self) -> int:
        return self.micro_batch * self.num_micro_batches * self.dp * self.fsdp


CASES = {
    "dp 2": Case("DistributedDataParallel", dp=2),
    "fsdp 2": Case("fully_shard", fsdp=2, zero=3),
    "tp 2": Case("parallelize_module", tp=2),
    "fsdp 2 × tp 2": Case("fully_shard of parallelize_module", fsdp=2, tp=2, zero=3),
    "pp 2": Case("Schedule1F1B", pp=2, micro_batch=2, num_micro_batches=8),
}


class Block(nn.Module):
    """A transformer layer; under tensor parallelism it has its share of the heads."""

    def __init__(self) -> None:
        super().__init__()
        self.ln_1, self.ln_2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.q, self.k, self.v, self.o = (nn.Linear(WIDTH, WIDTH) for _ in range(4))
        self.up, self.down = nn.Linear(WIDTH, 4 * WIDTH), nn.Linear(4 * WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        y = self.ln_1(x)
        q, k, v = (f(y).unflatten(-1, (-1, WIDTH // HEADS)).transpose(1, 2) for f in (self.q, self.k, self.v))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.o(y.transpose(1, 2).flatten(2))
        return x + self.down(F.gelu(self.up(self.ln_2(x))))


class GPT(nn.Module):
    """Tokens to their loss."""

    def __init__(self) -> None:
        super().__init__()
        self.wte, self.wpe = nn.Embedding(VOCAB, WIDTH), nn.Embedding(SEQ, WIDTH)
        self.h = nn.ModuleList(Block() for _ in range(LAYERS))
        self.ln_f, self.head = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, VOCAB, bias=False)

    def embed(self, ids: Tensor) -> Tensor:
        return self.wte(ids) + self.wpe(torch.arange(ids.shape[1], device=ids.device))

    def loss(self, x: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(self.head(self.ln_f(x)).flatten(0, 1), labels.flatten())

    def forward(self, ids: Tensor, labels: Tensor) -> Tensor:
        x = self.embed(ids)
        for block in self.h:
            x = block(x)
        return self.loss(x, labels)


def make_model() -> GPT:
    """The same weights each time."""
    torch.manual_seed(0)
    return GPT()


def make_batch(samples: int) -> dict[str, Tensor]:
    """The same global batch each time."""
    generator = torch.Generator().manual_seed(1)
    ids, labels = (torch.randint(0, VOCAB, (samples, SEQ), generator=generator) for _ in range(2))
    return {"ids": ids, "labels": labels}


def adamw(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.AdamW(parameters, lr=1e-3)


@functools.cache
def _layouts() -> dict[str, dict[str, str]]:
    """Megatron's layouts of the blocks, as the search finds them; embedding and head stay whole."""
    batch = make_batch(1)

    def graph_at(samples: int) -> Any:
        rows = {name: t.expand(samples, -1) for name, t in batch.items()}
        return trace(make_model(), rows, None, Precision.FP32)

    job = Job(global_batch=8, tokens_per_sample=SEQ, precision=Precision.FP32)
    found = search(
        graph_at, job, Cluster.of(CLUSTER, gpus=2), pin={"tp": 2, "boundary": "R", "micro_batch": 8}
    )
    assert found.plan is not None
    return {kind: names for kind, names in found.plan.layouts.items() if kind not in ("prologue", "epilogue")}


def plan_of(case: Case) -> Plan:
    """The plan of ``case``."""
    graph = trace(make_model(), make_batch(case.micro_batch), None, Precision.FP32)
    names = [unit.name for unit in graph.units]
    half = len(names) // 2 if case.pp == 2 else len(names)
    stages = [StagePlan(units=tuple(part)) for part in (names[:half], names[half:]) if part]
    return Plan(
        model=graph.name, fingerprint=graph.fingerprint, global_batch=case.global_batch, precision=Precision.FP32,
        pp=case.pp, dp=case.dp, fsdp=case.fsdp, tp=case.tp, micro_batch=case.micro_batch, zero=case.zero,
        num_micro_batches=case.num_micro_batches, stages=tuple(stages), boundary="R",
        layouts=_layouts() if case.tp > 1 else {},
    )  # fmt: skip


def ours(case: Case) -> Step:
    """autoplan's program."""
    batch = make_batch(case.global_batch)
    program = autoplan.parallelize(make_model(), batch, None, adamw, CLUSTER, plan_of(case), precision="fp32")
    share = program.shard(batch)
    return lambda: program.step(share)


def by_hand(case: Case) -> Step:
    """The same as one would write it."""
    if case.pp > 1:
        return _pipeline(case)
    names = ("fsdp", "tp") if case.fsdp > 1 else ("dp", "tp")
    mesh = init_device_mesh("cpu", (case.dp * case.fsdp, case.tp), mesh_dim_names=names)
    model: nn.Module = make_model()
    if case.tp > 1:
        for block in model.h:  # type: ignore[union-attr]
            _tensor_parallel(block, mesh["tp"])
    if case.fsdp > 1:
        assert isinstance(model, GPT)
        for part in ([model.wte, model.wpe], *model.h, [model.ln_f, model.head], model):
            fully_shard(part, mesh=mesh["fsdp"], reshard_after_forward=part is not model)  # type: ignore[arg-type]
    elif case.dp > 1:
        model = DistributedDataParallel(model)
    optimizer = adamw(model.parameters())
    place = mesh.get_local_rank(names[0])
    ids, labels = (t.chunk(case.dp * case.fsdp)[place] for t in make_batch(case.global_batch).values())

    def step() -> Tensor:
        optimizer.zero_grad(set_to_none=True)
        loss = model(ids, labels)
        loss.backward()
        optimizer.step()
        return _mean(loss.detach(), dist.get_world_size())

    return step


def _mean(loss: Tensor, ranks: int) -> Tensor:
    loss = loss.clone()
    dist.all_reduce(loss)
    return loss / ranks


def _tensor_parallel(block: Any, mesh: DeviceMesh) -> None:
    plan = dict.fromkeys(("q", "k", "v", "up"), ColwiseParallel()) | dict.fromkeys(
        ("o", "down"), RowwiseParallel()
    )
    parallelize_module(block, mesh, plan)


class _Half(nn.Module):
    """A stage of the pipeline."""

    def __init__(self, whole: GPT, first: bool) -> None:
        super().__init__()
        self.first = first
        # the units are prologue, four layers, epilogue: three for each rank
        self.h = whole.h[:2] if first else whole.h[2:]
        self.whole = nn.ModuleList([whole.wte, whole.wpe] if first else [whole.ln_f, whole.head])

    def forward(self, x: Tensor) -> Tensor:
        if self.first:
            wte, wpe = self.whole
            x = wte(x) + wpe(torch.arange(x.shape[1]))
        for block in self.h:
            x = block(x)
        if self.first:
            return x
        norm, head = self.whole
        return head(norm(x))


def _pipeline(case: Case) -> Step:
    rank = dist.get_rank()
    batch = make_batch(case.global_batch)
    stage = PipelineStage(_Half(make_model(), rank == 0), rank, 2, torch.device("cpu"))
    schedule = Schedule1F1B(
        stage, case.num_micro_batches, loss_fn=lambda y, t: F.cross_entropy(y.flatten(0, 1), t.flatten())
    )
    optimizer = adamw(stage.submod.parameters())

    def step() -> Tensor:
        optimizer.zero_grad(set_to_none=True)
        losses: list[Tensor] = []
        if rank == 0:
            schedule.step(batch["ids"], return_outputs=False)
            total = torch.zeros(())
        else:
            schedule.step(target=batch["labels"], losses=losses, return_outputs=False)
            total = torch.stack([loss.detach() for loss in losses]).mean()
        optimizer.step()
        return _mean(total, 1)

    return step
