"""Iteration axes: what each op's dims mean, and every legal way to cut it that follows."""

from autoplan.graph.axes import pointwise, products, views  # noqa: F401  (they register their rules)
from autoplan.graph.axes.enumerate import part_counts, strategies, value_layouts
from autoplan.graph.axes.spec import AxisSpec, register, rule_for

__all__ = ["AxisSpec", "part_counts", "register", "rule_for", "strategies", "value_layouts"]
