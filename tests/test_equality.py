"""Every plan gives the numbers of the one-process model: loss, every gradient, parameters after three AdamW steps.

In float64 to 1e-10 and in float32 to 1e-5. Under tensor parallelism each case draws a random legal
strategy for every op and a random layout for every parameter, so what is compared is not one way to cut a
transformer but the enumerator, every conversion between layouts, and both directions of autograd.
"""

from __future__ import annotations

import pytest
from case_lists import and_slow
from equality import Case, check
from ranks import Ranks

_ONE = [
    Case(num_micro_batches=1),
    Case(micro_batch=2, num_micro_batches=3, recompute="mixed"),
    Case("llama", micro_batch=2, recompute="full"),
    Case("llama-tied", dtype="fp32"),
    Case("moe", micro_batch=2),
]
_TWO = [
    Case(dp=2),
    Case("llama", dp=2, dtype="fp32"),
    Case(fsdp=2, zero=1),
    Case(fsdp=2, zero=2, num_micro_batches=3),
    Case("llama", fsdp=2, zero=3, recompute="full"),
    Case(fsdp=2, zero=3, dtype="fp32"),
    Case(pp=2, num_micro_batches=4, recompute="full"),
    Case("llama", pp=2),
    Case("llama-tied", pp=2, dtype="fp32", num_micro_batches=3),
    Case("moe", fsdp=2, zero=3, recompute="full"),
    Case("moe", pp=2),
    Case("moe", tp=2, seed=1),
    Case(tp=2, dtype="fp32"),
    Case("llama", tp=2, dtype="fp32", boundary="S(1)"),
    *(
        Case("gpt", tp=2, seed=seed, boundary=b, micro_batch=1 + seed % 2)
        for seed in (1, 2, 3)
        for b in ("R", "S(1)")
    ),
    *(
        Case("llama", tp=2, seed=seed, boundary=b, recompute="mixed")
        for seed in (1, 2, 3)
        for b in ("R", "S(1)")
    ),
]
_FOUR = [
    Case(dp=2, fsdp=2, zero=2),
    Case("llama", dp=2, fsdp=2, zero=3),
    Case(fsdp=2, tp=2, zero=3, micro_batch=2),
    Case("llama", dp=2, tp=2, boundary="S(1)"),
    Case(pp=2, dp=2),
    Case(pp=2, fsdp=2, zero=2, num_micro_batches=3),
    Case(pp=2, fsdp=2, zero=3, num_micro_batches=3),
    Case(pp=4, num_micro_batches=5),
    Case("llama", pp=2, tp=2, seed=4, boundary="S(1)", recompute="full"),
    Case("gpt", tp=4, seed=6),
]
_MORE_FOUR = [
    Case("llama", tp=4, seed=7, boundary="S(1)"),
    Case(fsdp=4, zero=3, micro_batch=2),
    Case(pp=2, fsdp=2, zero=1),
    Case(pp=2, tp=2, seed=5, dtype="fp32"),
]
_EIGHT = [
    Case(pp=2, tp=2, fsdp=2, zero=3, boundary="S(1)", seed=9, recompute="mixed"),
]
_MORE_EIGHT = [
    Case("llama", pp=2, tp=2, dp=2, seed=8),
    Case("llama", pp=2, tp=2, fsdp=2, zero=2, dtype="fp32", seed=10),
    Case(dp=2, fsdp=2, tp=2, zero=3, seed=11),
    Case("llama", pp=4, tp=2, num_micro_batches=4, seed=12),
]


def _name(case: Case) -> str:
    shown = [
        f"{k}{v}"
        for k, v in vars(case).items()
        if k not in ("model", "seed") and v not in (1, 0, "none", "R")
    ]
    return "-".join([case.model, *shown, f"seed{case.seed}"])


@pytest.mark.parametrize("case", _ONE, ids=_name)
def test_one_process(case: Case) -> None:
    check(case)


@pytest.mark.parametrize("case", _TWO, ids=_name)
def test_two_ranks(two: Ranks, case: Case) -> None:
    two(check, case)


@pytest.mark.parametrize("case", and_slow(_FOUR, _MORE_FOUR), ids=_name)
def test_four_ranks(four: Ranks, case: Case) -> None:
    four(check, case)


@pytest.mark.parametrize("case", and_slow(_EIGHT, _MORE_EIGHT), ids=_name)
def test_eight_ranks(eight: Ranks, case: Case) -> None:
    eight(check, case)
