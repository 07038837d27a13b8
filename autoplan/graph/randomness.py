"""Which calls draw random numbers: each becomes one whose numbers belong to samples (``rewrite.random_kernels``)."""

from __future__ import annotations

import torch
from torch import fx

from autoplan.graph.gemms import argument

__all__ = ["is_random"]

_aten = torch.ops.aten
_RECURRENT = {_aten.lstm.input, _aten.gru.input, _aten.rnn_tanh.input, _aten.rnn_relu.input}


def is_random(node: fx.Node) -> bool:
    """True for a call that draws random numbers."""
    if node.target is _aten.dropout.default:
        return bool(argument(node, 2, "train", False)) and argument(node, 1, "p", 0.0) > 0
    if node.target is _aten.scaled_dot_product_attention.default:
        return argument(node, 4, "dropout_p", 0.0) > 0
    if node.target in _RECURRENT:  # torch says of these that they draw, whatever their dropout
        return argument(node, 5, "dropout", 0.0) > 0 and bool(argument(node, 6, "train", False))
    return (
        isinstance(node.target, torch._ops.OpOverload)
        and torch.Tag.nondeterministic_seeded in node.target.tags
    )
