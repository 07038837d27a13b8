"""The call of a kernel that stands for an op on one rank: its arguments, from those of the op."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from torch import fx

from autoplan.graph.axes.spec import named
from autoplan.graph.gemms import argument
from autoplan.graph.mesh_calls import OnMesh
from autoplan.graph.strategy import GATHERED_ATTENTION, RING_ATTENTION, Strategy
from autoplan.rewrite.kernels import KERNELS, share_of_mean
from autoplan.rewrite.sequence_kernels import gathered_attention, ring_attention, token_cross_entropy

__all__ = ["kernel_call", "mesh_call", "summed_arguments"]

_SUM = 2


def kernel_call(
    node: fx.Node, strategy: Strategy, args: Any, kwargs: Any, group: str, degree: int, summed: bool
) -> tuple[Any, Any, Any]:
    """(kernel, args, kwargs) of ``strategy.kernel`` on local tensors. ``summed``: see ``local_call``."""
    kernel = KERNELS[strategy.kernel or ""]
    if strategy.kernel == "vocab_embedding":
        return kernel, (*args[:2], group, argument(node, 2, "padding_idx", -1)), {}
    if strategy.kernel == "vocab_cross_entropy":
        reduction = _SUM if summed else named(node, "reduction")
        rest = named(node, "ignore_index"), reduction, named(node, "label_smoothing")
        return kernel, (*args[:2], group, *rest), {}
    if strategy.kernel == "vocab_embedding_bag":
        return kernel, (*args[:3], group, bool(named(node, "include_last_offset"))), {}
    if strategy.kernel == "own_experts":
        x, w, ends = (*args, *kwargs.values())[:3]
        return kernel, (str(node.target), x, w, ends, group), {}
    return kernel, (str(node.target), degree, *args), kwargs


def summed_arguments(node: fx.Node, args: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """A cross-entropy's arguments for the sum of its losses instead of their mean."""
    rest = {name: named(node, name) for name in ("ignore_index", "label_smoothing")}
    return tuple(args[:3]), {"reduction": _SUM, **rest}


def mesh_call(
    node: fx.Node, call: OnMesh, args: Any, kwargs: Any, group: str, summed: bool, classes: str | None
) -> tuple[Any, Any, Any]:
    """(function, args, kwargs) of a kernel on the axis that cut the block first.

    ``group`` is that axis's; ``classes`` is the process group that cuts a loss's classes besides, or None.
    """
    like: Any = SimpleNamespace(target=call.op, args=args, kwargs=kwargs)
    if call.kernel == GATHERED_ATTENTION:
        return gathered_attention, (*args[:3], group, named(like, "scale"), call.zigzag), {}
    if call.kernel == RING_ATTENTION:
        causal = bool(named(like, "is_causal", False))
        return ring_attention, (*args[:3], group, named(like, "scale"), causal, call.zigzag), {}
    if call.kernel == "token_cross_entropy":
        rest = named(like, "ignore_index"), named(like, "label_smoothing")
        return token_cross_entropy, (*args[:2], group, *rest, summed, classes), {}
    return share_of_mean, (str(call.op), call.degree, *args), kwargs
