"""In-place calls on what forward itself makes, rewritten as calls that make something new.

``ExportedProgram.run_decompositions`` does that too, but takes composite ops apart on the way, which adds copies that
no run makes, and leaves ``aten.copy``, which has no derivative. Here ``x.add_(y)`` becomes ``add(x, y)``, and a write
into a view, ``x[..., :n].copy_(y)``, puts the view's new value back into what it is a view of. What this cannot
follow (another view of ``x`` read later, an input or a buffer that changes) is left as it is, for functionalization.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import fx
from torch._ops import OpOverload

__all__ = ["make_functional"]

_aten = torch.ops.aten


def make_functional(graph: fx.Graph) -> None:
    """Rewrite the in-place calls of ``graph`` that can be followed, one after the other."""
    for node in list(graph.nodes):
        if _is_in_place(node):
            _rewrite(node)


def _is_in_place(node: fx.Node) -> bool:
    """A call ``op_(self, …)`` that changes its first argument alone and returns it."""
    if node.op != "call_function" or not isinstance(node.target, OpOverload):
        return False
    schema = node.target._schema
    changed = [
        argument.alias_info is not None and argument.alias_info.is_write for argument in schema.arguments
    ]
    return changed[:1] == [True] and sum(changed) == 1 and node.target._opname.endswith("_")


def _rewrite(node: fx.Node) -> None:
    chain = _views_down_to(node.args[0])
    value = _functional(node)
    if chain is None or value is None or _other_views_read_later(chain, node):
        return
    target, arguments, named = value
    with node.graph.inserting_before(node):
        new = _call(node.graph, target, arguments, named, node)
        updated = {chain[0]: new}
        for view, source in pairwise(chain):
            put_back = _PUT_BACK[view.target](view, source, updated[view])  # type: ignore[index]
            updated[source] = _call(node.graph, *put_back, {}, node)
    node.replace_all_uses_with(new)
    for old, replaced in updated.items():
        old.replace_all_uses_with(replaced, delete_user_cb=lambda user: _comes_after(user, node))
    node.graph.erase_node(node)


def _call(graph: fx.Graph, target: Any, arguments: Any, named: Any, like: fx.Node) -> fx.Node:
    made = graph.call_function(target, arguments, named)
    made.meta.update({key: value for key, value in like.meta.items() if key != "val"})
    args, kwargs = fx.map_arg((arguments, named), lambda source: source.meta["val"])
    mode = next(v.fake_mode for v in pytree.tree_leaves((args, kwargs)) if hasattr(v, "fake_mode"))
    with mode, torch.no_grad():
        made.meta["val"] = target(*args, **kwargs)
    return made


def _views_down_to(node: Any) -> list[fx.Node] | None:
    """``node``, what it is a view of, and so on to a tensor that forward makes; None if it cannot be put back."""
    chain = [node]
    while chain[-1].target in _PUT_BACK:
        chain.append(chain[-1].args[0])
    root = chain[-1]
    if root.target is operator.getitem:  # one of several results
        root = root.args[0]
    made = root.op == "call_function" and isinstance(root.target, OpOverload)
    return chain if made and not _may_alias(root) else None


def _may_alias(node: fx.Node) -> bool:
    """True for a call whose result may lie in an argument's storage."""
    schema = node.target._schema  # type: ignore[union-attr]
    aliased = any(result.alias_info is not None for result in schema.returns)
    return aliased or node.target in _SOMETIMES_VIEWS


def _other_views_read_later(chain: list[fx.Node], node: fx.Node) -> bool:
    """True if a value made before ``node`` that shares storage with the root, outside ``chain``, is read after it."""
    pending, seen = [chain[-1]], set(chain)
    while pending:
        for user in pending.pop().users:
            earlier = user not in seen and user is not node and not _comes_after(user, node)
            if not earlier or not isinstance(user.target, OpOverload) or not _may_alias(user):
                continue
            if _is_in_place(user) or any(_comes_after(reader, node) for reader in user.users):
                return True
            seen.add(user)
            pending.append(user)
    return False


def _comes_after(node: fx.Node, other: fx.Node) -> bool:
    return other < node


def _functional(node: fx.Node) -> tuple[Any, tuple[Any, ...], dict[str, Any]] | None:
    """The call that makes what the in-place call ``node`` leaves behind."""
    if node.target is _aten.copy_.default:
        before, source = node.args[0].meta["val"], node.args[1]  # type: ignore[union-attr]
        after = source.meta["val"]  # type: ignore[union-attr]
        if before.dtype != after.dtype:
            return None
        return _aten.expand_copy.default, (source, list(before.shape)), {}
    packet = getattr(getattr(torch.ops, node.target.namespace), node.target._opname.removesuffix("_"), None)  # type: ignore[union-attr]
    overload = getattr(packet, node.target._overloadname, None)  # type: ignore[union-attr]
    if not isinstance(overload, OpOverload) or overload._schema.is_mutable:
        return None
    names = [argument.name for argument in overload._schema.arguments]
    if names != [argument.name for argument in node.target._schema.arguments]:  # type: ignore[union-attr]
        return None
    return overload, node.args, dict(node.kwargs)


_PutBack = Callable[[fx.Node, fx.Node, fx.Node], "tuple[Any, tuple[Any, ...]]"]


def _like_source(target: Any) -> _PutBack:
    return lambda view, source, new: (target, (new, list(source.meta["val"].shape)))


_PUT_BACK: dict[Any, _PutBack] = {
    _aten.slice.Tensor: lambda view, source, new: (
        _aten.slice_scatter.default,
        (source, new, *view.args[1:]),
    ),
    _aten.select.int: lambda view, source, new: (_aten.select_scatter.default, (source, new, *view.args[1:])),
    _aten.transpose.int: lambda view, source, new: (_aten.transpose.int, (new, *view.args[1:])),
    _aten.unsqueeze.default: lambda view, source, new: (_aten.squeeze.dim, (new, *view.args[1:])),
    _aten.view.default: _like_source(_aten.reshape.default),
}
"""For each view that can be undone, the call that makes its source anew from the view's new value."""

_SOMETIMES_VIEWS = {
    _aten.reshape.default,
    _aten.contiguous.default,
    _aten.to.dtype,
    _aten.to.device,
    _aten.flatten.using_ints,
}
