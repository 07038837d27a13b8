"""A forward that treats samples by their number, their count or their order is told apart from one that does not."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from autoplan.graph.trace import trace

Forward = Callable[[Tensor], Tensor]


class Doing(nn.Module):
    """``what`` is done to the output of a linear layer: B samples, S positions, D features."""

    def __init__(self, what: Forward, layers: int = 0) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 8)
        self.layers = nn.ModuleList(Inner(what) for _ in range(layers))
        self._what = what

    def forward(self, x_BSD: Tensor) -> Tensor:
        x_BSD = self.linear(x_BSD)
        for layer in self.layers:
            x_BSD = layer(x_BSD)
        return x_BSD if self.layers else self._what(x_BSD)


class Inner(nn.Module):
    def __init__(self, what: Forward) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 8)
        self._what = what

    def forward(self, x_BSD: Tensor) -> Tensor:
        return self._what(self.linear(x_BSD))


def meetings(what: Forward, layers: int = 0) -> str:
    graph = trace(Doing(what, layers), torch.empty(4, 4, 8), lambda output, batch: output.square().mean())
    return "; ".join(graph.meetings)


def half(x: Tensor) -> Tensor:
    return x[: len(x) // 2]


def branch(x: Tensor) -> Tensor:
    return x.tanh() if len(x) > 6 else x.relu()


def table(x: Tensor) -> Tensor:
    return x + torch.ones(64, 8, device=x.device)[torch.arange(len(x), device=x.device)][:, None]


def put_back(x: Tensor) -> Tensor:
    rows = x.reshape(-1, 8)
    order = rows[:, 0].argsort()
    back = torch.empty_like(order)
    back[order] = torch.arange(len(order), device=x.device)
    return rows[order].tanh()[back].view(x.shape)


def sorted_and_put_back(x: Tensor) -> Tensor:
    """As Hugging Face's mixtures bring rows to their experts and back."""
    rows = x.reshape(-1, 8)
    order = torch.argsort(rows[:, 0])
    back = torch.empty_like(order)
    back[order] = torch.arange(len(order), device=x.device)
    return rows[order].tanh()[back].view(x.shape)


def mixed(x: Tensor) -> Tensor:
    return x + x.transpose(0, 1).reshape(x.shape)


MEETING: dict[str, tuple[Forward, str]] = {
    "scaled by the batch's size": (lambda x: x / len(x), "a number that depends on the size of the batch"),
    "filled with it": (lambda x: x * torch.full_like(x, len(x)), "a number that depends on the size"),
    "a count of samples": (
        lambda x: x + torch.full((len(x), 1, 1), len(x)), "a number that depends on the size",
    ),
    "positions along the batch": (
        lambda x: x * torch.arange(len(x))[:, None, None], "the number of the sample is computed with",
    ),
    "a line along the batch": (
        lambda x: x + torch.linspace(0, 1, len(x))[:, None, None], "the number of the sample is computed with",
    ),
    "a table's row for each sample": (table, "rows picked by the number of the sample"),
    "a triangle of samples": (
        lambda x: torch.einsum("bc,csd->bsd", torch.ones(len(x), len(x)).tril(), x), "",
    ),
    "another way for another size": (branch, "other ops for another size"),
    "two samples in one row": (lambda x: x.reshape(-1, 8, 8), "does not run"),
    "positions taken for samples": (lambda x: x.view(x.shape[1], x.shape[0], 8), "a view that mixes samples"),
    "samples in another order": (mixed, ""),
    "the first half": (half, "folded into one another, or left out|aten.slice"),
    "samples flipped within rows": (
        lambda x: x + x.transpose(0, 1).reshape(-1, 8).flip(0).view(4, -1, 8).transpose(0, 1), "runs along the batch",
    ),
    "orders paired": (
        lambda x: x.reshape(-1, 8) * x.transpose(0, 1).reshape(-1, 8), "samples in one order, paired with",
    ),
    "a size of its own": (lambda x: x.view(4, 4, 8), "a batch of another size does not run"),
}  # fmt: skip

APART: dict[str, Forward] = {
    "positions within samples": lambda x: x * torch.arange(x.shape[1])[:, None],
    "rows in and out": lambda x: x.reshape(-1, 8).tanh().view(x.shape),
    "heads": lambda x: F.scaled_dot_product_attention(*[x.view(len(x), -1, 2, 4).transpose(1, 2)] * 3),
    "the last token of each sample": lambda x: x[torch.arange(len(x)), torch.full((len(x),), 3)],
    "positions first": lambda x: x.transpose(0, 1).reshape(-1, 8).relu().view(4, -1, 8).transpose(0, 1),
    "zeros of its size": lambda x: x + torch.zeros(len(x), 1, 8),
    "windows": lambda x: x.view(len(x), 2, 2, 8).reshape(-1, 2, 8).softmax(1).view(len(x), 4, 8),
    "flipped in time": lambda x: x + x.flip(1),
    "sorted, and put back": sorted_and_put_back,
    "dropout": lambda x: F.dropout(x, 0.1),
    "one copy of all for each expert": lambda x: x.repeat(4, 1, 1).tanh().view(4, *x.shape).sum(0),
    "rows of each expert put back": put_back,
}


@pytest.mark.parametrize("name", MEETING)
def test_samples_that_meet_are_found(name: str) -> None:
    what, reason = MEETING[name]
    found = meetings(what)
    assert found
    assert any(part in found for part in reason.split("|")), found


@pytest.mark.parametrize("name", APART)
def test_samples_that_stay_apart_are_not_taken_to_meet(name: str) -> None:
    assert meetings(APART[name]) == ""


def test_a_repeated_block_is_looked_into() -> None:
    assert "a number that depends on the size of the batch" in meetings(lambda x: x / len(x), layers=3)
    assert meetings(lambda x: x.tanh(), layers=3) == ""
