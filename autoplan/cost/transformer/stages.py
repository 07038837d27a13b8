"""How layers lie on pipeline stages, and what the first, the middle and the last stage work."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from autoplan.cost.transformer.configuration import Configuration
from autoplan.cost.transformer.shape import Transformer

__all__ = ["StageLayers", "stage_layers"]


@dataclass(frozen=True, slots=True)
class StageLayers:
    """Layers of the first, the fullest middle, and the last stage; of them, dense ones without experts."""

    first: Any
    middle: Any
    last: Any
    first_dense: Any
    middle_dense: Any
    last_dense: Any


def stage_layers(shape: Transformer, c: Configuration) -> StageLayers:
    """Even where pp·vpp divides the layers.

    Where it divides them counted with the embedding and the loss, the first and the last stage have one
    layer less (Megatron's and NeMo's account for these two); otherwise some stage in the middle has one
    more than the ends.
    """
    layers, pp = np.asarray(shape.layers), np.asarray(c.pp)
    chunks = pp * np.asarray(c.vpp)
    counted = (layers % chunks != 0) & ((layers + 2) % chunks == 0) & (pp > 1)
    middle = np.where(counted, (layers + 2) // pp, -(-layers // pp))
    ends = np.where(pp > 2, (layers - middle * (pp - 2)) / 2, layers / pp)
    ends = np.where(counted, middle - 1, np.maximum(ends, np.minimum(layers // pp, middle)))
    first = np.where(pp == 1, layers, np.where(pp == 2, -(-layers // 2), ends))
    last = np.where(pp == 1, layers, np.where(pp == 2, layers // 2, ends))
    dense = np.asarray(shape.dense_layers) if shape.moe else layers
    first_dense = np.minimum(dense, first)
    middle_dense = np.minimum(np.maximum(dense - first, 0), middle) if not shape.moe else 0 * middle
    return StageLayers(
        first=first,
        middle=middle,
        last=last,
        first_dense=first_dense,
        middle_dense=middle if not shape.moe else middle_dense,
        last_dense=last if not shape.moe else np.where(pp == 1, first_dense, 0),
    )
