"""What cannot be captured is refused by name, with a way round."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from test_graph_fold import Layer, Stack
from torch import Tensor, nn

from autoplan.errors import AutoplanError, ModelError, TraceError
from autoplan.graph.trace import trace


def refused(
    kind: type[AutoplanError], model: nn.Module, batch: Any = None, loss: Any = None
) -> AutoplanError:
    with pytest.raises(kind) as caught:
        trace(
            model, torch.empty(2, 4, 8) if batch is None else batch, loss or (lambda out, batch: out.mean())
        )
    assert type(caught.value) is kind
    assert caught.value.remedy
    return caught.value


def branch(layer: nn.Module, x: Tensor) -> Tensor:
    return F.relu(x) if x.sum() > 0 else x


def test_control_flow_on_data_names_the_block() -> None:
    error = refused(TraceError, Stack(Layer(branch), Layer(branch), Layer(branch)))
    assert error.field == "layers.0"
    assert "independent of data" in error.remedy


def test_control_flow_on_data_outside_blocks_names_the_model() -> None:
    error = refused(TraceError, Layer(branch))
    assert error.field == "Layer"


def test_a_tensor_that_is_no_buffer_says_how_to_make_it_one() -> None:
    layers = [Layer(lambda layer, x: x + layer.table, table=torch.arange(8.0)) for _ in range(2)]
    error = refused(TraceError, Stack(*layers))
    assert error.field == "layers.0.table"
    assert "register_buffer('table', tensor, persistent=False)" in error.remedy


def test_a_block_that_returns_more_than_tensors() -> None:
    class Chatty(Layer):
        def forward(self, x: Tensor) -> Any:
            return super().forward(x), object()

    class Listens(Stack):
        def forward(self, x: Tensor) -> Tensor:
            for layer in self.layers:
                x, _ = layer(x)
            return x

    error = refused(TraceError, Listens(Chatty(), Chatty()))
    assert (error.field, error.value) == ("layers.0", "object")


@pytest.mark.parametrize(
    ("loss", "shown"),
    [
        (lambda out, batch: out.sum(), "sum"),
        (lambda out, batch: F.mse_loss(out, batch, reduction="sum"), "mse_loss"),
        (lambda out, batch: out.square().mean() * out.abs().mean(), "mul"),
        (lambda out, batch: out.amax(), "amax"),
    ],
)
def test_a_loss_that_is_no_mean_over_the_batch_is_told(loss: Any, shown: str) -> None:
    graph = trace(nn.Linear(8, 8), torch.empty(2, 4, 8), loss)
    assert graph.meetings[0].startswith("loss: ")
    assert shown in graph.meetings[0]


@pytest.mark.parametrize(
    "loss", [lambda out, batch: out, lambda out, batch: {"logits": out}, lambda out, batch: 1.0]
)
def test_a_loss_that_is_no_scalar(loss: Any) -> None:
    error = refused(ModelError, nn.Linear(8, 8), None, loss)
    assert error.field == "loss"
    assert "scalar" in error.expected


def test_a_batch_of_unequal_rows_names_the_tensor() -> None:
    batch = {"input": torch.empty(4, 8), "labels": torch.empty(3)}
    error = refused(ModelError, nn.Linear(8, 8), batch)
    assert (error.field, error.value) == ("batch.labels", (3,))
    assert "dim 0 of 4, as in batch.input" in error.expected


@pytest.mark.parametrize(
    ("batch", "field"),
    [
        ({}, "batch"),
        ({"input": 3}, "batch.input"),
        ((torch.empty(2, 8), "text"), "batch.1"),
        (torch.empty(()), "batch.input"),
    ],
)
def test_a_batch_that_is_not_tensors_of_rows(batch: Any, field: str) -> None:
    assert refused(ModelError, nn.Linear(8, 8), batch).field == field


def test_a_module_that_cannot_be_copied() -> None:
    model = nn.Linear(8, 8)
    model.generator = (i for i in range(3))  # type: ignore[assignment]
    assert "copy.deepcopy" in refused(TraceError, model).expected
