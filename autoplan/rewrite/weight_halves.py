"""The weight half of a backward, run apart: products leave the gradients of their weights for later.

Zero-bubble schedules halve a backward pass. The first half gives the gradient of the stage's input, which
the stage before waits for; the second gives gradients of weights, for which nobody waits. Here that second
half is the product dW of every linear op, by far the most of it: in a graph that ``defer_weight_halves`` has
gone over, backward does all but these and lists them in ``PENDING``, and ``run_weight_halves`` does them.

What is kept in between is the input and the output's gradient of each product, and no graph of autograd: so
a recomputed unit runs again once, in the first half, and parameters may be sharded again between the halves.
(``torch.distributed.pipelining`` can halve any graph by walking it, but it keeps the whole graph, and runs a
checkpointed module again for every group of weights.)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx

__all__ = ["PENDING", "WeightHalf", "defer_weight_halves", "run_weight_halves"]

_aten = torch.ops.aten


@dataclass(frozen=True, slots=True)
class WeightHalf:
    """dW of one product: of y = x·wᵀ (``transposed``) or y = x·w; x (…, i), y (…, o).

    ``weight`` is a parameter or what was made of one (its local piece, a layout of it).
    """

    weight: Tensor
    x: Tensor
    grad: Tensor
    transposed: bool

    def gradient(self) -> Tensor:
        """Of the shape of ``weight``."""
        x, grad = self.x.reshape(-1, self.x.shape[-1]), self.grad.reshape(-1, self.grad.shape[-1])
        return grad.t() @ x if self.transposed else x.t() @ grad


PENDING: list[WeightHalf] = []
"""What backward has left for later, since somebody last took it."""


def run_weight_halves(halves: list[WeightHalf]) -> None:
    """Add every dW to its parameter's gradient; ``halves`` is emptied."""
    of_weight: dict[int, list[WeightHalf]] = {}
    while halves:
        half = halves.pop(0)
        of_weight.setdefault(id(half.weight), []).append(half)
    for key in list(of_weight):
        alike = of_weight.pop(key)
        weight, total = alike[0].weight, alike.pop(0).gradient()
        while alike:
            total = total + alike.pop(0).gradient()
        torch.autograd.backward(weight, total.to(weight.dtype))


def defer_weight_halves(graph: fx.Graph) -> None:
    """Make each product of a value by a parameter in ``graph`` one that leaves its dW for later."""
    for node in list(graph.nodes):
        found = _products.get(node.target) if node.op == "call_function" else None
        if found is None:
            continue
        call, weight = found
        if len(node.args) > weight and not node.kwargs and _of_parameters(node.args[weight]):
            node.target = call


def _of_parameters(node: Any) -> bool:
    """True if ``node`` is a tensor of the module, or made of such alone."""
    if not isinstance(node, fx.Node) or node.op == "placeholder":
        return False
    sources = node.all_input_nodes
    return node.op == "get_attr" or (bool(sources) and all(map(_of_parameters, sources)))


def _linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    if not _splits(x, weight):
        return F.linear(x, weight, bias)
    return _Product.apply(x, bias, weight.detach(), _Later(weight), True)


def _matmul(x: Tensor, weight: Tensor) -> Tensor:
    if not _splits(x, weight):
        return torch.matmul(x, weight)
    return _Product.apply(x, None, weight.detach(), _Later(weight), False)


def _addmm(bias: Tensor, x: Tensor, weight: Tensor) -> Tensor:
    if not _splits(x, weight) or bias.dim() != 1:
        return torch.addmm(bias, x, weight)
    return _Product.apply(x, bias, weight.detach(), _Later(weight), False)


_products: dict[Any, tuple[Any, int]] = {
    _aten.linear.default: (_linear, 1),
    _aten.mm.default: (_matmul, 1),
    _aten.matmul.default: (_matmul, 1),
    _aten.addmm.default: (_addmm, 2),
}
"""From an op to what stands for it, and the place of its weight."""


def _splits(x: Tensor, weight: Tensor) -> bool:
    """A product whose input has no gradient has no first half; one that trains nothing has no second."""
    return (
        torch.is_grad_enabled()
        and x.requires_grad
        and weight.requires_grad
        and weight.dim() == 2
        and x.dim() >= 2
    )


@dataclass(frozen=True, slots=True)
class _Later:
    """Carries a tensor past autograd, which would otherwise count it among the product's inputs."""

    weight: Tensor


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, bias: Tensor | None, weight: Tensor, later: _Later, transposed: bool
    ) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.later, ctx.transposed = later, transposed
        if transposed:
            return F.linear(x, weight, bias)
        return torch.matmul(x, weight) if bias is None else torch.addmm(bias, x, weight)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        x, weight = ctx.saved_tensors
        (grad,) = grads
        PENDING.append(WeightHalf(ctx.later.weight, x, grad, ctx.transposed))
        of_x = grad @ (weight if ctx.transposed else weight.t())
        of_bias = grad.reshape(-1, grad.shape[-1]).sum(0) if ctx.needs_input_grad[1] else None
        return of_x, of_bias, None, None, None
