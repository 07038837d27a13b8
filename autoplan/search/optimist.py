"""What a unit costs at best, whatever its layouts.

Each op takes the cheapest of its cuts and nothing travels on the tp axis; parameters and activations
are cut in tp parts. A micro-batch size whose graph is not at hand is taken to cost nothing.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING, Any

import numpy as np

from autoplan.cost.compute import product_of
from autoplan.cost.times import NO_TIME, Times
from autoplan.cost.unit import UnitCost
from autoplan.graph.ir import Block, Op, OpKind
from autoplan.search.graphs import Graphs

if TYPE_CHECKING:
    from autoplan.graph.ir import ModelGraph
    from autoplan.hardware import Cluster

__all__ = ["Optimist"]

_AXES = ("none", "batch", "m", "n", "k")


@dataclass(frozen=True, slots=True)
class _Sizes:
    """The sizes of a block that decide its cost, as arrays; products in groups priced by one curve."""

    groups: tuple[tuple[tuple[OpKind, str, bool], int], ...]
    products: np.ndarray  # (gemm and attention ops, 4)
    backward: np.ndarray  # how many products, or passes, each needs backward
    nbytes: np.ndarray  # (memory ops, 2)
    kept: np.ndarray  # saved bytes, input bytes

    @classmethod
    def of(cls, block: Block) -> _Sizes:
        def curve(op: Op) -> tuple[OpKind, str, bool]:
            kind = OpKind.ATTENTION if op.kind is OpKind.ATTENTION else OpKind.GEMM
            return kind, block.values[op.output].dtype, op.causal

        products = sorted((op for op in block.ops if product_of(block, op)), key=curve)
        memory = [op for op in block.ops if not product_of(block, op)]
        inputs = sum(block.values[name].nbytes for name in block.inputs if block.values[name].requires_grad)
        return cls(
            groups=tuple((key, len(list(group))) for key, group in groupby(products, key=curve)),
            products=np.array([_dims(block, op) for op in products], dtype=float).reshape(-1, 4),
            backward=np.array(
                [round(op.flops_backward / op.flops_forward) if op.flops_forward else 0 for op in products]
            ),
            nbytes=np.array([(op.bytes_forward, op.bytes_backward) for op in memory], dtype=float).reshape(
                -1, 2
            ),
            kept=np.array([block.saved_bytes, inputs], dtype=float),
        )


def _dims(block: Block, op: Op) -> tuple[int, int, int, int]:
    gemm = product_of(block, op)
    assert gemm is not None
    return gemm.batch, gemm.m, gemm.n, gemm.k


class Optimist:
    """Optimistic unit costs of one model on one cluster; ``chain`` is the model at any micro-batch size."""

    def __init__(self, graphs: Graphs, chain: ModelGraph, cluster: Cluster) -> None:
        self._graphs, self._chain, self._cluster = graphs, chain, cluster
        self._known: dict[tuple[int, int], dict[str, UnitCost]] = {}

    def costs(self, micro_batch: int, degree: int) -> dict[str, UnitCost]:
        """The cost of a unit of each kind."""
        key = micro_batch, degree
        if key not in self._known:
            graph = self._graphs.at_hand(micro_batch)
            self._known[key] = {
                kind: self._unit(_Sizes.of(graph.kinds[kind]) if graph else None, block, degree)
                for kind, block in self._chain.kinds.items()
            }
        return self._known[key]

    def _unit(self, sizes: _Sizes | None, block: Block, degree: int) -> UnitCost:
        elements = {name: math.prod(block.values[name].shape) / degree for name in block.parameters}
        trainable = sum(size for name, size in elements.items() if block.values[name].requires_grad)
        times, saved, inputs = NO_TIME, 0.0, 0.0
        if sizes is not None:
            saved, inputs = sizes.kept / degree
            times = self._memory(sizes, degree) + self._products(sizes, degree)
        return UnitCost(times, saved, inputs, 0.0, sum(elements.values()), trainable, elements)

    def _memory(self, sizes: _Sizes, degree: int) -> Times:
        time_s = self._cluster.device.memory_time_s
        touched = [column[column > 0] / degree for column in sizes.nbytes.T]
        forward, backward = (_total(time_s(column)) if column.size else 0.0 for column in touched)
        return Times(forward, backward)

    def _products(self, sizes: _Sizes, degree: int) -> Times:
        device, start, total = self._cluster.device, 0, NO_TIME
        for (kind, dtype, causal), count in sizes.groups:
            part = slice(start, start + count)
            start += count
            forward, backward = np.inf, np.inf
            for axis in _AXES if degree > 1 else _AXES[:1]:
                b, m, n, k = _cut(sizes.products[part], axis, degree)
                if kind is OpKind.ATTENTION:
                    passes = np.minimum(sizes.backward[part], 1)
                    ahead = device.attention_time_s(b, m, n, k, dtype, causal)
                    back = passes * device.attention_time_s(b, m, n, k, dtype, causal, backward=True)
                else:
                    needed = sizes.backward[part]
                    ahead = device.gemm_time_s((b, m, n, k), dtype)
                    back = np.where(needed >= 1, device.gemm_time_s((b, m, k, n), dtype), 0.0)
                    back = back + np.where(needed >= 2, device.gemm_time_s((b, k, n, m), dtype), 0.0)
                forward, backward = np.minimum(forward, ahead), np.minimum(backward, back)
            total += Times(_total(forward), _total(backward))
        return total


def _cut(products: np.ndarray, axis: str, degree: int) -> Any:
    cut = products.T.copy()
    if axis != "none":
        row = _AXES.index(axis) - 1
        cut[row] = np.maximum(np.floor(cut[row] / degree), 1)
    return cut


def _total(seconds: Any) -> float:
    return float(np.sum(seconds))
