"""Attention masks that models build as tensors, turned into what they mean.

Hugging Face models under ``torch.export`` build the mask explicitly and hand it to attention. Where it
depends on nothing but shapes, ``bands.py`` tells which keys each query sees. If that is all keys up to its own,
attention becomes ``is_causal=True``, which is the same function, needs no (s, s) tensor and is priced as
causal. If it is all keys, the mask is left out. Any other band, a sliding window most of all, is noted in
``meta["window"]`` beside the mask, which stays.
"""

from __future__ import annotations

from typing import Any

from torch import fx

from autoplan.graph.bands import Band, find_bands
from autoplan.graph.gemms import argument, is_attention
from autoplan.graph.grouped_query import share_keys
from autoplan.graph.ir import Window

__all__ = ["free_bands", "use_bands"]


def free_bands(graph: fx.Graph) -> dict[str, Band]:
    """By name, the boolean values of ``graph`` that depend on shapes alone and have a band."""
    return {node.name: band for node, band in find_bands(graph, {}).items()}


def use_bands(graph: fx.Graph, given: dict[str, Band]) -> None:
    """Simplify every fused attention of ``graph`` whose mask has a band; ``given`` tells those of placeholders.

    A placeholder that is needed no more is removed.
    """
    if not any(is_attention(node) for node in graph.nodes):
        return
    bands = find_bands(graph, given)
    for node in list(graph.nodes):
        mask = argument(node, 3, "attn_mask", None) if is_attention(node) else None
        band = bands.get(mask) if isinstance(mask, fx.Node) else None
        if band is not None and _covers(node, band) and not argument(node, 5, "is_causal", False):
            _simplify(node, band)
    graph.eliminate_dead_code()
    for node in list(graph.nodes):
        if node.op == "placeholder" and node.name in given and not node.users:
            graph.erase_node(node)


def _covers(node: fx.Node, band: Band) -> bool:
    """Whether the band has the attention's own queries and keys, none of them broadcast."""
    queries, keys = (node.args[i].meta["val"].shape[-2] for i in (0, 1))  # type: ignore[union-attr]
    return (len(band.first_Q), band.keys) == (queries, keys)


def _simplify(node: fx.Node, band: Band) -> None:
    if not (band.is_full or band.is_causal):
        causal = bool((band.end_Q <= band.first_Q.new_tensor(range(1, len(band.end_Q) + 1))).all())
        node.meta["window"] = Window(band.window, band.share, causal)
        return
    names = ("query", "key", "value", "attn_mask", "dropout_p", "is_causal")
    arguments: dict[str, Any] = dict(zip(names, node.args, strict=False)) | node.kwargs
    arguments |= {"attn_mask": None, "is_causal": band.is_causal and not band.is_full}
    node.args = tuple(arguments.pop(name) for name in names[:3])
    node.kwargs = arguments
    share_keys(node)
