"""Recognising a causal attention mask that a model builds as a tensor.

Hugging Face models under ``torch.export`` build the mask explicitly and hand it to attention. A mask
that depends on nothing but the shapes is a constant: it is evaluated once, and if it is the lower
triangle the attention becomes ``is_causal=True``, which is the same function, needs no (s, s) tensor
and is priced as causal.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx

__all__ = ["causal_values", "make_causal"]

_LARGEST = 1 << 28
_SDPA = torch.ops.aten.scaled_dot_product_attention.default


def causal_values(graph: fx.Graph) -> set[str]:
    """Names of the nodes of ``graph`` that are boolean, constant and lower triangular in their last two dims."""
    static: set[fx.Node] = set()
    for node in graph.nodes:
        if node.op == "call_function" and all(n in static for n in node.all_input_nodes):
            static.add(node)
    masks = [n for n in static if _may_be_mask(n.meta.get("val"))]
    if not masks:
        return set()
    wanted, found = _ancestors(masks), set()
    env: dict[fx.Node, Any] = {}
    for node in graph.nodes:
        if node in wanted:
            args, kwargs = fx.map_arg((node.args, node.kwargs), lambda n: env[n])
            env[node] = node.target(*args, **kwargs)
            if node in masks and _is_lower_triangle(env[node]):
                found.add(node.name)
    return found


def _may_be_mask(value: Any) -> bool:
    return (
        isinstance(value, Tensor)
        and value.dtype == torch.bool
        and value.dim() >= 2
        and value.shape[-1] == value.shape[-2] > 1
        and value.numel() <= _LARGEST
    )


def _ancestors(nodes: list[fx.Node]) -> set[fx.Node]:
    seen: set[fx.Node] = set()
    pending = list(nodes)
    while pending:
        node = pending.pop()
        if node not in seen:
            seen.add(node)
            pending.extend(node.all_input_nodes)
    return seen


def _is_lower_triangle(mask: Tensor) -> bool:
    """True if every (query, key) matrix of ``mask`` is the lower triangle; broadcast ones are looked at once."""
    stored = mask[tuple(slice(1) if stride == 0 else slice(None) for stride in mask.stride()[:-2])]
    size = mask.shape[-1]
    return bool((stored == torch.ones(size, size, dtype=torch.bool).tril_()).all())


def make_causal(graph: fx.Graph, placeholder: str) -> bool:
    """Turn every attention of ``graph`` that takes ``placeholder`` as its mask into a causal one.

    Returns False, and changes nothing, if the placeholder is used in any other way.
    """
    node = next((n for n in graph.nodes if n.op == "placeholder" and n.name == placeholder), None)
    if node is None or not all(_is_mask_of(user, node) for user in node.users):
        return False
    for user in list(node.users):
        arguments = dict(
            zip(("query", "key", "value", "attn_mask", "dropout_p", "is_causal"), user.args, strict=False)
        )
        arguments |= user.kwargs
        arguments["attn_mask"], arguments["is_causal"] = None, True
        user.args = tuple(arguments.pop(name) for name in ("query", "key", "value"))
        user.kwargs = arguments
    graph.erase_node(node)
    return True


def _is_mask_of(user: fx.Node, node: fx.Node) -> bool:
    if user.target is not _SDPA:
        return False
    mask = user.kwargs.get("attn_mask", user.args[3] if len(user.args) > 3 else None)
    query_rows = user.args[0].meta["val"].shape[-2]  # type: ignore[union-attr]
    key_rows = user.args[1].meta["val"].shape[-2]  # type: ignore[union-attr]
    return mask is node and node not in user.args[:3] and query_rows == key_rows
