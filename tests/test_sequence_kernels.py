"""Attention and loss over a cut sequence: the same numbers as over the whole one."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from ranks import Ranks
from torch import Tensor

from autoplan.rewrite.sequence_kernels import gathered_attention

BATCH, LENGTH, WIDTH = 2, 16, 8


@pytest.fixture(params=["two", "four"])
def ranks(request: pytest.FixtureRequest) -> Ranks:
    return request.getfixturevalue(request.param)


def _whole(heads: int, width: int, seed: int, dtype: torch.dtype) -> Tensor:
    """As models make them: (batch, length, heads, width) with the middle dims swapped."""
    generator = torch.Generator().manual_seed(seed)
    return (
        torch.randn(BATCH, LENGTH, heads, width, generator=generator, dtype=torch.float64)
        .to(dtype)
        .transpose(1, 2)
    )


def _attention(heads: int, kv: int, value_width: int, dtype: torch.dtype) -> list[Tensor]:
    """What ``gathered_attention`` and its backward give on this rank."""
    rank, size = dist.get_rank(), dist.get_world_size()
    whole = _whole(heads, WIDTH, 0, dtype), _whole(kv, WIDTH, 1, dtype), _whole(kv, value_width, 2, dtype)
    mine = [t.chunk(size, 2)[rank].detach().requires_grad_() for t in whole]
    out = gathered_attention(*mine, dist.group.WORLD.group_name, 0.3)  # type: ignore[union-attr]
    grad = _whole(heads, value_width, 3, dtype).chunk(size, 2)[rank]
    return [out.detach(), *torch.autograd.grad(out, mine, grad)]


@pytest.mark.parametrize(
    ("heads", "kv", "value_width", "dtype"),
    [
        (4, 4, 8, torch.float64),
        (4, 2, 8, torch.float64),
        (4, 1, 8, torch.float32),
        (4, 2, 12, torch.float64),  # values of another width, which no fused kernel takes
        (2, 2, 8, torch.bfloat16),
    ],
)
def test_attention_over_a_cut_sequence(
    ranks: Ranks, heads: int, kv: int, value_width: int, dtype: torch.dtype
) -> None:
    answers = ranks(_attention, heads, kv, value_width, dtype)
    q, k, v = (
        t.detach().requires_grad_()
        for t in (
            _whole(heads, WIDTH, 0, dtype),
            _whole(kv, WIDTH, 1, dtype),
            _whole(kv, value_width, 2, dtype),
        )
    )
    out = F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=0.3, enable_gqa=True)
    expected = [out.detach(), *torch.autograd.grad(out, (q, k, v), _whole(heads, value_width, 3, dtype))]
    near = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 5e-2}[dtype]
    for got, want in zip(zip(*answers, strict=True), expected, strict=True):
        torch.testing.assert_close(torch.cat(list(got), 2), want, rtol=near, atol=near)
