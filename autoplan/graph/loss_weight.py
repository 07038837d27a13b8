"""How much one micro-batch's loss weighs against another's.

A step's loss is that of the whole global batch. Cut the batch and the parts' mean losses must be
averaged with the right weights: equal ones for a plain mean, the number of targets that count for a
cross-entropy that ignores some. What is neither is told, since its parts would add up to a different loss
than the whole's: such a batch may not be cut.
"""

from __future__ import annotations

import operator

import torch
from torch import fx

from autoplan.errors import TraceError
from autoplan.graph.gemms import argument

__all__ = ["find_weight", "mean_nodes"]

_aten = torch.ops.aten
_LINEAR = {_aten.to.dtype, _aten.alias.default, _aten.mul.Tensor, _aten.div.Tensor, _aten.neg.default, _aten.clone.default,
           _aten.mul.Scalar, _aten.div.Scalar, _aten.view.default, _aten.reshape.default, _aten.squeeze.default,
           _aten._to_copy.default, operator.getitem}  # fmt: skip
_SUMS = {_aten.add.Tensor, _aten.sub.Tensor}
_MEANS = {_aten.mean.default, _aten.mean.dim}
_MEAN_LOSSES = {_aten.mse_loss.default: 2, _aten.l1_loss.default: 2, _aten.smooth_l1_loss.default: 2,
                _aten.huber_loss.default: 2, _aten.binary_cross_entropy_with_logits.default: 4}  # fmt: skip
_MEAN = 1
_REMEDY = "return the mean of the loss over the batch"


def mean_nodes(loss: fx.Node) -> list[fx.Node]:
    """What the loss is a sum of: the calls that go through scalings and sums to nothing but it."""
    found: list[fx.Node] = []
    pending = [loss]
    while pending:
        node = pending.pop()
        tensors = [n for n in node.all_input_nodes if n.op != "get_attr"]
        if node.op == "call_function" and node.target in _SUMS and tensors and _is_scalar(node):
            pending.extend(tensors)
        elif node.op == "call_function" and node.target in _LINEAR and len(tensors) == 1:
            pending.append(tensors[0])
        elif node not in found:
            found.append(node)
    return found


def _is_scalar(node: fx.Node) -> bool:
    return all(n.meta["val"].numel() == 1 for n in node.all_input_nodes)


def find_weight(loss: fx.Node) -> tuple[fx.Node, int] | None:
    """(target node, ignored index) of the cross-entropy that gives ``loss``; None if it is a plain mean.

    Raises:
        TraceError: the loss is not a mean over the batch.
    """
    weights = [_weight_of(node) for node in mean_nodes(loss)]
    counted = [weight for weight in weights if weight is not None]
    if counted and len(weights) > 1:
        raise TraceError(
            "loss", "a sum that holds a mean over the targets that count", "one such mean", _REMEDY
        )
    return counted[0] if counted else None


def _weight_of(node: fx.Node) -> tuple[fx.Node, int] | None:
    if node.op != "call_function":
        raise TraceError("loss", node.name, "a loss that is a mean over the batch", _REMEDY)
    if node.target is _aten.cross_entropy_loss.default:
        return _cross_entropy(node)
    reduction = _MEAN_LOSSES.get(node.target)  # type: ignore[arg-type]
    if node.target in _MEANS or (
        reduction is not None and argument(node, reduction, "reduction", _MEAN) == _MEAN
    ):
        return None
    raise TraceError(
        "loss", str(node.target), "cross_entropy, mse_loss or another mean over the batch", _REMEDY
    )


def _cross_entropy(node: fx.Node) -> tuple[fx.Node, int] | None:
    if argument(node, 2, "weight", None) is not None:
        raise TraceError(
            "loss",
            "cross_entropy(weight=…)",
            "no class weights",
            "multiply the logits' loss by the weights yourself and return its mean",
        )
    if argument(node, 3, "reduction", _MEAN) != _MEAN:
        raise TraceError("loss", "cross_entropy(reduction='sum' or 'none')", "reduction='mean'", _REMEDY)
    target = node.args[1]
    assert isinstance(target, fx.Node)
    if target.meta["val"].is_floating_point():
        return None
    return target, int(argument(node, 4, "ignore_index", -100))
