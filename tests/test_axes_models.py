"""Models that are no transformers, each op cut at random on two ranks, train as in one process.

``test_axes`` runs ops one by one; here their local graphs run end to end: literal sizes, results of unlike
shapes, kernels that stand for ops, and every conversion between.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from equality import Case, difference, plan_for
from ranks import Ranks
from torch import Tensor, nn

import autoplan
from autoplan.graph.trace import trace
from autoplan.plan import Precision

ROWS = 4


class Images(nn.Module):
    """Convolutions of every kind that this has names for, norms over groups, up and down."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(4, 8, 2, 2)
        self.wide = nn.Conv2d(8, 16, 3, padding=1, bias=False)
        self.norm = nn.GroupNorm(4, 16)
        self.depth = nn.Conv2d(16, 16, 3, padding=1, groups=16)
        self.groups = nn.Conv2d(16, 16, 3, padding=1, groups=4)
        self.up = nn.ConvTranspose2d(16, 8, 2, 2)
        self.last = nn.Conv2d(16 + 4 + 8, 4, 1)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        h = F.silu(self.norm(self.wide(self.patches(x))))
        h = h + self.groups(self.depth(h))
        small = F.avg_pool2d(F.max_pool2d(h, 3, 1, 1), 2)
        up = self.up(h)
        same = F.interpolate(small, size=x.shape[2:], mode="bilinear")
        shuffled = F.pixel_shuffle(h, 2).roll(1, 2).flip(3)
        return F.mse_loss(self.last(torch.cat([up, shuffled, same], 1)), y)


class Frozen(nn.Module):
    """A batch norm whose statistics forward leaves alone."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(4, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.out = nn.Conv2d(8, 4, 1)
        self.norm.eval()

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return F.mse_loss(self.out(F.relu(self.norm(self.conv(x)))), y)


class Sequences(nn.Module):
    """Two recurrent layers and a cumulative sum; labels are smoothed."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(24, 16)
        self.lstm = nn.LSTM(16, 8, 2, batch_first=True)
        self.gru = nn.GRU(8, 16, batch_first=True)
        self.head = nn.Linear(16, 24)

    def forward(self, ids: Tensor, labels: Tensor) -> Tensor:
        x, (last, _) = self.lstm(self.embed(ids))
        x = x + last[-1].unsqueeze(1).cumsum(1) + x.gather(2, (ids % 8).unsqueeze(2)).repeat(1, 1, 8)
        logits = self.head(self.gru(x)[0])
        return F.cross_entropy(logits.flatten(0, 1), labels.flatten(), label_smoothing=0.1)


class Clicks(nn.Module):
    """Bags of categories, their products in pairs, and dense features."""

    def __init__(self) -> None:
        super().__init__()
        self.tables = nn.ModuleList(nn.EmbeddingBag(12, 8, mode="sum") for _ in range(3))
        self.bottom, self.top = nn.Linear(6, 8), nn.Linear(8 + 16, 1)

    def forward(self, dense: Tensor, ids: Tensor, y: Tensor) -> Tensor:
        x = F.relu(self.bottom(dense))
        bags = torch.stack([x, *(table(ids[:, k]) for k, table in enumerate(self.tables))], 1)
        pairs = torch.einsum("bid,bjd->bij", bags, bags).flatten(1)
        return F.binary_cross_entropy_with_logits(self.top(torch.cat([x, pairs], 1)).squeeze(1), y)


def _images() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(5)
    return {n: torch.randn(ROWS, 4, 8, 12, generator=generator, dtype=torch.float64) for n in "xy"}


def _tokens() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(5)
    return {n: torch.randint(0, 24, (ROWS, 6), generator=generator) for n in ("ids", "labels")}


def _clicks() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(5)
    return {
        "dense": torch.randn(ROWS, 6, generator=generator, dtype=torch.float64),
        "ids": torch.randint(0, 12, (ROWS, 3, 2), generator=generator),
        "y": torch.rand(ROWS, generator=generator, dtype=torch.float64),
    }


MODELS: dict[str, tuple[Callable[[], nn.Module], Callable[[], dict[str, Any]]]] = {
    "images": (Images, _images),
    "frozen": (Frozen, _images),
    "sequences": (Sequences, _tokens),
    "clicks": (Clicks, _clicks),
}


def _make(name: str) -> tuple[nn.Module, dict[str, Any]]:
    torch.manual_seed(0)
    build, batch = MODELS[name]
    return build().double(), batch()


def _train(name: str, seed: int) -> float:
    """The largest relative difference of loss and gradients to one process's."""
    model, batch = _make(name)
    graph = trace(model, batch, precision=Precision.FP64)
    plan = plan_for(graph, Case(tp=2, micro_batch=ROWS, num_micro_batches=1, seed=seed))
    program = autoplan.parallelize(model, batch, plan=plan, precision="fp64")
    loss = program.step(program.shard(batch))
    reference, _ = _make(name)
    expected = reference(**batch)
    expected.backward()
    gradients = {n: p.grad for n, p in reference.named_parameters() if p.grad is not None}
    worst = difference(program.full_gradients(), gradients)
    return max(worst, abs(float(loss) - float(expected)) / abs(float(expected)))


@pytest.mark.parametrize("seed", [1, 2, 3, 4])
@pytest.mark.parametrize("name", MODELS)
def test_any_cut_trains_as_one_process(two: Ranks, name: str, seed: int) -> None:
    assert max(two(_train, name, seed)) < 1e-10
