"""Programs of models that are no chain of alike blocks: skips over stages, an encoder that every decoder layer reads,
one block called again and again, statistics of the batch. Loss, gradients and weights are those of one process."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from equality import Case, difference, plan_for
from ranks import Ranks
from torch import Tensor, nn
from zoo.architecture import Example
from zoo.others import OTHERS
from zoo.plain import PLAIN

import autoplan
from autoplan.errors import PlanError
from autoplan.graph.trace import trace
from autoplan.plan import Precision

ALL = {architecture.name: architecture for architecture in (*OTHERS, *PLAIN)}


def _classes(output: Any, batch: Any) -> Tensor:
    return F.cross_entropy(output["classes"], batch["labels"])


def _example(name: str) -> Example:
    example = ALL[name].tiny()
    if name != "transformer-encoder":
        return example
    return Example(example.build, example.batch, example.samples, _classes)


def _model(example: Example) -> nn.Module:
    torch.manual_seed(0)
    model = example.build().double()
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        if isinstance(module, nn.MultiheadAttention | nn.LSTM):
            module.dropout = 0.0
    return model


def _batch(example: Example, samples: int, step: int) -> dict[str, Tensor]:
    torch.manual_seed(100 + step)
    return {k: t.double() if t.is_floating_point() else t for k, t in example.batch(samples).items()}


def _sgd(parameters: Any) -> torch.optim.Optimizer:
    """Unlike AdamW it does not blow up rounding noise where the true gradient is zero (a key's bias)."""
    return torch.optim.SGD(parameters, lr=0.05, momentum=0.9)


def _check(name: str, case: Case) -> None:
    """Three steps of the program, and of the model itself."""
    example = _example(name)
    model = _model(example)
    twin = copy.deepcopy(model)
    batch = _batch(example, case.micro_batch, 0)
    plan = plan_for(trace(model, batch, example.loss, Precision.FP64), case)
    program = autoplan.parallelize(
        model, _batch(example, case.global_batch, 0), example.loss, _sgd, plan=plan, precision="fp64"
    )  # fmt: skip
    optimizer = _sgd(twin.parameters())
    for step in range(3):
        batch = _batch(example, case.global_batch, step)
        got = program.step(program.shard(batch)).item()
        optimizer.zero_grad()
        output = twin(**batch)
        loss = example.loss(output, batch) if example.loss is not None else output
        loss = loss if isinstance(loss, Tensor) else loss["loss"]
        loss.backward()
        if step == 0:
            theirs = {n: p.grad for n, p in twin.named_parameters() if p.grad is not None}
            assert difference(program.full_gradients(), theirs) < 1e-10
        optimizer.step()
        assert abs(got - loss.item()) < 1e-10 * abs(loss.item())
    kept = program.full_state_dict()
    for name, parameter in twin.named_parameters():
        if name in kept:
            torch.testing.assert_close(kept[name], parameter.detach(), rtol=1e-9, atol=1e-12)
    for buffer in (name for name in kept if name in dict(twin.named_buffers())):
        torch.testing.assert_close(kept[buffer], twin.get_buffer(buffer))


CASES = [Case(dp=2), Case(pp=2, micro_batch=2, recompute="mixed")]
SKIPS_OVER_CHUNKS = Case(pp=2, vpp=2, schedule="zbv", num_micro_batches=3, recompute="mixed")
MORE_CASES = [
    Case(fsdp=2, zero=3, micro_batch=2),
    Case(pp=2, num_micro_batches=3),
    SKIPS_OVER_CHUNKS,
    Case(pp=2, vpp=2, schedule="interleaved", num_micro_batches=2),
]
FIRST = ["unet", "transformer", "transformer-encoder"]
OTHER = [
    "dit-xl-2",
    "gpt-by-hand",
    "gpt-by-einsum",
    "gpt-multihead-attention",
    "lstm",
    "dlrm",
    "albert-xxlarge",
]


@pytest.mark.parametrize("name", FIRST)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_two_ranks_equal_one_process(two: Ranks, name: str, case: Case) -> None:
    two(_check, name, case)


def test_skips_pass_over_the_stages_of_two_ranks(two: Ranks) -> None:
    two(_check, "unet", SKIPS_OVER_CHUNKS)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "case"),
    [(name, case) for name in FIRST for case in MORE_CASES]
    + [
        (name, case)
        for name in OTHER
        for case in CASES + MORE_CASES
        if case.pp == 1 or name not in ("lstm", "dlrm")
    ],
    ids=str,
)
def test_two_ranks_equal_one_process_in_more_ways(two: Ranks, name: str, case: Case) -> None:
    two(_check, name, case)


@pytest.mark.parametrize("name", ["unet", "transformer", "resnet-50", "lstm", "dlrm"])
@pytest.mark.parametrize("recompute", ["none", "full"])
def test_one_rank_equals_the_model(name: str, recompute: str) -> None:
    _check(name, Case(micro_batch=4, num_micro_batches=1, recompute=recompute))


@pytest.mark.parametrize("name", ["resnet-50", "clip-vit-base"])
def test_a_batch_whose_samples_meet_is_not_cut(name: str) -> None:
    example = _example(name)
    model, batch = _model(example), _batch(example, 4, 0)
    case = Case(micro_batch=2, num_micro_batches=2)
    plan = plan_for(trace(model, _batch(example, 2, 0), example.loss, Precision.FP64), case)
    with pytest.raises(PlanError, match="4, the whole batch, since samples meet") as caught:
        autoplan.parallelize(model, batch, example.loss, plan=plan, precision="fp64")
    assert caught.value.field == "micro_batch"
