"""What a unit costs at best, whatever its layouts: each op takes its cheapest strategy, nothing is
converted, and parameters are cut where some op that reads them could use a piece.

A micro-batch size whose graph is not at hand is taken to cost nothing.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from autoplan.cost.compute import op_times, weight_half_s
from autoplan.cost.keep import hull
from autoplan.cost.times import NO_TIME, Times
from autoplan.cost.unit import StrategiesOf, UnitCost, saved_bytes
from autoplan.graph.ir import Block, Op
from autoplan.graph.layout import REPLICATE
from autoplan.graph.strategy import Strategy
from autoplan.search.graphs import Graphs
from autoplan.search.keep_choice import least_frontier
from autoplan.search.least_kept import least_storages, lightened

if TYPE_CHECKING:
    from autoplan.cost.storages import Storages
    from autoplan.graph.ir import ModelGraph
    from autoplan.hardware import Cluster

__all__ = ["Optimist", "least_cost", "usable_pieces"]


class Optimist:
    """Optimistic unit costs of one model on one cluster; ``chain`` is the model at any micro-batch size, ``known``
    what was worked out before."""

    def __init__(
        self,
        graphs: Graphs,
        chain: ModelGraph,
        cluster: Cluster,
        strategies_of: StrategiesOf,
        known: dict[tuple[int, int, int, int], dict[str, UnitCost]] | None = None,
    ) -> None:
        self._graphs, self._chain, self._cluster = graphs, chain, cluster
        self._strategies_of = strategies_of
        self._known = {} if known is None else known
        self._kept: dict[
            tuple[int, int], tuple[Block, Storages]
        ] = {}  # with a block, so that its id stays its own

    def costs(self, micro_batch: int, degree: int, cp: int = 1, ep: int = 1) -> dict[str, UnitCost]:
        """The cost of a unit of each kind under tp ``degree``, ``cp`` and ``ep``."""
        key = micro_batch, degree, cp, ep
        if key not in self._known:
            graph = self._graphs.at_hand(micro_batch)
            if graph is None:
                chain = self._graphs.sharing_experts(self._chain, ep)
                return {kind: _free(block, degree) for kind, block in chain.kinds.items()}
            if ep == 1:
                units = {kind: self._unit(block, degree, cp) for kind, block in graph.kinds.items()}
            else:
                whole = self.costs(micro_batch, degree, cp)
                like = self._graphs.sharing_experts(self._chain, ep).kinds
                units = {
                    kind: self._shared_out(block, whole[kind], like[kind], degree, ep)
                    if like[kind].expert_dims
                    else whole[kind]
                    for kind, block in graph.kinds.items()
                }
            self._known[key] = units
        return self._known[key]

    def _shared_out(self, block: Block, whole: UnitCost, like: Block, degree: int, ep: int) -> UnitCost:
        """The cost of ``block``, which is ``whole``, once ``ep`` ranks share out its experts.

        ``like`` is the block so cut, at any micro-batch size. What runs at home is as before, and what runs away is
        at least so; products are of fewer experts with more rows each, and rows travel.
        """
        from autoplan.graph.expert_cut import busiest_op

        times, lighter = whole.times, 0.0
        made = set(like.expert_dims)
        faster: dict[str, float] = {}  # seconds of ops that may run again
        smaller: set[str] = set()  # values
        for op in block.ops:
            own = op.inputs and made.issuperset(op.inputs)
            if own:
                made.add(op.output)
                smaller.add(op.output)
                faster[op.name] = 0.0
            if own or (op.routing is not None and op.gemm is not None):
                times -= self._least_times(block, op, degree)
            if op.routing is not None and op.gemm is not None:
                load = op.routing.load(op.gemm.batch, ep)
                busiest = self._least_times(block, op, degree, busiest_op(block, op, load, ep))
                times += busiest
                smaller.add(op.inputs[2])
                faster[op.name] = busiest.forward_s
                lighter += sum(s.nbytes for s in op.saved if s.value == op.inputs[2])
        for op in like.ops:
            value = block.values.get(op.inputs[0]) if op.inputs else None
            if value is not None and op.target in ("autoplan.there", "autoplan.back"):
                sent_s = self._cluster.collective_time_s(
                    "all_to_all", value.nbytes / degree, ep, stride=degree
                )
                times += Times(0.0, 0.0, sent_s, sent_s if value.requires_grad else 0.0)
        sizes = {name: n / ep if name in like.expert_dims else n for name, n in whole.sizes.items()}
        trained = [name for name in sizes if block.values[name].requires_grad]
        return replace(
            whole,
            times=times,
            saved_bytes=whole.saved_bytes - lighter,
            frontier=least_frontier(lightened(self._storages(block, degree), smaller, faster)),
            sizes=sizes,
            parameters=sum(sizes.values()),
            trainable=sum(sizes[name] for name in trained),
            experts=sum(sizes[name] for name in like.expert_dims),
            trainable_experts=sum(sizes[name] for name in trained if name in like.expert_dims),
        )

    def _least_times(self, block: Block, op: Op, degree: int, instead: Op | None = None) -> Times:
        """The least times of ``op``, or of what stands ``instead`` of it, in any way that ``op`` can run."""
        known = self._strategies(block, op, degree)
        ways = [op_times(block, instead or op, strategy, degree, self._cluster) for strategy in known]
        return Times(
            min(way.forward_s for way in ways),
            min(way.backward_s for way in ways),
            min(way.forward_comm_s for way in ways),
            min(way.backward_comm_s for way in ways),
        )

    def _strategies(self, block: Block, op: Op, degree: int) -> Sequence[Strategy]:
        if degree > 1:
            return self._strategies_of(block, op, degree)
        return (Strategy("R", (REPLICATE,) * len(op.inputs), REPLICATE, share=False),)

    def _unit(self, block: Block, degree: int, cp: int) -> UnitCost:
        pieces = usable_pieces(block, degree, self._strategies_of)
        times, saved, half_s = NO_TIME, 0.0, 0.0
        forward_s: dict[str, float] = {}
        for op in block.ops:
            known = self._strategies(block, op, degree)
            parts = _cp_parts(block, op, cp)
            if cp > 1:
                known = tuple(replace(strategy, internal=()) for strategy in known)
            ways = [
                op_times(block, part, strategy, degree, self._cluster) for part in parts for strategy in known
            ]
            backward_s = min(way.backward_s for way in ways)
            sent = min(way.forward_comm_s for way in ways), min(way.backward_comm_s for way in ways)
            times += Times(min(way.forward_s for way in ways), backward_s, *sent)
            # so much of the least backward may be missing from a first half
            late_s = max(weight_half_s(block, op, strategy, degree, self._cluster) for strategy in known)
            half_s += min(backward_s, late_s)
            forward_s[op.name] = min(way.forward_s for way in ways)
            for one in op.saved:
                if one.value in block.values and degree * cp > 1:  # a view moves without what it is a view of
                    one = replace(one, nbytes=min(one.nbytes, block.values[one.value].nbytes))
                part = replace(op, saved=(one,))
                saved += min(saved_bytes(part, strategy, degree) for strategy in known) / cp
        inputs = sum(block.values[name].nbytes for name in block.inputs if block.values[name].requires_grad)
        cost = _cost(block, times, saved, inputs / (degree * cp), dict.fromkeys(pieces, degree))
        strategies = {op.name: self._strategies(block, op, degree) for op in block.ops}
        found = least_storages(block, strategies, forward_s, degree, cp)
        if cp == 1:
            self._kept[id(block), degree] = block, found
        return replace(cost, weight_half_s=half_s, frontier=least_frontier(found))

    def _storages(self, block: Block, degree: int) -> Storages:
        """Those of ``block`` in any layouts, which it has all of."""
        key = id(block), degree
        if key not in self._kept:
            strategies = {op.name: self._strategies(block, op, degree) for op in block.ops}
            forward_s = {op.name: self._least_times(block, op, degree).forward_s for op in block.ops}
            self._kept[key] = block, least_storages(block, strategies, forward_s, degree, 1)
        return self._kept[key][1]


def _cp_parts(block: Block, op: Op, cp: int) -> list[Op]:
    """What one of ``cp`` ranks may do of ``op``, what it sends left out; nothing that a cut block holds is less.

    An op of which no product is known is only what it touches, as the product that stands for it follows from shapes.
    """
    if cp == 1:
        return [op]
    from autoplan.graph.axes import sequence_strategies
    from autoplan.graph.cut import cut_op

    kinds = {(s.share, s.gemm_axis, s.kernel): s for s in sequence_strategies(block, op, cp)}
    orders = (False, True) if op.causal else (False,)
    parts = [replace(cut_op(op, way, cp, zigzag), sends=()) for way in kinds.values() for zigzag in orders]
    return [part if op.gemm is not None else replace(part, flops_forward=0) for part in parts]


def least_cost(costs: Sequence[UnitCost]) -> UnitCost:
    """No figure of any of ``costs``, all of one unit, is below this one's; nor what its backward does first."""
    times = [cost.times for cost in costs]
    backward_s = min(t.backward_s for t in times)
    experts = min(cost.experts for cost in costs)
    trainable_experts = min(cost.trainable_experts for cost in costs)
    first_s = min(t.backward_s - cost.weight_half_s for t, cost in zip(times, costs, strict=True))
    return UnitCost(
        times=Times(
            min(t.forward_s for t in times),
            backward_s,
            min(t.forward_comm_s for t in times),
            min(t.backward_comm_s for t in times),
        ),
        saved_bytes=min(cost.saved_bytes for cost in costs),
        input_bytes=min(cost.input_bytes for cost in costs),
        workspace_bytes=min(cost.workspace_bytes for cost in costs),
        parameters=experts + min(cost.parameters - cost.experts for cost in costs),
        trainable=trainable_experts + min(cost.trainable - cost.trainable_experts for cost in costs),
        sizes={name: min(cost.sizes[name] for cost in costs) for name in costs[0].sizes},
        weight_half_s=backward_s - first_s,
        weight_half_bytes=min(cost.weight_half_bytes for cost in costs),
        frontier=hull([point for cost in costs for point in cost.least_again]),
        experts=experts,
        trainable_experts=trainable_experts,
    )


def usable_pieces(block: Block, degree: int, strategies_of: StrategiesOf) -> frozenset[str]:
    """The parameters of which some op that reads them can use one of ``degree`` pieces."""
    if degree == 1:
        return frozenset()
    return frozenset(
        name
        for op in block.ops
        if not block.parameters.keys().isdisjoint(op.inputs)
        for strategy in strategies_of(block, op, degree)
        for name, layout in zip(op.inputs, strategy.inputs, strict=True)
        if layout.is_shard and name in block.parameters
    )


def _free(block: Block, degree: int) -> UnitCost:
    return _cost(block, NO_TIME, 0.0, 0.0, dict.fromkeys(block.parameters, degree))


def _cost(block: Block, times: Times, saved: float, inputs: float, cuts: dict[str, int]) -> UnitCost:
    sizes = {name: math.prod(block.values[name].shape) / cuts.get(name, 1) for name in block.parameters}
    return UnitCost(
        times=times,
        saved_bytes=saved,
        input_bytes=inputs,
        workspace_bytes=0.0,
        parameters=sum(sizes.values()),
        trainable=sum(size for name, size in sizes.items() if block.values[name].requires_grad),
        sizes=sizes,
        experts=sum(sizes[name] for name in block.expert_dims),
        trainable_experts=sum(sizes[name] for name in block.expert_dims if block.values[name].requires_grad),
    )
