"""How micro-batches' losses are weighed: with the weight that tracing finds, parts add up to the whole."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from graph_runner import run
from torch import Tensor, nn

from autoplan.graph.ir import ModelGraph
from autoplan.graph.trace import trace

CLASSES = 6


def batch_of(samples: int, ignored: int = -100) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    labels = torch.randint(0, CLASSES, (samples, 5), generator=generator)
    for row in range(samples):
        labels[row, :row] = ignored
    return {"input": torch.randn(samples, 5, 8, generator=generator), "labels": labels}


class Classifier(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.linear = nn.Linear(8, CLASSES)

    def forward(self, input: Tensor, labels: Tensor) -> Tensor:
        return self.linear(input)


def cross_entropy(out: Tensor, labels: Tensor, **options: Any) -> Tensor:
    return F.cross_entropy(out.flatten(0, 1), labels.flatten(), **options)


WEIGHED = {
    "plain": lambda out, batch: cross_entropy(out, batch["labels"]),
    "another ignored": lambda out, batch: cross_entropy(out, batch["labels"], ignore_index=2),
    "smoothed": lambda out, batch: cross_entropy(out, batch["labels"], label_smoothing=0.1),
    "scaled": lambda out, batch: 0.5 * cross_entropy(out, batch["labels"]) / 3,
    "wide": lambda out, batch: cross_entropy(out.double(), batch["labels"]).float(),
    "classes second": lambda out, batch: F.cross_entropy(out.transpose(1, 2), batch["labels"]),
    "shifted": lambda out, batch: F.cross_entropy(
        out[:, :-1].reshape(-1, CLASSES), batch["labels"][:, 1:].reshape(-1)
    ),
}
EQUAL = {
    "squared": lambda out, batch: F.mse_loss(out, batch["input"][..., :CLASSES]),
    "absolute": lambda out, batch: F.l1_loss(out, batch["input"][..., :CLASSES]),
    "smooth": lambda out, batch: F.smooth_l1_loss(out, batch["input"][..., :CLASSES]),
    "binary": lambda out, batch: F.binary_cross_entropy_with_logits(
        out, batch["input"][..., :CLASSES].sigmoid()
    ),
    "probabilities": lambda out, batch: cross_entropy_soft(out, batch),
    "mean": lambda out, batch: -out.log_softmax(-1).mean(),
}


def cross_entropy_soft(out: Tensor, batch: dict[str, Tensor]) -> Tensor:
    return F.cross_entropy(out.flatten(0, 1), batch["input"][..., :CLASSES].softmax(-1).flatten(0, 1))


def parts(graph: ModelGraph, model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    """The whole batch's loss, put together from those of micro-batches of two samples."""
    losses, weights = [], []
    for start in range(0, len(batch["input"]), 2):
        chain = run(graph, model, {key: value[start : start + 2] for key, value in batch.items()})
        losses.append(chain[graph.loss])
        weights.append(chain[graph.weight] if graph.weight else torch.ones(()))
    weight = torch.stack(weights).float()
    return (torch.stack(losses) * weight).sum() / weight.sum()


@pytest.mark.parametrize("name", [*WEIGHED, *EQUAL])
def test_the_parts_add_up_to_the_whole(name: str) -> None:
    loss = (WEIGHED | EQUAL)[name]
    model, batch = Classifier(), batch_of(4, 2 if name == "another ignored" else -100)
    graph = trace(model, {key: value[:2] for key, value in batch.items()}, loss)
    assert (graph.weight is not None) == (name in WEIGHED)
    torch.testing.assert_close(parts(graph, model, batch), loss(model(**batch), batch))


@pytest.mark.parametrize(
    ("loss", "value"),
    [
        (lambda out, batch: cross_entropy(out, batch["labels"], reduction="sum"), "reduction='sum'"),
        (lambda out, batch: cross_entropy(out, batch["labels"], weight=torch.ones(CLASSES)), "weight=…"),
        (lambda out, batch: cross_entropy(out, out.argmax(-1)), "targets"),
    ],
    ids=["summed", "weighted", "targets of its own"],
)
def test_a_cross_entropy_whose_parts_do_not_add_up(loss: Any, value: str) -> None:
    (reason,) = trace(Classifier(), batch_of(2), loss).meetings
    assert reason.startswith("loss: ")
    assert value in reason


def pooled(out: Tensor) -> Tensor:
    return F.normalize(out.mean(1), dim=-1)


MIXED = {
    "sum over samples first": lambda out, batch: out.sum(0).square().mean(),
    "batch statistics": lambda out, batch: (out - out.mean()).square().mean(),
    "softmax over samples": lambda out, batch: out.softmax(0).square().mean(),
    "largest of the batch": lambda out, batch: (out / out.amax()).square().mean(),
    "every pair": lambda out, batch: (pooled(out) @ pooled(out.relu()).T).log_softmax(-1).mean(),
    "every pair by einsum": lambda out, batch: torch.einsum("bd,cd->bc", pooled(out), pooled(out)).mean(),
    "every pair by broadcast": lambda out, batch: (pooled(out)[:, None] - pooled(out)[None]).square().mean(),
    "features of the batch": lambda out, batch: (pooled(out).T @ pooled(out)).square().mean(),
    "the next sample": lambda out, batch: (pooled(out) * pooled(out).roll(1, 0)).mean(),
    "the first sample": lambda out, batch: (out - out[:1]).square().mean(),
}
APART = {
    "attention by hand": lambda out, batch: (
        (out @ out.transpose(1, 2)).softmax(-1).matmul(out).square().mean()
    ),
    "samples second": lambda out, batch: out.transpose(0, 1).softmax(0).square().mean(),
    "tokens in one dim": lambda out, batch: out.flatten(0, 1).softmax(-1).square().mean(),
    "tokens and back": lambda out, batch: out.flatten(0, 1).view(out.shape).sum(1).square().mean(),
    "within a sample by einsum": lambda out, batch: torch.einsum("bsd,btd->bst", out, out).square().mean(),
    "joined and cut": lambda out, batch: torch.cat([out, out], 1).chunk(2, 1)[1].square().mean(),
    "two means": lambda out, batch: out.square().mean() + 0.1 * out.abs().mean(),
    "a mean of means": lambda out, batch: out.square().mean(1).mean(),
}


@pytest.mark.parametrize("name", MIXED)
@pytest.mark.parametrize("samples", [1, 3])
def test_where_samples_meet_is_told(name: str, samples: int) -> None:
    if samples == 1 and name == "the first sample":
        return  # of one sample it is the whole
    graph = trace(Classifier(), batch_of(samples), MIXED[name])
    assert graph.meetings
    assert graph.meetings[0].startswith("loss: aten.")


def test_where_samples_meet_in_a_module_is_told_with_its_line() -> None:
    class Whitened(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.linear = Centred(), nn.Linear(8, 8)

        def forward(self, x: Tensor) -> Tensor:
            return self.norm(self.linear(x)).square().mean()

    class Centred(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x - x.mean(0)

    (meeting,) = trace(Whitened(), torch.empty(3, 8)).meetings
    line = Centred.forward.__code__.co_firstlineno + 1
    assert meeting == f"norm: aten.mean.dim at test_graph_loss_weight.py:{line}"


@pytest.mark.parametrize("name", APART)
@pytest.mark.parametrize("samples", [1, 3])
def test_samples_that_stay_apart_until_the_mean(name: str, samples: int) -> None:
    assert trace(Classifier(), batch_of(samples), APART[name]).meetings == ()


@pytest.mark.parametrize("name", APART)
def test_a_mean_over_samples_that_stay_apart_adds_up(name: str) -> None:
    model, batch = Classifier(), batch_of(4)
    graph = trace(model, {key: value[:2] for key, value in batch.items()}, APART[name])
    torch.testing.assert_close(parts(graph, model, batch), APART[name](model(**batch), batch))


class _Positions(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(8, CLASSES)

    def forward(self, input: Tensor) -> Tensor:
        return (self.linear(input) * torch.arange(CLASSES)).square().mean()


def test_what_a_graph_makes_is_made_where_the_rank_computes() -> None:
    from autoplan.rewrite.stage_module import free_module

    graph = trace(_Positions(), torch.zeros(2, 5, 8))
    (name,) = (name for unit in graph.units for name in unit.arguments if name.startswith("free."))
    assert free_module(graph, [name], {}, torch.device("meta"))()[0].device.type == "meta"
    assert free_module(graph, [name], {}, torch.device("cpu"))()[0].device.type == "cpu"
