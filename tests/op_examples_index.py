"""Examples of ops that read and write by index, and of those that order or shift along a dim."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from op_example import Example, aten, complexes, normal, positive, whole


def index_examples() -> Iterator[Example]:
    yield from _reads()
    yield from _writes()
    yield from _ordered()
    yield from _pieces()


def places(high: int, *shape: int) -> torch.Tensor:
    """Distinct places along the last dim, so that what is written twice is not left to chance."""
    generator = torch.Generator().manual_seed(11)
    rows = [
        torch.randperm(high, generator=generator)[: shape[-1]] for _ in range(torch.Size(shape[:-1]).numel())
    ]
    return torch.stack(rows).view(shape)


def _reads() -> Iterator[Example]:
    x = normal(4, 10, 12)
    yield Example(aten.index.Tensor, (x, [None, whole(10, 8)]), cuts="d0 b0 d2")
    yield Example(
        aten.index.Tensor, (x, [whole(4, 8, 1), None, whole(12, 4)]), cuts="d1 b0 b1", label="apart"
    )
    yield Example(aten.index.Tensor, (x, [whole(4, 8, 1), whole(10, 4)]), cuts="b0 b1 d2", label="together")
    yield Example(aten.index.Tensor, (x, [None, None, whole(12)]), cuts="d0 d1", label="one-place")
    yield Example(aten.index_select.default, (x, 1, whole(10, 8)), cuts="d0 b d2")
    yield Example(aten.gather.default, (x, 1, whole(10, 4, 8, 12)), cuts="d0 d1 d2")
    yield Example(aten.gather.default, (x, -2, whole(10, 2, 8, 12)), cuts="d1 d2", label="shorter")
    yield Example(aten.one_hot.default, (whole(4, 8, 12), 4), cuts="d0 d1")
    yield Example(aten.histc.default, (positive(8), 4, 0, 2))
    edges = torch.arange(5, dtype=torch.float64)
    yield Example(aten.bucketize.Tensor, (positive(4, 8), edges), cuts="d0 d1", constant=(0, 1))
    yield Example(aten.searchsorted.Tensor, (edges, positive(4, 8)), cuts="d0 d1", constant=(0, 1))
    bags = (normal(20, 8), whole(20, 12), torch.tensor([0, 3, 4, 9]))
    yield Example(
        aten.embedding_bag.padding_idx, (*bags, False, 0, False, None, False, None), cuts="h v", results=1
    )
    yield Example(aten.embedding_bag.default, (*bags, False, 1), cuts="h", label="mean")
    yield Example(aten._embedding_bag.default, (*bags, False, 2), cuts="h", label="max")
    yield Example(
        aten.embedding_bag.default,
        (*bags, False, 0, False, normal(12)),
        cuts="h",
        label="weights",
        constant=(3,),
    )
    last = (normal(20, 8), whole(20, 12), torch.tensor([0, 3, 4, 9, 12]))
    yield Example(
        aten.embedding_bag.default,
        (*last, False, 0, False, None, True),
        cuts="h v",
        label="last-offset",
        results=1,
    )


def _writes() -> Iterator[Example]:
    x = normal(4, 10, 12)
    put = aten.index_put.default
    yield Example(put, (x, [None, places(10, 8)], normal(4, 8, 12)), cuts="d0 d2")
    yield Example(put, (x, [None, whole(10, 8)], normal(4, 8, 12), True), cuts="d0 d2 b0", label="added")
    yield Example(put, (x, [None, whole(10, 8)], normal(12), True), cuts="d0 d2", label="added-broadcast")
    yield Example(put, (x, [places(4, 4), None, whole(12, 4)], normal(4, 10)), cuts="d1", label="apart")
    yield Example(put, (whole(9, 8), [places(8, 8)], whole(9, 8)), label="numbers")
    for name in ("index_add", "index_copy"):
        rows = whole(10, 8) if name == "index_add" else places(10, 8)
        cuts = "d0 d2 b" if name == "index_add" else "d0 d2"
        yield Example(getattr(aten, name).default, (x, 1, rows, normal(4, 8, 12)), cuts=cuts)
    yield Example(
        aten.scatter.src,
        (x, 1, places(10, 4, 12, 8).transpose(1, 2).contiguous(), normal(4, 8, 12)),
        cuts="d0 d2",
    )
    yield Example(aten.scatter.value, (x, 1, whole(10, 4, 8, 12), 2.0), cuts="d0 d2")
    yield Example(aten.scatter.value, (x, 2, whole(12, 2, 10, 1), 2.0), cuts="d1", label="shorter")
    yield Example(aten.scatter_add.default, (x, 1, whole(10, 4, 8, 12), normal(4, 8, 12)), cuts="d0 b1 d2")
    yield Example(
        aten.scatter_add.default, (x, 1, whole(10, 2, 8, 12), normal(2, 8, 12)), cuts="b1 d2", label="shorter"
    )
    reduced = (x, 1, whole(10, 4, 8, 12), normal(4, 8, 12), "amax")
    yield Example(aten.scatter_reduce.two, reduced, cuts="d0 d2")
    yield Example(aten.slice_scatter.default, (x, normal(4, 5, 12), 1, 0, 10, 2), cuts="d0 d2")
    yield Example(
        aten.slice_scatter.default,
        (whole(9, 4, 8), whole(9, 4, 6), 1, 2, 9223372036854775807),
        cuts="d0",
        label="numbers",
    )
    yield Example(aten.select_scatter.default, (x, normal(4, 12), 1, 3), cuts="d0 d2")


def _ordered() -> Iterator[Example]:
    x = normal(4, 8, 12)
    for name in ("sort", "argsort"):
        yield Example(getattr(aten, name).default, (x, 1, True), cuts="d0 d2")
        yield Example(getattr(aten, name).stable, (x,), {"stable": True, "dim": 1}, cuts="d0 d2")
    yield Example(aten.topk.default, (x, 4), cuts="d0 d1")
    yield Example(aten.kthvalue.default, (x, 3, 1), cuts="d0 d2")
    yield Example(aten.kthvalue.default, (x, 3, 1, True), cuts="d0 d2", label="keep")
    for name in ("cumsum", "cumprod", "logcumsumexp", "cummax", "cummin", "diff"):
        args = (x, 1, 1) if name == "diff" else (x, 1)
        yield Example(getattr(aten, name).default, args, cuts="d0 d2")
    yield Example(aten.diff.default, (x, 1, -1, normal(4, 8, 1)), cuts="d0 d1", label="prepend")
    yield Example(aten.cumsum.default, (whole(3, 4, 8), -1), cuts="d0", label="numbers")
    yield Example(aten.flip.default, (x, [0, -1]), cuts="d1")
    yield Example(aten.roll.default, (x, [2, -3], [1, -1]), cuts="d0")
    yield Example(aten.roll.default, (x, [2]), label="flat")
    for name in ("tril", "triu"):
        yield Example(getattr(aten, name).default, (x, 1), cuts="d0")
    for name in ("fft", "ifft", "rfft"):
        yield Example(getattr(aten, f"fft_{name}").default, (x, None, 1), cuts="d0 d2")
        yield Example(getattr(aten, f"fft_{name}2").default, (x,), cuts="d0")
        yield Example(getattr(aten, f"fft_{name}n").default, (x, None, [0, 1]), cuts="d2")
    z = complexes(4, 8, 12)
    yield Example(aten.fft_irfft.default, (z, None, 1), cuts="d0 d2")
    yield Example(aten.fft_irfft2.default, (z,), cuts="d0")
    yield Example(aten.fft_irfftn.default, (z, None, [0, 1]), cuts="d2")
    for name in ("fftshift", "ifftshift"):
        yield Example(getattr(aten, f"fft_{name}").default, (x, [1]), cuts="d0 d2")
    yield Example(aten.view_as_real.default, (z,), cuts="d0 d1 d2")
    yield Example(aten.view_as_complex.default, (normal(4, 8, 2),), cuts="d0 d1")
    yield Example(aten.polar.default, (positive(4, 8), normal(4, 8)), cuts="d0 d1")
    yield Example(aten.complex.default, (normal(4, 8), normal(4, 8)), cuts="d0 d1")
    for name in ("real", "imag", "conj", "resolve_conj", "resolve_neg"):
        yield Example(getattr(aten, name).default, (z,), cuts="d0 d1 d2")


def _pieces() -> Iterator[Example]:
    x = normal(4, 8, 12)
    yield Example(aten.pad.default, (x, [1, 2]), cuts="d0 d1")
    yield Example(aten.pad.default, (x, [1, 2, 0, -3], "constant", 2.0), cuts="d0", label="value")
    yield Example(aten.pad.default, (x, [0, 0, 2, 1], "circular"), cuts="d0 d2", label="circular")
    yield Example(aten.pad.default, (whole(3, 4, 8), [0, 1]), cuts="d0", label="numbers")
    yield Example(aten.constant_pad_nd.default, (x, [0, 0, 1, 0]), cuts="d0 d2")
    yield Example(aten.glu.default, (normal(4, 16, 12), 1), cuts="d0 d1 d2")
    yield Example(aten.unfold.default, (x, 1, 3, 2), cuts="d0 d2")
    yield Example(aten.diagonal.default, (x, 0, 2, 0), cuts="d1")
