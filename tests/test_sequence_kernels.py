"""Attention and loss over a cut sequence: the same numbers as over the whole one."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from ranks import Ranks
from torch import Tensor

from autoplan.graph.layout import Layout
from autoplan.rewrite.move import convert, zigzag_order
from autoplan.rewrite.sequence_kernels import gathered_attention, ring_attention

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


def _pieces(x: Tensor, zigzag: bool, dim: int = 2) -> list[Tensor]:
    """What each rank has of the dim ``dim`` of ``x``."""
    size = dist.get_world_size()
    if not zigzag:
        return list(x.chunk(size, dim))
    order = zigzag_order(size)
    pieces = x.chunk(2 * size, dim)
    return [torch.cat([pieces[i] for i in order[2 * r : 2 * r + 2]], dim) for r in range(size)]


def _attention(
    kernel: str, zigzag: bool, causal: bool, heads: int, kv: int, value_width: int, dtype: torch.dtype
) -> list[float]:
    """The largest differences of the output, and of the gradients of q, k, v, from those of one process."""
    whole = _whole(heads, WIDTH, 0, dtype), _whole(kv, WIDTH, 1, dtype), _whole(kv, value_width, 2, dtype)
    grad = _whole(heads, value_width, 3, dtype)
    q, k, v = (t.detach().requires_grad_() for t in whole)
    out = F.scaled_dot_product_attention(q, k, v, is_causal=causal, scale=0.3, enable_gqa=True)
    expected = [out.detach(), *torch.autograd.grad(out, (q, k, v), grad)]

    rank, group = dist.get_rank(), dist.group.WORLD.group_name  # type: ignore[union-attr]
    mine = [_pieces(t, zigzag)[rank].detach().requires_grad_() for t in whole]
    if kernel == "ring":
        out = ring_attention(*mine, group, 0.3, causal, zigzag)
    else:
        out = gathered_attention(*mine, group, 0.3, zigzag)
    got = [out.detach(), *torch.autograd.grad(out, mine, _pieces(grad, zigzag)[rank])]
    wanted = [_pieces(t, zigzag)[rank] for t in expected]
    return [(a - b).abs().max().item() / b.abs().max().item() for a, b in zip(got, wanted, strict=True)]


@pytest.mark.parametrize(
    ("kernel", "zigzag", "causal"),
    [
        ("gathered", False, True),
        ("gathered", True, True),
        ("ring", False, True),
        ("ring", True, True),
        ("ring", False, False),
        ("ring", True, False),
    ],
)
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
    ranks: Ranks,
    kernel: str,
    zigzag: bool,
    causal: bool,
    heads: int,
    kv: int,
    value_width: int,
    dtype: torch.dtype,
) -> None:
    near = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 5e-2}[dtype]
    for differences in ranks(_attention, kernel, zigzag, causal, heads, kv, value_width, dtype):
        assert max(differences) <= near


def _moved(src: str, dst: str) -> float:
    """The largest difference, from what it should be, of a tensor in zigzag order moved from one layout to another,
    and of its gradient."""
    rank, size = dist.get_rank(), dist.get_world_size()
    whole = torch.randn(8 * size, 16 * size, generator=torch.Generator().manual_seed(7), dtype=torch.float64)
    layouts = [Layout.parse(src), Layout.parse(dst)]
    before, after = (_lies(whole, layout, rank) for layout in layouts)
    value = before.clone().requires_grad_()
    moved = convert(value, src, dst, dist.group.WORLD.group_name, True)  # type: ignore[union-attr]
    errors = [(moved.detach() - after).abs().max().item()] if not _is_partial(layouts[1]) else []
    gradient = _gradient(whole, layouts[1], rank)
    (back,) = torch.autograd.grad(moved, value, gradient)
    if layouts[0].gradient_kind.value != "P":
        errors.append((back - _gradient(whole, layouts[0], rank)).abs().max().item())
    return max(errors, default=0.0)


def _is_partial(layout: Layout) -> bool:
    return layout.value_kind.value == "P"


def _lies(whole: Tensor, layout: Layout, rank: int) -> Tensor:
    if layout.is_shard:
        parts = whole.chunk(layout.parts, layout.dim)
        return torch.cat([_pieces(part, True, layout.dim)[rank] for part in parts], layout.dim)
    return whole / dist.get_world_size() if _is_partial(layout) else whole


def _gradient(whole: Tensor, layout: Layout, rank: int) -> Tensor:
    partial = layout.gradient_kind.value == "P"
    return (
        whole / dist.get_world_size() if partial else _lies(whole, layout, rank) if layout.is_shard else whole
    )


def test_moves_in_zigzag_order(ranks: Ranks) -> None:
    """Whatever lies in two pieces on each rank gets where it should, and so do gradients."""
    texts = ["R", "R*", "S(0)", "S(1)", "S(1/2)", "P"]
    for src in texts:
        for dst in texts:
            assert max(ranks(_moved, src, dst)) < 1e-12, f"{src} to {dst}"
