"""The bands read off a mask's ops are those of the mask itself."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, fx, nn

from autoplan.graph import bands as bands_module
from autoplan.graph.bands import Band, find_bands

Atom = Callable[[Tensor, Tensor], Tensor]
SIZE = 12


class Mask(nn.Module):
    """A (1, 1, s, s) mask from query positions (1, 1, s, 1) and key positions (1, 1, 1, s)."""

    def __init__(self, make: Atom) -> None:
        super().__init__()
        self.make = make

    def forward(self, x: Tensor) -> Tensor:
        position = torch.arange(SIZE, device=x.device)
        return self.make(position[None, None, :, None], position[None, None, None, :]).expand(
            2, 1, SIZE, SIZE
        )


def band_and_mask(make: Atom) -> tuple[Band | None, Tensor]:
    model = Mask(make)
    graph = torch.export.export(model, (torch.zeros(1),), strict=False).module().graph
    result = next(n for n in graph.nodes if n.op == "output").all_input_nodes[0]
    return find_bands(graph, {}).get(result), model(torch.zeros(1))


def matrix(band: Band) -> Tensor:
    keys = torch.arange(band.keys)
    return (keys >= band.first_Q[:, None]) & (keys < band.end_Q[:, None])


ATOMS: dict[str, Callable[[int], Atom]] = {
    "causal": lambda n: lambda q, k: k <= q,
    "causal, turned": lambda n: lambda q, k: q >= k,
    "strictly later": lambda n: lambda q, k: ~(k < q + n),
    "sliding": lambda n: lambda q, k: k > q - n,
    "difference": lambda n: lambda q, k: q - k < n,
    "difference, turned": lambda n: lambda q, k: k - q > -n,
    "number first": lambda n: lambda q, k: torch.full((), n, dtype=torch.int64) >= q - k,
    "both sides": lambda n: lambda q, k: (q - k).abs() <= n,
    "chunks": lambda n: lambda q, k: q // n == k // n,
    "packed": lambda n: lambda q, k: (q >= n).cumsum(2) == (k >= n).cumsum(3),
    "prefix": lambda n: lambda q, k: k < n,
    "late queries": lambda n: lambda q, k: q >= n,
    "everything": lambda n: lambda q, k: q.new_ones((), dtype=torch.bool),
    "a constant": lambda n: lambda q, k: torch.ones(SIZE, SIZE, dtype=torch.bool, device=q.device),
    "a triangle": lambda n: (
        lambda q, k: torch.ones(SIZE, SIZE, dtype=torch.bool, device=q.device).tril(n - 3)
    ),
    "the other": lambda n: lambda q, k: torch.full((SIZE, SIZE), True, device=q.device).triu(3 - n),
}


@pytest.mark.parametrize("small", [16, 1 << 20], ids=["from the ops", "from the matrix"])
@pytest.mark.parametrize("name", ATOMS)
def test_each_way_to_write_a_mask(name: str, small: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bands_module, "_SMALL", small)
    band, mask = band_and_mask(ATOMS[name](4))
    assert band is not None
    assert torch.equal(matrix(band).expand_as(mask), mask)


JOINED = {
    "and": lambda a, b: a & b,
    "times": lambda a, b: a * b,
    "or": lambda a, b: a | b,
    "and not": lambda a, b: a & ~b,
}


@given(
    st.lists(st.tuples(st.sampled_from(sorted(ATOMS)), st.integers(1, SIZE)), min_size=1, max_size=3),
    st.lists(st.sampled_from(sorted(JOINED)), min_size=2, max_size=2),
)
@settings(max_examples=60, deadline=None)
def test_whatever_is_joined_a_band_is_the_mask_s_or_none_at_all(parts: Any, joins: list[str]) -> None:
    def make(q: Tensor, k: Tensor) -> Tensor:
        mask = torch.ones((), dtype=torch.bool) & ATOMS[parts[0][0]](parts[0][1])(q, k)
        for (name, number), join in zip(parts[1:], joins, strict=False):
            mask = JOINED[join](mask, ATOMS[name](number)(q, k))
        return mask

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bands_module, "_SMALL", 16)
        band, mask = band_and_mask(make)
        if band is not None:
            assert torch.equal(matrix(band).expand_as(mask), mask)
        if all(join == "and" for join in joins):
            assert band is not None


@pytest.mark.parametrize(
    "make",
    [
        lambda q, k: (q + k) % 2 == 0,
        lambda q, k: torch.rand(SIZE, SIZE) < 2,
        lambda q, k: (k <= q).transpose(2, 3),
        lambda q, k: q != k,
        lambda q, k: torch.cat([k <= q, k <= q + 1]),
    ],
    ids=["no run", "random", "transposed", "a hole", "two matrices"],
)
def test_what_is_not_known_is_not_guessed(make: Atom, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bands_module, "_SMALL", 16)
    assert band_and_mask(make)[0] is None


def test_a_long_mask_is_never_made(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[int] = []
    run = bands_module._evaluate

    def watched(node: fx.Node, known: dict[fx.Node, Any]) -> Any:
        value = run(node, known)
        made.append(value.numel() if isinstance(value, Tensor) else 0)
        return value

    monkeypatch.setattr(bands_module, "_evaluate", watched)
    monkeypatch.setitem(globals(), "SIZE", 1 << 16)
    model = Mask(lambda q, k: (k <= q) & (k > q - 100))
    with torch._subclasses.FakeTensorMode():
        graph = torch.export.export(model, (torch.zeros(1),), strict=False).module().graph
    (band,) = {band.digest: band for band in find_bands(graph, {}).values() if band.window == 100}.values()
    assert not band.is_causal
    assert max(made) <= 1 << 16
