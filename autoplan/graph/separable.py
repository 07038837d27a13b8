"""Refusing models in which samples of a batch meet before the loss.

A plan cuts the batch, which leaves the loss what it was only if each sample goes its own way until the
final mean. What brings samples together is a reduction, softmax or norm over dim 0, where the batch is (or,
once tokens are flattened, batch and sequence are). A product that contracts or pairs samples, as
a contrastive loss has, is not recognised.
"""

from __future__ import annotations

import torch
from torch import fx

from autoplan.errors import TraceError
from autoplan.graph.gemms import argument
from autoplan.graph.ir import Block

__all__ = ["check_separable"]

_aten = torch.ops.aten
_OVER_DIMS = {
    _aten.sum.dim_IntList, _aten.mean.dim, _aten.amax.default, _aten.amin.default, _aten.var.correction,
    _aten.std.correction, _aten.logsumexp.default, _aten.max.dim, _aten.min.dim, _aten.cumsum.default,
    _aten.softmax.int, _aten.log_softmax.int, _aten.var_mean.correction, _aten.prod.dim_int, _aten.norm.ScalarOpt_dim,
    _aten.linalg_vector_norm.default,
}  # fmt: skip
_OVER_ALL = {_aten.sum.default, _aten.mean.default, _aten.max.default, _aten.min.default, _aten.std.default,
             _aten.var.default, _aten.prod.default}  # fmt: skip
_DIM_POSITION = {_aten.norm.ScalarOpt_dim: 2, _aten.linalg_vector_norm.default: 2}


def check_separable(block: Block, loss: str | None) -> None:
    """Raise TraceError if an op of ``block`` reduces activations over dim 0.

    ``loss`` names the block's value that is the loss: the op that it comes from is the one mean over the batch
    that there must be.
    """
    final = _final(block, loss)
    activations: set[fx.Node] = set()
    for node in block.graph.nodes:
        if node.op == "placeholder":
            activations.add(node)
        elif node.op == "call_function" and any(n in activations for n in node.all_input_nodes):
            activations.add(node)
            if node is not final and block.values[node.name].requires_grad and _reduces_batch(node):
                path = next(op.module_path for op in block.ops if op.name == node.name)
                raise TraceError(
                    path or "loss", str(node.target), "samples that meet in the final mean only",
                    "reduce over the other dims, and let the loss be one mean over the batch",
                )  # fmt: skip


def _final(block: Block, loss: str | None) -> fx.Node | None:
    """The op that takes the mean: the first reduction found going back from the loss."""
    node = next((n for n in block.graph.nodes if n.name == loss), None)
    while node is not None and node.op == "call_function" and not _reduces_batch(node):
        if "loss" in str(node.target):
            return None  # the mean is inside it
        sources = [n for n in node.all_input_nodes if n.op == "call_function"]
        node = sources[0] if len(sources) == 1 else None
    return node


def _reduces_batch(node: fx.Node) -> bool:
    source = node.args[0] if node.args else None
    if not isinstance(source, fx.Node) or not isinstance(source.meta.get("val"), torch.Tensor):
        return False
    rank = source.meta["val"].dim()
    if node.target in _OVER_ALL:
        return rank > 0
    if node.target not in _OVER_DIMS or rank == 0:
        return False
    dims = argument(node, _DIM_POSITION.get(node.target, 1), "dim", None)  # type: ignore[arg-type]
    if dims is None or dims == []:
        return True
    return any(dim % rank == 0 for dim in (dims if isinstance(dims, list | tuple) else [dims]))
