"""Iteration axes: what each op's dims mean, and every legal way to cut it that follows."""

from autoplan.graph.axes import (  # noqa: F401  (they register their rules)
    attention,
    borrowed,
    convolution,
    experts,
    indexing,
    losses,
    makers,
    mesh_rules,
    norms,
    ordering,
    pointwise,
    products,
    recurrent,
    views,
)
from autoplan.graph.axes.enumerate import part_counts, piece_layouts, spec_of, strategies, value_layouts
from autoplan.graph.axes.makers import FILLED
from autoplan.graph.axes.sequence import sequence_strategies, stored_layout
from autoplan.graph.axes.spec import AxisSpec, register, rule_for
from autoplan.graph.axes.written import register_axes

__all__ = [
    "FILLED",
    "AxisSpec",
    "part_counts",
    "piece_layouts",
    "register",
    "register_axes",
    "rule_for",
    "sequence_strategies",
    "spec_of",
    "stored_layout",
    "strategies",
    "value_layouts",
]
