"""What a unit keeps for its backward pass: the numbers stay those of one process, and what is held is what is priced.

Policies are drawn by lot: of every op and change of layout, whether it keeps what it makes, makes it again, or parks it
in the host's memory.
"""

from __future__ import annotations

from typing import Any

import pytest
from equality import Case, check
from kept_bytes import check_bytes
from ranks import Ranks

_ONE = [
    Case("gpt", policy="offload"),
    Case("llama", policy="random", recompute="mixed", seed=2),
    Case("moe", micro_batch=2, policy="again", seed=3),
]
_MORE_ONE = [
    Case("gpt", micro_batch=2, policy="random", seed=1),
    Case("llama", policy="again"),
    Case("moe", micro_batch=2, policy="random", seed=3),
]
_TWO = [
    Case("gpt", tp=2, seed=1, boundary="S(1)", policy="random", micro_batch=2),
    Case("llama", pp=2, schedule="zbv", vpp=2, num_micro_batches=4, policy="random", seed=7),
    Case("llama", fsdp=2, zero=3, policy="random", seed=5),
]
_MORE_TWO = [
    Case("llama", tp=2, seed=2, policy="random", micro_batch=2),
    Case("llama", tp=2, seed=3, policy="again", boundary="S(1)"),
    Case("moe", tp=2, seed=1, policy="random", micro_batch=2),
    Case("gpt", fsdp=2, zero=2, policy="random", dtype="fp32", seed=6),
    Case("gpt", fsdp=2, zero=1, policy="again", seed=6),
    Case("gpt", pp=2, num_micro_batches=3, policy="again", seed=8),
    Case("gpt", cp=2, cp_attention="rows", policy="random", seed=9),
]
_FOUR = [
    Case("llama", pp=2, tp=2, schedule="zb-h1", num_micro_batches=4, policy="random", seed=10),
    Case("llama", fsdp=2, tp=2, zero=3, policy="random", seed=11, boundary="S(1)"),
    Case("llama", cp=2, tp=2, policy="random", seed=12, cp_attention="heads"),
]


def _name(case: Case) -> str:
    hidden = ("model", "cp_boundary", "dtype")
    shown = [f"{k}{v}" for k, v in vars(case).items() if k not in hidden and v not in (1, 0, "none", "R", "")]
    return "-".join([case.model, *shown])


def _and_slow(cases: list[Case], more: list[Case]) -> list[Any]:
    return [*cases, *(pytest.param(case, marks=pytest.mark.slow) for case in more)]


@pytest.mark.parametrize("case", _and_slow(_ONE, _MORE_ONE), ids=_name)
def test_one_process(case: Case) -> None:
    check(case)


@pytest.mark.parametrize("case", _and_slow(_TWO, _MORE_TWO), ids=_name)
def test_two_ranks(two: Ranks, case: Case) -> None:
    two(check, case)


@pytest.mark.parametrize("case", _and_slow([], _FOUR), ids=_name)
def test_four_ranks(four: Ranks, case: Case) -> None:
    four(check, case)


@pytest.mark.parametrize("case", _and_slow([*_ONE, Case("llama", recompute="mixed")], _MORE_ONE), ids=_name)
def test_what_is_held_is_what_is_priced(case: Case) -> None:
    check_bytes(case)


@pytest.mark.parametrize("case", _and_slow(_TWO[:1], [_MORE_TWO[1]]), ids=_name)
def test_what_is_held_under_tp_is_what_is_priced(two: Ranks, case: Case) -> None:
    two(check_bytes, case)
