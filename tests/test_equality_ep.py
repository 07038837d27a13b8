"""Plans that share out experts give the numbers of the one-process model.

What tokens choose is uneven, as an untrained router's choices are. As in ``test_equality``, under
tensor parallelism a case draws a random legal strategy for every op that is left.
"""

from __future__ import annotations

import pytest
from case_lists import and_slow, case_name
from equality import Case, check
from ranks import Ranks

_TWO = [
    Case("moe", dp=2, ep=2),
    Case("moe", fsdp=2, ep=2, zero=3, recompute="full"),
    Case("qwen-moe", fsdp=2, ep=2, zero=2, dtype="fp32"),
]
_MORE_TWO = [
    Case("moe", dp=2, ep=2, policy="again"),
    Case("moe", fsdp=2, ep=2, zero=3, policy="random", seed=2),
    Case("moe-odd", dp=2, ep=2, micro_batch=2),
    Case("moe", fsdp=2, ep=2, zero=1, micro_batch=2),
    Case("moe", fsdp=2, ep=2, zero=2, num_micro_batches=3),
    Case("mixtral", dp=2, ep=2, dtype="fp32", recompute="full"),
    Case("deepseek", fsdp=2, ep=2, zero=3, dtype="fp32"),
]
_FOUR = [
    Case("moe", fsdp=4, ep=2, zero=3),
    Case("moe", dp=2, fsdp=2, ep=2, zero=2),
    Case("moe-odd", fsdp=2, ep=2, tp=2, zero=3, seed=1),
    Case("moe", fsdp=2, ep=2, pp=2, zero=2),
]
_MORE_FOUR = [
    Case("moe", fsdp=2, ep=2, tp=2, zero=3, seed=1),
    Case("moe-odd", dp=4, ep=4, recompute="full"),
    Case("moe", dp=2, ep=2, pp=2, schedule="zb-h1"),
    Case("moe", dp=4, ep=4),
    Case("moe", dp=4, ep=2, recompute="mixed"),
    Case("moe", fsdp=4, ep=4, zero=3),
    Case("moe", dp=2, fsdp=2, ep=4, zero=1),
    Case("moe", dp=2, ep=2, tp=2, seed=2, boundary="S(1)"),
    Case("moe", dp=2, ep=2, tp=2, seed=3),
    Case("moe", fsdp=2, ep=2, pp=2, zero=3, recompute="full"),
    Case("moe", dp=2, ep=2, pp=2, schedule="zbv", vpp=2),
    Case("moe", dp=2, ep=2, pp=2, schedule="interleaved", vpp=2),
    Case("moe", fsdp=2, ep=2, pp=2, zero=2, schedule="gpipe"),
    Case("qwen-moe", fsdp=4, ep=4, zero=3, dtype="fp32"),
]
_MORE_EIGHT = [
    Case("moe", dp=2, fsdp=2, ep=2, tp=2, zero=3, seed=4),
    Case("moe", fsdp=2, ep=2, tp=2, pp=2, zero=2, seed=5),
    Case("moe", fsdp=8, ep=2, zero=3),
]


@pytest.mark.parametrize("case", and_slow(_TWO, _MORE_TWO), ids=case_name)
def test_two_ranks(two: Ranks, case: Case) -> None:
    two(check, case)


@pytest.mark.parametrize("case", and_slow(_FOUR, _MORE_FOUR), ids=case_name)
def test_four_ranks(four: Ranks, case: Case) -> None:
    four(check, case)


@pytest.mark.parametrize("case", and_slow([], _MORE_EIGHT), ids=case_name)
def test_eight_ranks(eight: Ranks, case: Case) -> None:
    eight(check, case)
