"""Which values of a chain a gradient may flow into, found before any block is analysed."""

from __future__ import annotations

from collections.abc import Collection

import torch
import torch.utils._pytree as pytree
from torch import Tensor, fx

__all__ = ["differentiable"]

_aten = torch.ops.aten
_CONSTANT = {
    _aten.detach.default, _aten.zeros_like.default, _aten.ones_like.default, _aten.full_like.default,
    _aten.empty_like.default, _aten.rand_like.default, _aten.randn_like.default, _aten.new_zeros.default,
    _aten.new_ones.default, _aten.new_full.default, _aten.new_empty.default,
}  # fmt: skip


def differentiable(graph: fx.Graph, inputs: Collection[str]) -> set[str]:
    """Names of the nodes that depend on a trainable parameter or on ``inputs``, names of placeholders."""
    found: set[fx.Node] = set()
    for node in graph.nodes:
        if node.op == "placeholder":
            reached = node.name in inputs
        elif node.op == "get_attr":
            reached = bool(node.meta.get("trainable"))
        else:
            reached = node.target not in _CONSTANT and any(n in found for n in node.all_input_nodes)
        if reached and (node.op == "placeholder" or _has_gradient(node)):
            found.add(node)
    return {node.name for node in found}


def _has_gradient(node: fx.Node) -> bool:
    return any(
        isinstance(leaf, Tensor) and (leaf.is_floating_point() or leaf.is_complex())
        for leaf in pytree.tree_leaves(node.meta.get("val"))
    )
