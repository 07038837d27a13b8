"""Attention whose queries share keys, without copies of the keys.

Hugging Face models hand shared keys to the kernel as they are (``enable_gqa``) when attention takes no mask, and
repeat them for each query head when it does. Under ``torch.export`` they see a mask, so they repeat; once the
mask has become ``is_causal`` the copies are needless, and a real run does not make them.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

__all__ = ["share_keys"]

_aten = torch.ops.aten
_RESHAPES = (_aten.reshape.default, _aten.view.default, _aten._unsafe_view.default)
_COPIES = (_aten.clone.default, _aten.contiguous.default)
_LARGEST_HEAD = 256
"""The largest head size of the kernels that share keys."""


def share_keys(attention: fx.Node) -> bool:
    """Give ``attention`` the keys and values that were repeated for it, if they were and it has no mask.

    Returns False, and changes nothing, where the pattern ``(b, g, s, d) → (b, g, n, s, d) → (b, g·n, s, d)`` is
    not that of both keys and values, or no fused kernel takes their sizes.
    """
    if attention.kwargs.get("attn_mask") is not None or len(attention.args) != 3:
        return False
    query, key, value = attention.args
    keys, values = _unrepeated(key), _unrepeated(value)
    if keys is None or values is None or _shape(keys)[:3] != _shape(values)[:3]:
        return False
    if not _shape(keys)[-1] == _shape(values)[-1] <= _LARGEST_HEAD:
        return False
    attention.args = (query, keys, values)
    attention.kwargs = {**attention.kwargs, "enable_gqa": True}
    for copy in (key, value):
        _erase(copy)
    return True


def _unrepeated(node: Any) -> fx.Node | None:
    """What ``node`` repeats along its head dim, or None if it is no such repetition."""
    if node.target not in _RESHAPES:
        return None
    expand = node.args[0]
    while expand.target in _COPIES:
        expand = expand.args[0]
    if expand.target is not _aten.expand.default:
        return None
    unsqueeze = expand.args[0]
    if unsqueeze.target is not _aten.unsqueeze.default or unsqueeze.args[1] != 2:
        return None
    source = unsqueeze.args[0]
    b, g, n, s, d = _shape(expand) if len(_shape(expand)) == 5 else (0, 0, 0, 0, 0)
    return source if n > 1 and _shape(source) == (b, g, s, d) and _shape(node) == (b, g * n, s, d) else None


def _shape(node: fx.Node) -> tuple[int, ...]:
    return tuple(node.meta["val"].shape)


def _erase(node: Any) -> None:
    while not node.users and node.op == "call_function":
        source = node.args[0]
        node.graph.erase_node(node)
        node = source
