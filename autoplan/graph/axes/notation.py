"""An op's iteration axes as people write them: ``1 d1 i, o i -> 1 d1 o``.

``1`` is a dim that no axis runs over (its size is one, or it is broadcast), ``(h e)`` a dim that is the product of
two axes, the slowest first, and ``!`` marks an axis that cannot be cut. An axis that only inputs have is contracted.
"""

from __future__ import annotations

from autoplan.graph.axes.enumerate import spec_of
from autoplan.graph.axes.spec import AxisSpec, Dims
from autoplan.graph.ir import Block, Op

__all__ = ["axes_text"]


def axes_text(block: Block, op: Op) -> str | None:
    """The axes of one call of an op, or None when it has no rule, or its rule keeps this call whole."""
    spec = spec_of(block, op)
    if spec is None:
        return None
    inputs = ", ".join(_tensor(dims, spec) for dims in spec.inputs)
    return f"{inputs} -> {_tensor(spec.output, spec)}".strip()


def _tensor(dims: Dims, spec: AxisSpec) -> str:
    return " ".join(_dim(axes, spec) for axes in dims) or "()"


def _dim(axes: tuple[str, ...], spec: AxisSpec) -> str:
    if not axes:
        return "1"
    names = " ".join(f"{axis}!" if axis in spec.fixed else axis for axis in axes)
    return names if len(axes) == 1 else f"({names})"
