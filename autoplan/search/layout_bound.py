"""What the units of a model take at least on a tensor-parallel axis, changes of layout counted.

Ops one by one, each in its cheapest way, leave those changes out, which are up to half of it. Two bounds know them:

    of what is the same whatever ep    the layouts of all ops but those that run with the experts, solved once for a
                                       micro-batch and tp: so much more than these ops one by one take all
    of all                             the layouts themselves, for each ep
"""

from __future__ import annotations

from collections.abc import Collection, Hashable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from autoplan.cost.degrees import Degrees
from autoplan.cost.times import Times
from autoplan.cost.unit import StrategiesOf, UnitCost
from autoplan.search.layout_elimination import least_s
from autoplan.search.layout_problem import TIE_BREAK_S, LayoutsOf, layout_problem, problem_of
from autoplan.search.solved_layouts import Tied, boundaries, tied_kinds, tied_together

if TYPE_CHECKING:
    from autoplan.graph.ir import Block, ModelGraph
    from autoplan.graph.layout import Layout
    from autoplan.hardware import Cluster
    from autoplan.search.graphs import Graphs

__all__ = ["LayoutBound"]

_Found = tuple[float, dict[str, float]]
"""Seconds of all units, and of one of each kind."""

_NOTHING: _Found = (0.0, {})


class LayoutBound:
    """What is known of one model, and more whenever it is asked for. Of layouts on the cp axis, and on clusters of several
    types of device, it never is.

    Args:
        chain: the model at any micro-batch size.
        shares: among how many ranks experts may be shared out.
        types: the clusters of one type of device each.
        known: what was found of layouts of blocks on this cluster before, as for ``layout_choices``; more is added.
    """

    def __init__(
        self,
        graphs: Graphs,
        chain: ModelGraph,
        shares: Sequence[int],
        types: Sequence[Cluster],
        ways: tuple[StrategiesOf, LayoutsOf],
        known: dict[Hashable, Any],
    ) -> None:
        from autoplan.graph.expert_cut import away

        self._graphs, self._types, self._ways, self._known = graphs, types, ways, known
        self._away = {kind: away(block, shares) for kind, block in chain.kinds.items()}
        self._found: dict[Hashable, _Found] = known.setdefault(("together", tuple(shares)), {})

        self._costs: dict[Hashable, dict[str, UnitCost]] = {}

    def level(self, degrees: Degrees) -> int:
        """How much is known: 0, 1 after the first bound, 2 after the second."""
        key = _key(degrees)
        return 2 if key in self._found else int(key[:2] in self._found) if self._tells(degrees) else 0

    def total_s(self, degrees: Degrees, alone_s: float) -> float:
        """Seconds of both passes of all units, as far as it is known; ``alone_s``: of their ops one by one."""
        if not self._tells(degrees):
            return alone_s
        key = _key(degrees)
        more_s, _ = self._found.get(key[:2], _NOTHING)
        whole_s, _ = self._found.get(key, _NOTHING)
        return max(alone_s + more_s, whole_s)

    def raised(
        self, degrees: Degrees, costs: Mapping[str, UnitCost], forward: bool
    ) -> Mapping[str, UnitCost]:
        """``costs`` of ops one by one, with what changes of layout take more at least as waiting of the ``forward`` pass, or
        of the backward pass.

        Whatever passes it is in truth, sums that count the other one more often than this one are no smaller for it. And
        it may be computing, of ops that spare themselves such changes, which hides traffic.
        """
        key = _key(degrees)
        asked = key, self.level(degrees), forward
        if asked not in self._costs:
            _, more = self._found.get(key[:2], _NOTHING)
            _, whole = self._found.get(key, _NOTHING)
            self._costs[asked] = {}
            for kind, cost in costs.items():
                seconds = max(more.get(kind, 0.0), whole.get(kind, 0.0) - cost.times.total_s, 0.0)
                waits = Times(forward_comm_s=seconds) if forward else Times(backward_comm_s=seconds)
                self._costs[asked][kind] = replace(cost, times=cost.times + waits)
        return self._costs[asked]

    def learn(self, degrees: Degrees) -> Iterator[None]:
        """Come to know more and more; nothing of a micro-batch whose graph is not at hand."""
        graph, key = self._graphs.at_hand(degrees.micro_batch), _key(degrees)
        if graph is None or not self._tells(degrees):
            return
        if key[:2] not in self._found:
            self._found[key[:2]] = self._sum(graph, degrees.tp, self._away, alone=True)
        yield
        if key not in self._found:
            graph = self._graphs.sharing_experts(graph, degrees.ep)
            self._found[key] = self._sum(graph, degrees.tp, {}, alone=False)
        yield

    def _tells(self, degrees: Degrees) -> bool:
        return degrees.tp > 1 and degrees.cp == 1 == len(self._types)

    def _sum(
        self, graph: ModelGraph, degree: int, without: Mapping[str, Collection[str]], alone: bool
    ) -> _Found:
        """Seconds of all units but what they do ``without``, with the best of the layouts that may pass between them,
        less what their ops take ``alone``; and by kind those of one unit, of kinds that share no parameter."""
        tied, totals = tied_kinds(graph), []
        of_kind: dict[str, float] = {}
        for boundary in boundaries(graph, degree):
            total_s = 0.0
            for blocks in tied_together(graph, tied):
                gone = tuple(name for block in blocks for name in sorted(without.get(block.kind, ())))
                least_s, alone_s = self._of_blocks(blocks, tied, boundary, degree, gone)
                times = min(graph.count(block.kind) for block in blocks)
                one_s = max(least_s - alone * alone_s - _tie_break_s(blocks), 0.0)
                total_s += times * one_s
                if len(blocks) == 1:
                    of_kind[blocks[0].kind] = min(one_s, of_kind.get(blocks[0].kind, one_s))
            totals.append(total_s)
        return min(totals), of_kind

    def _of_blocks(
        self, blocks: Sequence[Block], tied: Tied, boundary: Layout, degree: int, gone: tuple[str, ...]
    ) -> tuple[float, float]:
        """What ``blocks`` but ``gone`` take at least, and what their ops take one by one."""
        key = "least", tuple(map(id, blocks)), boundary, degree, gone
        if key not in self._known:
            asked = boundary, degree, self._types[0], *self._ways, TIE_BREAK_S
            problem = layout_problem(blocks, tied, *asked, self._known)
            if gone:
                nodes = enumerate(problem.nodes)
                problem = problem_of(problem, [i for i, node in nodes if node.name not in gone])
            # with the blocks, so that their ids stay theirs
            self._known[key] = least_s(problem, self._known), problem.alone_s, blocks
        return self._known[key][:2]


def _key(degrees: Degrees) -> tuple[int, int, int]:
    return degrees.micro_batch, degrees.tp, degrees.ep


def _tie_break_s(blocks: Collection[Block]) -> float:
    """More than any layouts are charged for what they keep: no rank keeps more of the blocks' values."""
    kept = sum(
        block.saved_bytes + sum(block.values[name].nbytes for name in block.parameters) for block in blocks
    )
    return TIE_BREAK_S * kept
