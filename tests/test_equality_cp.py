"""Plans that cut the sequence give the numbers of the one-process model, in float64 to 1e-10.

As in ``test_equality``, a case draws a random legal strategy for every op, here on the context-parallel axis and
then, of what that leaves, on the tensor-parallel one.
"""

from __future__ import annotations

import pytest
from case_lists import and_slow, case_name
from equality import Case, check
from ranks import Ranks

_TWO = [
    Case("gpt", cp=2, seed=1, micro_batch=2),
    Case("llama", cp=2, seed=2),
    Case("gpt", cp=2, cp_attention="rows", micro_batch=2),
    Case("llama", cp=2, cp_attention="heads", zero=2, recompute="full"),
    Case("llama", cp=2, cp_attention="ring", recompute="mixed"),
    Case("gpt", cp=2, cp_order="zigzag", seed=7),
]
_MORE_TWO = [
    Case("gpt", cp=2, seed=2),
    Case("llama", cp=2, seed=1, micro_batch=2),
    Case("llama", cp=2, zero=3, cp_boundary="R", seed=3, recompute="full"),
    Case("moe", cp=2, seed=4),
    Case("llama", cp=2, seed=12, cp_order="zigzag", cp_boundary="R"),
    Case("moe", cp=2, seed=5, cp_order="zigzag"),
    Case("gpt", cp=2, cp_attention="ring", cp_order="plain", zero=3),
]
_FOUR = [
    Case("gpt", cp=2, tp=2, seed=1, micro_batch=2),
    Case("gpt", cp=2, fsdp=2, zero=3, seed=4),
    Case("gpt", cp=2, pp=2, schedule="zbv", vpp=2, cp_attention="rows"),
    Case("gpt", cp=4, zero=2, cp_attention="rows", micro_batch=2),
    Case("llama", cp=4, cp_attention="ring"),
    Case("gpt", cp=2, tp=2, cp_attention="ring", seed=2, boundary="S(1)"),
]
_MORE_FOUR = [
    Case("llama", cp=2, tp=2, seed=2, boundary="S(1)", recompute="mixed"),
    Case("llama", cp=2, tp=2, zero=1, seed=3),
    Case("llama", cp=2, dp=2, seed=5),
    Case("llama", cp=2, pp=2, zero=2, seed=6),
    Case("llama", cp=4, seed=8, dtype="fp32"),
    Case("llama", cp=4, cp_attention="rows", dtype="fp32"),
    Case("llama", cp=2, tp=2, cp_attention="heads", seed=10, boundary="S(1)"),
    Case("llama", cp=2, fsdp=2, zero=3, cp_attention="ring", recompute="full"),
    Case("gpt", cp=2, pp=2, cp_attention="ring", schedule="interleaved", vpp=2),
    Case("llama", cp=4, cp_attention="ring", cp_order="plain", dtype="fp32"),
    Case("gpt", cp=4, seed=11, cp_order="zigzag"),
]


@pytest.mark.parametrize("case", and_slow(_TWO, _MORE_TWO), ids=case_name)
def test_two_ranks(two: Ranks, case: Case) -> None:
    two(check, case)


@pytest.mark.parametrize("case", and_slow(_FOUR, _MORE_FOUR), ids=case_name)
def test_four_ranks(four: Ranks, case: Case) -> None:
    four(check, case)
