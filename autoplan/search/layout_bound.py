"""What the units of a model take at least on a tensor-parallel axis, changes of layout counted.

Ops one by one, each in its cheapest way, leave those changes out, which are up to half of it. Two bounds know them:

    of what is the same whatever ep    the layouts of all ops but those that run with the experts, solved once for a
                                       micro-batch and tp: so much more than these ops one by one take all
    of all                             the layouts themselves, for each ep
"""

from __future__ import annotations

from collections.abc import Collection, Hashable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from autoplan.cost.unit import StrategiesOf
from autoplan.search.layout_elimination import least_s
from autoplan.search.layout_problem import TIE_BREAK_S, LayoutsOf, layout_problem, problem_of
from autoplan.search.solved_layouts import Tied, boundaries, tied_kinds, tied_together

if TYPE_CHECKING:
    from autoplan.graph.ir import Block, ModelGraph
    from autoplan.graph.layout import Layout
    from autoplan.hardware import Cluster
    from autoplan.search.graphs import Graphs

__all__ = ["LayoutBound"]

_Key = tuple[int, int, int]
"""Micro-batch, tp and ep."""


class LayoutBound:
    """What is known of one model on one cluster, and more whenever it is asked for.

    Args:
        chain: the model at any micro-batch size.
        shares: among how many ranks experts may be shared out.
        known: what was found of layouts of blocks on this cluster before, as for ``layout_choices``; more is added.
    """

    def __init__(
        self,
        graphs: Graphs,
        chain: ModelGraph,
        shares: Sequence[int],
        cluster: Cluster,
        ways: tuple[StrategiesOf, LayoutsOf],
        known: dict[Hashable, Any],
    ) -> None:
        from autoplan.graph.expert_cut import away

        self._graphs, self._cluster, self._ways, self._known = graphs, cluster, ways, known
        self._away = {kind: away(block, shares) for kind, block in chain.kinds.items()}
        self._found: dict[Hashable, float] = known.setdefault(("together", tuple(shares)), {})

    def total_s(self, key: _Key, alone_s: float) -> float:
        """Seconds of both passes of all units, as far as it is known; ``alone_s``: of their ops one by one."""
        return max(alone_s + self._found.get(key[:2], 0.0), self.whole_s(key))

    def whole_s(self, key: _Key) -> float:
        """The same by the bound of all; 0 before that is known."""
        return self._found.get(key, 0.0)

    def learn(self, key: _Key) -> Iterator[None]:
        """Come to know more and more; nothing of a micro-batch whose graph is not at hand."""
        micro_batch, degree, ep = key
        graph = self._graphs.at_hand(micro_batch)
        if graph is None:
            return
        if key[:2] not in self._found:
            self._found[key[:2]] = self._more_s(graph, degree)
        yield
        if key not in self._found:
            self._found[key] = self._least_s(self._graphs.sharing_experts(graph, ep), degree)
        yield

    def _least_s(self, graph: ModelGraph, degree: int) -> float:
        """Seconds that both passes of all units compute and wait at least, whatever their layouts."""
        return self._sum(graph, degree, {}, alone=False)

    def _more_s(self, graph: ModelGraph, degree: int) -> float:
        """Seconds by which both passes of all units take longer at least than their ops one by one, for what is the same
        whatever ep."""
        return self._sum(graph, degree, self._away, alone=True)

    def _sum(
        self, graph: ModelGraph, degree: int, without: Mapping[str, Collection[str]], alone: bool
    ) -> float:
        """Of all units, with the best of the layouts that may pass between them; less what ops take ``alone``."""
        tied, found = tied_kinds(graph), []
        for boundary in boundaries(graph, degree):
            total_s = 0.0
            for blocks in tied_together(graph, tied):
                gone = tuple(name for block in blocks for name in sorted(without.get(block.kind, ())))
                least_s, alone_s = self._of_blocks(blocks, tied, boundary, degree, gone)
                times = min(graph.count(block.kind) for block in blocks)
                total_s += times * max(least_s - alone * alone_s - _tie_break_s(blocks), 0.0)
            found.append(total_s)
        return min(found)

    def _of_blocks(
        self, blocks: Sequence[Block], tied: Tied, boundary: Layout, degree: int, gone: tuple[str, ...]
    ) -> tuple[float, float]:
        """What ``blocks`` but ``gone`` take at least, and what their ops take one by one."""
        key = "least", tuple(map(id, blocks)), boundary, degree, gone
        if key not in self._known:
            asked = boundary, degree, self._cluster, *self._ways, TIE_BREAK_S
            problem = layout_problem(blocks, tied, *asked, self._known)
            if gone:
                nodes = enumerate(problem.nodes)
                problem = problem_of(problem, [i for i, node in nodes if node.name not in gone])
            # with the blocks, so that their ids stay theirs
            self._known[key] = least_s(problem, self._known), problem.alone_s, blocks
        return self._known[key][:2]


def _tie_break_s(blocks: Collection[Block]) -> float:
    """More than any layouts are charged for what they keep: no rank keeps more of the blocks' values."""
    kept = sum(
        block.saved_bytes + sum(block.values[name].nbytes for name in block.parameters) for block in blocks
    )
    return TIE_BREAK_S * kept
