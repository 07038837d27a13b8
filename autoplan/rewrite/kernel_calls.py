"""The call of a kernel that stands for an op on one rank: its arguments, from those of the op."""

from __future__ import annotations

from typing import Any

from torch import fx

from autoplan.graph.axes.spec import named
from autoplan.graph.gemms import argument
from autoplan.graph.strategy import Strategy
from autoplan.rewrite.kernels import KERNELS

__all__ = ["kernel_call", "summed_arguments"]

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
