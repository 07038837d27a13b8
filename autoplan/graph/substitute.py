"""Ops of other libraries, and of torch's functional form, put in terms of those that the rest of us knows.

* Products grouped by expert: torch has one operator for some dtypes, transformers another for the rest. Both are
  ``autoplan::grouped_mm``, which has axes and runs everywhere.
* ``aten.copy``: what torch makes of an assignment into part of a tensor. Autograd cannot differentiate
  it; a cast and an expansion are the same function.
* What ``functions`` put in the place of a ``torch.autograd.Function`` is the call of that Function again.
"""

from __future__ import annotations

import torch
from torch import fx

from autoplan.graph.functions import restore_functions
from autoplan.graph.sources import grouped_mm as _registers_the_operator  # noqa: F401

__all__ = ["substitute"]

_aten = torch.ops.aten
_GROUPED = {"aten._grouped_mm.default", "transformers.grouped_mm_fallback.default"}


def substitute(graph: fx.Graph) -> None:
    """Replace these ops in ``graph``, where they stand."""
    if any(node.target is _aten.linalg_solve_triangular.default for node in graph.nodes):
        _reshape_for_view(graph)
    restore_functions(graph)
    for node in list(graph.nodes):
        if node.op != "call_function":
            continue
        if str(node.target) in _GROUPED and _is_plain(node):
            node.target = torch.ops.autoplan.grouped_mm.default
            node.args, node.kwargs = _grouped_arguments(node), {}
        elif node.target is _aten.copy.default:
            _replace_copy(graph, node)


def _reshape_for_view(graph: fx.Graph) -> None:
    """The result of a triangular solve lies otherwise in memory than its fake form says: a view may need a copy."""
    for node in graph.nodes:
        if node.target is _aten.view.default:
            node.target = _aten.reshape.default


def _grouped_arguments(node: fx.Node) -> tuple[fx.Node, ...]:
    ends = node.kwargs.get("offs", node.args[2] if len(node.args) > 2 else None)
    return (*node.args[:2], ends)  # type: ignore[return-value]


def _is_plain(node: fx.Node) -> bool:
    """Rows (P, D), weights (E, D, F), ends (E,), no bias, and the result in the dtype of the rows."""
    rows, weights, ends = _grouped_arguments(node)
    result, bias = node.meta["val"], node.kwargs.get("bias", node.args[3] if len(node.args) > 3 else None)
    return (
        isinstance(ends, fx.Node)
        and bias is None
        and (rows.meta["val"].dim(), weights.meta["val"].dim()) == (2, 3)
        and result.dtype == rows.meta["val"].dtype
    )


def _replace_copy(graph: fx.Graph, node: fx.Node) -> None:
    source, value = node.args[1], node.meta["val"]
    assert isinstance(source, fx.Node)
    given = source.meta["val"]
    with graph.inserting_before(node):
        for differs, op, argument in (
            (given.dtype != value.dtype, _aten.to.dtype, value.dtype),
            (given.shape != value.shape, _aten.expand.default, list(value.shape)),
        ):
            if differs:
                source = graph.call_function(op, (source, argument))
                source.meta.update(node.meta, val=op(given, argument))
                given = source.meta["val"]
    node.replace_all_uses_with(source)
    graph.erase_node(node)
