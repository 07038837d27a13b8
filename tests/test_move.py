"""Everything that communicates inside a block: changes of layout, and the kernels that index a cut axis."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from ranks import Ranks
from shards import cut, join
from torch import Tensor

from autoplan.graph.layout import PARTIAL, REPLICATE, REPLICATE_STAR, Layout, shard
from autoplan.rewrite.kernels import vocab_cross_entropy, vocab_embedding
from autoplan.rewrite.move import convert, shard_of

SHAPE = (4, 24, 8)
LAYOUTS = [
    REPLICATE,
    REPLICATE_STAR,
    PARTIAL,
    shard(0),
    shard(1),
    shard(1, 2),
    shard(1, 3),
    shard(2),
    shard(2, 2),
]
PAIRS = list(itertools.product(LAYOUTS, repeat=2))


@pytest.fixture(params=["two", "four"])
def ranks(request: pytest.FixtureRequest) -> Ranks:
    return request.getfixturevalue(request.param)


def whole(seed: int, shape: tuple[int, ...] = SHAPE) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def group() -> str:
    return dist.group.WORLD.group_name  # type: ignore[union-attr]


@pytest.mark.parametrize("layout", [layout for layout in LAYOUTS if layout.is_shard], ids=str)
@pytest.mark.parametrize("size", [2, 4])
def test_a_shard_is_the_rank_s_piece_of_every_part(layout: Layout, size: int) -> None:
    value = whole(0) if SHAPE[layout.dim] % (layout.parts * size) == 0 else whole(0, (8, 24, 16))
    expected = cut(value, layout.value_kind, layout, size)
    for rank in range(size):
        piece = shard_of(value, layout, size, rank)
        assert torch.equal(piece, expected[rank])
        assert piece.is_contiguous()
        assert piece.shape == layout.local_shape(tuple(value.shape), size)
    assert torch.equal(join(expected, layout.value_kind, layout), value)


def _convert_all(non_contiguous: bool) -> list[tuple[Tensor, Tensor]]:
    """On one rank, for each pair: the value converted, and the gradient that came back for it."""
    rank, size = dist.get_rank(), dist.get_world_size()
    answers = []
    for src, dst in PAIRS:
        value = cut(whole(1), src.value_kind, src, size)[rank]
        grad = cut(whole(2), dst.gradient_kind, dst, size)[rank]
        if non_contiguous:
            value, grad = (t.transpose(0, 2).contiguous().transpose(0, 2) for t in (value, grad))
        before = value.clone()
        leaf = value.requires_grad_()
        moved = convert(leaf, str(src), str(dst), group())
        (back,) = torch.autograd.grad(moved, leaf, grad)
        assert torch.equal(leaf.detach(), before), f"{src} to {dst} changed its input"
        answers.append((moved.detach(), back))
    return answers


@pytest.mark.parametrize("non_contiguous", [False, True], ids=["contiguous", "transposed"])
def test_every_change_of_layout_keeps_the_value_and_the_gradient(ranks: Ranks, non_contiguous: bool) -> None:
    answers = ranks(_convert_all, non_contiguous)
    for index, (src, dst) in enumerate(PAIRS):
        values, grads = zip(*(answer[index] for answer in answers), strict=True)
        for held, expected, kind, layout in (
            (values, whole(1), dst.value_kind, dst),
            (grads, whole(2), src.gradient_kind, src),
        ):
            got = join(list(held), kind, layout)
            torch.testing.assert_close(
                got, expected, rtol=1e-12, atol=1e-12, msg=lambda text, s=src, d=dst: f"{s} to {d}: {text}"
            )


def _convert_plain() -> None:
    """What needs no gradient moves alike, and a list moves piece by piece."""
    rank, size = dist.get_rank(), dist.get_world_size()
    index = torch.arange(4 * 24 * 8).view(SHAPE)
    cut_in_parts, rows = shard(1, 2), shard(0)
    held = cut(index, cut_in_parts.value_kind, cut_in_parts, size)[rank]
    moved = convert([held, held + 1], str(cut_in_parts), str(rows), group())
    expected = cut(index, rows.value_kind, rows, size)[rank]
    assert torch.equal(moved[0], expected)
    assert torch.equal(moved[1], expected + 1)


def _convert_complex() -> None:
    rank, size = dist.get_rank(), dist.get_world_size()
    value = torch.complex(whole(1), whole(2))
    for src, dst in itertools.product((REPLICATE, PARTIAL, shard(0), shard(1, 3), shard(2)), repeat=2):
        held = cut(value, src.value_kind, src, size)[rank]
        mine = convert(held, str(src), str(dst), group())
        pieces = [torch.empty_like(torch.view_as_real(mine)) for _ in range(size)]
        dist.all_gather(pieces, torch.view_as_real(mine).contiguous())
        joined = join([torch.view_as_complex(piece) for piece in pieces], dst.value_kind, dst)
        torch.testing.assert_close(joined, value, rtol=1e-12, atol=1e-12)


def _convert_unlike() -> None:
    rank, size = dist.get_rank(), dist.get_world_size()
    rows, statistics = torch.arange(24 * 8).view(24, 8), torch.arange(8)
    held = [
        cut(value, layout.value_kind, layout, size)[rank]
        for value, layout in ((rows, shard(1)), (statistics, shard(0)))
    ]
    moved = convert(held, ["S(1)", "S(0)"], ["R", "R"], group())
    assert torch.equal(moved[0], rows)
    assert torch.equal(moved[1], statistics)


def test_complex_numbers_move_too(ranks: Ranks) -> None:
    ranks(_convert_complex)


def test_results_of_unlike_shapes_move_each_in_its_own_way(ranks: Ranks) -> None:
    ranks(_convert_unlike)


def test_integers_and_lists_move_too(ranks: Ranks) -> None:
    ranks(_convert_plain)


ROWS = 16


def _embed(padding: int) -> tuple[Tensor, Tensor]:
    rank, size = dist.get_rank(), dist.get_world_size()
    rows = shard(0)
    weight = cut(whole(3, (ROWS, 6)), rows.value_kind, rows, size)[rank].requires_grad_()
    out = vocab_embedding(weight, _index(), group(), padding)
    (grad,) = torch.autograd.grad(out, weight, whole(4, (5, 7, 6)))
    return out.detach(), grad


def _index() -> Tensor:
    return torch.randint(0, ROWS, (5, 7), generator=torch.Generator().manual_seed(5))


@pytest.mark.parametrize("padding", [-1, 0, 9, ROWS - 1])
def test_a_cut_embedding_adds_up_to_the_whole(ranks: Ranks, padding: int) -> None:
    answers = ranks(_embed, padding)
    weight = whole(3, (ROWS, 6)).requires_grad_()
    expected = F.embedding(_index(), weight, padding if padding >= 0 else None)
    (grad,) = torch.autograd.grad(expected, weight, whole(4, (5, 7, 6)))
    torch.testing.assert_close(sum(out for out, _ in answers), expected.detach(), rtol=1e-12, atol=1e-12)
    got = join([grad for _, grad in answers], shard(0).value_kind, shard(0))
    torch.testing.assert_close(got, grad, rtol=1e-12, atol=1e-12)


def _targets(ignored: int) -> Tensor:
    target = torch.randint(0, ROWS, (12,), generator=torch.Generator().manual_seed(6))
    target[:3] = ignored
    return target


def _weights(loss: Tensor) -> Tensor:
    return torch.arange(3, 3 + loss.numel()).view(loss.shape).to(loss.dtype)


def _lose(
    ignored: int, reduction: str, scale: float, dtype: torch.dtype, smoothing: float
) -> tuple[Tensor, Tensor]:
    rank, size = dist.get_rank(), dist.get_world_size()
    columns = shard(1)
    logits = (
        cut(scale * whole(7, (12, ROWS)), columns.value_kind, columns, size)[rank].to(dtype).requires_grad_()
    )
    number = ("none", "mean", "sum").index(reduction)
    loss = vocab_cross_entropy(logits, _targets(ignored), group(), ignored, number, smoothing)
    (grad,) = torch.autograd.grad(loss, logits, _weights(loss))
    return loss.detach(), grad


@pytest.mark.parametrize(
    ("ignored", "reduction", "scale", "dtype", "smoothing"),
    [
        (-100, "mean", 1.0, torch.float64, 0.0),
        (-100, "sum", 1.0, torch.float64, 0.0),
        (-100, "none", 1.0, torch.float64, 0.0),
        (2, "mean", 1.0, torch.float64, 0.0),
        (2, "mean", 1.0, torch.float64, 0.2),
        (2, "none", 1.0, torch.float64, 0.2),
        (-100, "sum", 1.0, torch.float64, 0.2),
        (-100, "mean", 1e3, torch.float64, 0.0),  # exponentials that overflow unless the largest is taken off
        (-100, "mean", 1.0, torch.bfloat16, 0.0),
    ],
)
def test_a_cut_cross_entropy_is_the_whole(
    ranks: Ranks, ignored: int, reduction: str, scale: float, dtype: torch.dtype, smoothing: float
) -> None:
    answers = ranks(_lose, ignored, reduction, scale, dtype, smoothing)
    logits = (scale * whole(7, (12, ROWS))).to(dtype).requires_grad_()
    wide = logits if dtype == torch.float64 else logits.float()
    expected = F.cross_entropy(
        wide, _targets(ignored), ignore_index=ignored, reduction=reduction, label_smoothing=smoothing
    )
    (grad,) = torch.autograd.grad(expected, logits, _weights(expected))
    near: dict[str, Any] = dict.fromkeys(("rtol", "atol"), 1e-12 if dtype == torch.float64 else 2e-2)
    for loss, _ in answers:
        torch.testing.assert_close(loss, expected.detach().to(dtype), **near)
    got = torch.cat([grad for _, grad in answers], 1)
    torch.testing.assert_close(got, grad, **near)
