"""Every pipeline schedule gives the numbers of one process, with state sharded, ops cut, and blocks recomputed.

Loss, every gradient, and parameters after three AdamW steps, in float64 to 1e-10; see ``test_equality``. The
tied embedding and head lie in different stages, under V-shaped schedules on one rank.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from equality import Case, check, difference, run
from ranks import Ranks
from torch import nn
from torch.utils.checkpoint import checkpoint

from autoplan.rewrite.weight_halves import PENDING, defer_weight_halves, run_weight_halves

SCHEDULES = (
    ("gpipe", 1),
    ("interleaved", 2),
    ("zb-h1", 1),
    ("zb-h1", 2),
    ("zbv", 2),
    ("dualpipe-v", 2),
)
AGAIN = ("none", "mixed", "full")

_TWO = [
    Case(pp=2, schedule="gpipe", num_micro_batches=1),
    Case(pp=2, schedule="interleaved", vpp=2, num_micro_batches=3, recompute="mixed"),
    Case(pp=2, schedule="interleaved", vpp=3, num_micro_batches=2),
    Case("gpt-untied", pp=2, schedule="zb-h1", num_micro_batches=4, recompute="full"),
    Case(pp=2, schedule="zb-h1", vpp=2, num_micro_batches=3),
    Case(pp=2, schedule="zbv", vpp=2, num_micro_batches=2),
    Case(pp=2, schedule="dualpipe-v", vpp=2, num_micro_batches=5, recompute="full"),
    Case("moe", pp=2, schedule="zbv", vpp=2, num_micro_batches=3),
    Case("llama-tied", pp=2, schedule="zbv", vpp=2, num_micro_batches=3, dtype="fp32"),
]
_FOUR = [
    Case(pp=4, schedule="zb-h1", num_micro_batches=6),
    Case(pp=2, fsdp=2, zero=1, schedule="zbv", vpp=2, num_micro_batches=3, recompute="full"),
    Case(pp=2, fsdp=2, zero=3, schedule="zb-h1", vpp=2, num_micro_batches=3, recompute="mixed"),
    Case(pp=2, fsdp=2, zero=3, schedule="interleaved", vpp=2, num_micro_batches=2),
    Case(pp=2, tp=2, seed=8, schedule="dualpipe-v", vpp=2, num_micro_batches=4, boundary="S(1)"),
]
_MATRIX = [
    Case(
        "gpt" if index % 2 else "llama",
        pp=2,
        dp=1 if zero else 2,
        fsdp=2 if zero else 1,
        zero=zero,
        schedule=schedule,
        vpp=vpp,
        num_micro_batches=4 if schedule == "dualpipe-v" else 3,
        recompute=AGAIN[(index + zero) % 3],
    )
    for index, (schedule, vpp) in enumerate(SCHEDULES)
    for zero in range(4)
] + [
    Case(
        "gpt" if index % 2 else "llama",
        pp=2,
        tp=2,
        seed=index,
        schedule=schedule,
        vpp=vpp,
        num_micro_batches=4,
        boundary=("R", "S(1)")[index % 2],
        recompute=AGAIN[index % 3],
    )
    for index, (schedule, vpp) in enumerate(SCHEDULES)
]
_EIGHT = [
    Case(
        "llama", pp=2, tp=2, fsdp=2, zero=zero, schedule=schedule, vpp=vpp, num_micro_batches=4, seed=zero,
        recompute="mixed",
    )
    for zero, (schedule, vpp) in ((2, ("interleaved", 2)), (3, ("zbv", 2)), (2, ("dualpipe-v", 2)))
] + [Case(pp=2, dp=2, fsdp=2, zero=2, schedule="zb-h1", vpp=2, num_micro_batches=3)]  # fmt: skip


def _name(case: Case) -> str:
    shown = [f"{k}{v}" for k, v in vars(case).items() if v not in (1, 0, "none", "R", "gpt", "fp64")]
    return "-".join(shown)


@pytest.mark.parametrize("case", _TWO, ids=_name)
def test_two_ranks(two: Ranks, case: Case) -> None:
    two(check, case)


@pytest.mark.parametrize("case", _FOUR, ids=_name)
def test_four_ranks(four: Ranks, case: Case) -> None:
    four(check, case)


def _halves_and_whole() -> None:
    case = Case(pp=2, fsdp=2, zero=2, num_micro_batches=3, dtype="bf16")
    whole, halves = (run(replace(case, schedule=name), steps=1)[1] for name in ("1f1b", "zb-h1"))
    assert difference(halves, whole) < 2e-2


def test_halves_in_mixed_precision_give_what_whole_passes_give(four: Ranks) -> None:
    """Of a unit, norms and biases have their gradients from the first half, and products from the second."""
    four(_halves_and_whole)


@pytest.mark.slow
@pytest.mark.parametrize("case", _MATRIX, ids=_name)
def test_four_ranks_in_every_way(four: Ranks, case: Case) -> None:
    four(check, case)


@pytest.mark.slow
@pytest.mark.parametrize("case", _EIGHT, ids=_name)
def test_eight_ranks(eight: Ranks, case: Case) -> None:
    eight(check, case)


class _Products(nn.Module):
    """Every form of product that is halved, and one by a value, which is not; ``calls`` counts forward passes."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(6, 8), nn.Linear(8, 8, bias=False)
        self.third, self.bias = nn.Parameter(torch.randn(8, 5)), nn.Parameter(torch.randn(5))
        self.norm = nn.LayerNorm(5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = torch.relu(self.second(torch.relu(self.first(x))))
        y = self.second(y)  # the same weight once more
        flat = torch.addmm(self.bias, y.flatten(0, 1), self.third)
        again = torch.mm(y.flatten(0, 1), self.third)
        return (
            self.norm(flat + again) @ self.third.t() @ torch.ones(8, 3, dtype=x.dtype)
        ).square().sum() + y.sum()


def _halved(model: nn.Module, x: torch.Tensor) -> torch.fx.GraphModule:
    halved = torch.export.export(model, (x,), strict=False).module()
    assert isinstance(halved, torch.fx.GraphModule)
    defer_weight_halves(halved.graph)
    halved.recompile()
    return halved


def test_the_weight_half_gives_the_rest_of_the_gradients() -> None:
    torch.manual_seed(0)
    model = _Products().double()
    x = torch.randn(3, 4, 6, dtype=torch.float64, requires_grad=True)
    model(x).backward()
    expected = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    of_x = x.grad
    halved = _halved(model, x)
    for again in (False, True):
        halved.zero_grad()
        x.grad = None
        loss = checkpoint(halved, x, use_reentrant=False) if again else halved(x)
        assert isinstance(loss, torch.Tensor)
        loss.backward()
        torch.testing.assert_close(x.grad, of_x)
        done = {name for name, p in halved.named_parameters() if p.grad is not None}
        assert done == {"first.bias", "bias", "norm.weight", "norm.bias"}
        assert len(PENDING) == 6  # no more where the forward ran twice
        run_weight_halves(PENDING)
        assert not PENDING
        for name, parameter in halved.named_parameters():
            torch.testing.assert_close(parameter.grad, expected[name])


def test_what_has_one_half_only_runs_whole() -> None:
    model = _Products().double()
    model.second.requires_grad_(False)
    x = torch.randn(3, 4, 6, dtype=torch.float64)  # data: the first product has no first half
    halved = _halved(model, x)
    halved(x).backward()
    assert halved.get_parameter("first.weight").grad is not None
    assert all(half.weight.shape in ((8, 5), (5, 8)) for half in PENDING)
    PENDING.clear()
    with torch.no_grad():
        halved(x)
    assert not PENDING
