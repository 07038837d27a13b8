"""The layout of what passes between units."""

from __future__ import annotations

from typing import TYPE_CHECKING

from autoplan.graph.layout import REPLICATE

if TYPE_CHECKING:
    from autoplan.graph.ir import Value
    from autoplan.graph.layout import Layout

__all__ = ["boundary_layout"]


def boundary_layout(value: Value, boundary: Layout, degree: int) -> Layout:
    """``boundary`` for a value that carries a gradient and whose dim can be cut so; otherwise R.

    Masks, tables, token ids and the scalar loss are therefore always whole.
    """
    if not value.requires_grad or not boundary.is_shard:
        return REPLICATE
    if len(value.shape) <= boundary.dim or value.shape[boundary.dim] % (degree * boundary.parts):
        return REPLICATE
    return boundary
