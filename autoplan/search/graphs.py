"""The model at every micro-batch size: two sizes are traced, the rest worked out from them."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import TYPE_CHECKING, Any

from autoplan.search.scaled_graph import scaled_graph

if TYPE_CHECKING:
    from autoplan.graph.ir import ModelGraph

__all__ = ["GraphAt", "Graphs"]

GraphAt = Callable[[int], "ModelGraph"]
"""From a micro-batch size to the model traced for it."""


class Graphs:
    """What ``graph_at`` says, or would say; given to ``search`` in its place, it makes later searches fast.

    ``kept`` is what searches worked out of the graphs, under keys that say what it depends on.
    """

    def __init__(self, graph_at: GraphAt) -> None:
        self._graph_at = graph_at
        self._traced: dict[int, ModelGraph] = {}
        self._scaled: dict[int, ModelGraph | None] = {}
        self._trusts = True
        self.kept: dict[Hashable, Any] = {}

    def trace(self, micro_batch: int) -> ModelGraph:
        """The model traced for ``micro_batch`` samples."""
        if micro_batch not in self._traced:
            self._traced[micro_batch] = self._graph_at(micro_batch)
        return self._traced[micro_batch]

    def at(self, micro_batch: int) -> ModelGraph:
        """The same, without a trace where two others tell it."""
        return self.at_hand(micro_batch) or self.trace(micro_batch)

    def at_hand(self, micro_batch: int) -> ModelGraph | None:
        """The model for ``micro_batch`` samples if that takes no further trace."""
        if micro_batch in self._traced:
            return self._traced[micro_batch]
        if not self._trusts or len(self._traced) < 2:
            return None
        if micro_batch not in self._scaled:
            low, high = sorted(self._traced)[:2]
            self._scaled[micro_batch] = scaled_graph(self._traced[low], self._traced[high], micro_batch)
        return self._scaled[micro_batch]

    def sharing_experts(self, graph: ModelGraph, ep: int) -> ModelGraph:
        """One of ``graphs``, or a graph like them, as ``cut_experts`` cuts it; once for all who ask."""
        if ep == 1:
            return graph
        key = "experts", id(graph), ep
        if key not in self.kept:
            from autoplan.graph.expert_cut import cut_experts

            self.kept[key] = graph, cut_experts(graph, ep)  # the graph too, so that its id stays its own
        return self.kept[key][1]

    def confirm(self, micro_batch: int) -> bool:
        """Trace what was only worked out. False if they differ: from then on, every size is traced."""
        supposed = self.at_hand(micro_batch)
        actual = self.trace(micro_batch)
        if supposed is None or (_content(supposed) == _content(actual)):
            return True
        self._trusts = False
        self.kept.clear()
        return False


def _content(graph: ModelGraph) -> object:
    blocks = {kind: (block.ops, block.values) for kind, block in graph.kinds.items()}
    return graph.fingerprint, graph.units, blocks
