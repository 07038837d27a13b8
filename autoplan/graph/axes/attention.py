"""Axes of fused attention: batch and heads, heads in groups that share keys, and rows of queries."""

from __future__ import annotations

import torch
from torch import fx

from autoplan.graph.axes.spec import AxisSpec, Dims, named, register, shape_of
from autoplan.graph.gemms import tensor_arguments

_aten = torch.ops.aten


@register(_aten.scaled_dot_product_attention.default)
def attention(node: fx.Node) -> AxisSpec | None:
    """q ``… q d``, k ``… k d``, v ``… k e``, a mask that broadcasts to ``… q k``.

    Leading dims (batch, heads) can be cut, with grouped-query attention both the heads of the keys and the
    queries that share one; rows of queries can be cut when no row's place matters (no ``is_causal``), with all keys
    on every rank. Keys, and the features inside a head, cannot: a softmax runs over them. (Rows of causal attention
    are cut on a context-parallel axis alone: ``sequence``.)
    """
    shapes = [shape_of(source) for source in tensor_arguments(node)]
    q, k, v = shapes[:3]
    lead, sizes = _leading(q, k, v, bool(named(node, "enable_gqa", False)))
    if lead is None or shape_of(node)[:-2] != q[:-2]:
        return None
    fixed = {"k", "d", "e"} | {
        f"d{i}" for i in range(len(q) - 2) if f"d{i}" in sizes and not q[i] == k[i] == v[i]
    }
    if named(node, "is_causal", False):
        fixed.add("q")
    keys = tuple(tuple(axis for axis in axes if axis != "group") for axes in lead)
    values = sizes | {"q": q[-2], "k": k[-2], "d": q[-1], "e": v[-1]}
    inputs: list[Dims] = [(*lead, ("q",), ("d",)), (*keys, ("k",), ("d",)), (*keys, ("k",), ("e",))]
    for mask in shapes[3:]:
        own = [1] * (len(q) - len(mask)) + list(mask)
        dims = tuple(lead[i] if n > 1 else () for i, n in enumerate(own[:-2]))
        rows, columns = own[-2], own[-1]
        whole = (*dims, ("q",) if rows > 1 else (), ("k",) if columns > 1 else ())
        inputs.append(whole[len(q) - len(mask) :])
    roles = dict.fromkeys(sizes, "batch") | {"q": "m"}
    return AxisSpec(tuple(inputs), (*lead, ("q",), ("e",)), values, fixed=frozenset(fixed), gemm=roles)


def _leading(
    q: tuple[int, ...], k: tuple[int, ...], v: tuple[int, ...], grouped: bool
) -> tuple[Dims | None, dict[str, int]]:
    """The axes of the dims before sequence and features, and their sizes."""
    lead: list[tuple[str, ...]] = []
    sizes: dict[str, int] = {}
    last = len(q) - 3
    for i, n in enumerate(q[:-2]):
        if grouped and i == last and k[i] != n:
            if k[i] != v[i] or n % k[i]:
                return None, {}
            heads = {a: extent for a, extent in (("kv", k[i]), ("group", n // k[i])) if extent > 1}
            lead.append(tuple(heads))
            sizes |= heads
        else:
            lead.append((f"d{i}",) if n > 1 else ())
            if n > 1:
                sizes[f"d{i}"] = n
    return tuple(lead), sizes
