"""The call that stands for an op that draws random numbers, from the arguments of the op."""

from __future__ import annotations

import zlib
from types import SimpleNamespace
from typing import Any

import torch
from torch import fx

from autoplan.graph.axes.spec import named
from autoplan.graph.gemms import argument
from autoplan.graph.mesh_calls import Drawn
from autoplan.graph.randomness import is_random
from autoplan.rewrite.random_kernels import DRAWS, drawn_attention, drawn_call, drawn_dropout

__all__ = ["draw_in", "drawn_call_of"]

_aten = torch.ops.aten
_Places = tuple[tuple[str, str, bool], ...]


def drawn_call_of(
    node: fx.Node, args: Any, kwargs: Any, draws: fx.Node | None, places: _Places, cp_group: str = ""
) -> tuple[Any, Any, Any]:
    """(function, args, kwargs) for this rank's piece of the result of ``node``.

    Args:
        args, kwargs: the node's own, with local tensors (or nodes) for its inputs.
        draws: the graph's input of random bits.
        places: how axes inside that of cp cut the result.
        cp_group: the process group of the axis that has cut the block already, if one has.
    """
    op, value, key = node.target, node.meta["val"], zlib.crc32(node.name.encode()) >> 1
    shape = tuple(value.shape) if isinstance(value, torch.Tensor) else ()
    if isinstance(op, Drawn):
        op, shape, places = op.op, op.shape, ((op.layout, cp_group, op.zigzag), *places)
    like: Any = SimpleNamespace(target=op, args=args, kwargs=kwargs)
    if op is _aten.dropout.default:
        return drawn_dropout, (args[0], draws, argument(like, 1, "p", 0.5), key, shape, places), {}
    if op is _aten.scaled_dot_product_attention.default:
        mask, p = argument(like, 3, "attn_mask", None), argument(like, 4, "dropout_p", 0.0)
        causal, scale = bool(argument(like, 5, "is_causal", False)), named(like, "scale")
        return drawn_attention, (*args[:3], mask, draws, p, causal, scale, key, shape, places), {}
    return drawn_call, (str(op), draws, key, *args), kwargs


def draw_in(graph: fx.Graph) -> None:
    """Make the ops of a graph that is the same on all ranks draw from an input of random bits, in place."""
    random = [node for node in graph.nodes if node.op == "call_function" and is_random(node)]
    if not random:
        return
    last = [node for node in graph.nodes if node.op == "placeholder"][-1:]
    with graph.inserting_after(*last) if last else graph.inserting_before(next(iter(graph.nodes))):
        draws = graph.placeholder(DRAWS)
    for node in random:
        node.target, args, node.kwargs = drawn_call_of(node, node.args, node.kwargs, draws, ())
        node.args = tuple(args)
