"""In-place calls become calls that make something new, and the numbers and gradients stay what they were."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from graph_runner import run
from torch import Tensor, nn

from autoplan.graph.trace import trace

Change = Callable[[Tensor], Tensor]


class Changes(nn.Module):
    """A linear layer whose result ``change`` changes."""

    def __init__(self, change: Change) -> None:
        super().__init__()
        self.linear = nn.Linear(6, 6)
        self.change = change

    def forward(self, x: Tensor) -> Tensor:
        return self.change(self.linear(x))


def chained(y: Tensor) -> Tensor:
    return y.mul_(2).add_(1).sigmoid_()


def filled(y: Tensor) -> Tensor:
    return y.masked_fill_(y > 0.5, 0.0)


def halves(y: Tensor) -> Tensor:
    made = y.new_empty(4, 12)
    made[:, :6] = y
    made[:, 6:] = y.exp()
    return made


def row(y: Tensor) -> Tensor:
    made = y.clone()
    made[1] = y[0] * 2
    return made


def scaled_part(y: Tensor) -> Tensor:
    made = y * 1
    made[:, 2:5].mul_(3)
    return made + y


def turned(y: Tensor) -> Tensor:
    made = y * 1
    made.transpose(0, 1)[1:3] = 7.0
    return made


def reshaped(y: Tensor) -> Tensor:
    made = y * 1
    made.view(2, 2, 6)[:, 0] = y[:2]
    return made


def placed(y: Tensor) -> Tensor:
    order = y.detach().sum(1).argsort()
    back = torch.empty_like(order)
    back[order] = torch.arange(4)
    return y[back]


def one_of_several(y: Tensor) -> Tensor:
    best, _ = y.topk(3, dim=-1)
    best /= best.exp().sum(-1, keepdim=True)
    return best


def old_view_read_later(y: Tensor) -> Tensor:
    made = y * 1
    view = made[:, 1:]
    made.mul_(2)
    return view + made[:, :5]


FOLLOWED = [chained, filled, halves, row, scaled_part, turned, reshaped, placed, one_of_several]


@pytest.mark.parametrize("change", [*FOLLOWED, old_view_read_later], ids=lambda change: change.__name__)
def test_numbers_and_gradients_are_those_of_the_model(change: Change) -> None:
    torch.manual_seed(0)
    model, x = Changes(change), torch.randn(4, 6)
    graph = trace(model, x, lambda out, batch: out.square().mean())
    loss = run(graph, model, {"input": x})[graph.loss]
    got = torch.autograd.grad(loss, list(model.parameters()))
    expected_loss = model(x).square().mean()
    expected = torch.autograd.grad(expected_loss, list(model.parameters()))
    torch.testing.assert_close(loss, expected_loss)
    torch.testing.assert_close(got, expected)
    nodes = [
        node for block in graph.kinds.values() for node in block.graph.nodes if node.op == "call_function"
    ]
    assert not [
        node for node in nodes if getattr(node.target, "_schema", None) and node.target._schema.is_mutable
    ]


@pytest.mark.parametrize("change", FOLLOWED, ids=lambda change: change.__name__)
def test_composite_ops_stay_whole(change: Change) -> None:
    """Functionalization would take ``matmul`` and ``reshape`` apart and add copies."""

    def with_composites(y: Tensor) -> Tensor:
        return (change(y) @ change(y).mT).transpose(0, 1).reshape(-1, 2)

    graph = trace(Changes(with_composites), torch.randn(4, 6), lambda out, batch: out.square().mean())
    targets = {op.target for op in graph.kinds["model"].ops}
    assert {"aten.matmul.default", "aten.reshape.default"} <= targets
    assert not {"aten._unsafe_view.default", "aten.copy.default"} & targets
