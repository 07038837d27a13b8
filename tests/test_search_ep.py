"""Expert parallelism in the search: what it returns is priced as said, never below its bounds, and can be run."""

from __future__ import annotations

import functools
import math
from dataclasses import replace

import pytest
from equality import make, make_batch
from frontiers import below
from search_cases import CLUSTER, graphs_of, job_of, space_of

from autoplan.cost import price
from autoplan.cost.degrees import Degrees
from autoplan.errors import PlanError
from autoplan.graph.expert_cut import cut_experts, shares_experts
from autoplan.graph.ir import ModelGraph
from autoplan.graph.routing import Routing
from autoplan.graph.trace import trace
from autoplan.plan import Plan, Precision, validate_plan
from autoplan.search import search
from autoplan.search.pins import Pins

JOB = job_of(8)
graph_at = graphs_of("moe")
space = functools.partial(space_of, "moe", JOB)


@pytest.mark.parametrize(
    "pin",
    [
        {"ep": 2, "tp": 1},
        {"ep": 4, "fsdp": 4, "zero": 3, "tp": 1},
        {"ep": 4, "fsdp": 2, "tp": 1},
        pytest.param({"ep": 2, "tp": 2, "pp": 2}, marks=pytest.mark.slow),
    ],
)
def test_a_plan_that_shares_experts_is_priced_as_said(pin: dict[str, int]) -> None:
    result = search(graph_at, JOB, CLUSTER, pin=pin)
    assert result.plan is not None
    assert result.estimate is not None
    plan = result.plan
    validate_plan(plan)
    assert {name: getattr(plan, name) for name in pin} == pin
    again = price(graph_at(plan.micro_batch), plan, JOB, CLUSTER)
    assert again == result.estimate
    assert sum(again.parts.values()) == pytest.approx(again.step_time_s)
    assert again.parts["ep_comm"] > 0


def test_no_plan_is_below_the_bounds() -> None:
    """Of each unit, and of the step; seen for every state sharding of experts on eight ranks."""
    looked = space(Pins(ep=2, micro_batch=1))
    seen = 0
    for degrees in looked.candidates:
        assert degrees.ep == 2
        optimistic = looked._optimists[0].costs(degrees.micro_batch, degrees.tp, degrees.cp, degrees.ep)
        first = max(
            looked.first_bound_s(degrees), *looked.joined_bounds_s(degrees), looked.mesh_bound_s(degrees)
        )
        for choice in looked.choices(degrees):
            for kind, cost in choice.costs.items():
                least = optimistic[kind]
                assert least.experts <= cost.experts
                assert least.stored(degrees) <= cost.stored(degrees)
                assert least.times.forward_s <= cost.times.forward_s * (1 + 1e-12)
                assert least.times.backward_s <= cost.times.backward_s * (1 + 1e-12)
                assert least.times.forward_comm_s <= cost.times.forward_comm_s * (1 + 1e-12)
                assert least.times.backward_comm_s <= cost.times.backward_comm_s * (1 + 1e-12)
                assert least.saved_bytes <= cost.saved_bytes * (1 + 1e-12)
                assert least.input_bytes <= cost.input_bytes
                for kept, seconds in cost.least_again:
                    assert below(least.least_again, kept) <= seconds + 1e-12
            staging = looked.solve(degrees, choice)
            assert staging is not None
            estimate = looked.candidate(degrees, choice, staging.stages).estimate
            assert max(first, staging.bound_s) <= estimate.step_time_s * (1 + 1e-9)
            seen += 1
    assert seen > 20


def test_the_search_offers_ep_for_models_with_experts_alone() -> None:
    offered = {degrees.ep for degrees in space(Pins()).candidates}
    assert offered == {1, 2, 4}
    assert not shares_experts(replace(graph_at(1), kinds={}), 2)
    with pytest.raises(PlanError, match="ep: got 8, expected a divisor of the number of experts"):
        space(Pins(ep=8))
    with pytest.raises(PlanError, match="ep: got 4, expected a divisor of dp"):
        space(Pins(ep=4, pp=4))


def _plan(**degrees: int) -> Plan:
    result = search(graph_at, JOB, CLUSTER, pin={"tp": 1, "micro_batch": 1, "recompute": "none", **degrees})
    assert result.plan is not None
    return result.plan


def test_experts_take_their_share_of_memory() -> None:
    """Without sharding, ep ranks hold an ep-th of each expert's state; with it, all data ranks hold equal parts."""
    experts = 3 * 4 * 32 * 48 * 2  # of both layers
    whole, shared = (price(graph_at(1), _plan(dp=8, ep=ep), JOB, CLUSTER).stages[0].memory for ep in (1, 4))
    assert whole.optimizer - shared.optimizer == pytest.approx(experts * 3 / 4 * 8)
    assert whole.parameters - shared.parameters == pytest.approx(experts * 3 / 4 * 4)
    one, other = (
        price(graph_at(1), _plan(fsdp=8, zero=3, ep=ep), JOB, CLUSTER).stages[0].memory for ep in (1, 4)
    )
    assert one.optimizer == pytest.approx(other.optimizer)
    assert one.gathered > other.gathered


def test_the_busiest_rank_sets_the_pace() -> None:
    def uneven(micro_batch: int) -> ModelGraph:
        model, loss = make("moe", "fp32")
        routing = Routing(imbalance=2.0)
        return trace(model, make_batch("moe", micro_batch, 0), loss, Precision.FP32, routing=routing)

    plan = _plan(dp=8, ep=4)
    even, busy = (price(graph(1), plan, JOB, CLUSTER) for graph in (graph_at, uneven))
    assert busy.step_time_s > even.step_time_s
    rows = [
        next(
            op.gemm.m for op in cut_experts(graph(1), 4).kinds["DecoderLayer_0"].ops if op.routing and op.gemm
        )
        for graph in (graph_at, uneven)
    ]
    assert rows[1] == 2 * rows[0]


def test_state_of_experts_lies_on_fewer_ranks() -> None:
    degrees = Degrees(pp=1, dp=2, fsdp=4, cp=1, tp=2, zero=3, micro_batch=1, num_micro_batches=1, ep=2)
    assert (degrees.expert_shard_ranks, degrees.expert_replicas, degrees.expert_stride) == (2, 2, 4)
    wide = replace(degrees, fsdp=2, dp=4, ep=4)
    assert (wide.expert_shard_ranks, wide.expert_replicas, wide.expert_spread) == (1, 2, 2.0)
    assert math.prod((wide.ep, wide.expert_shard_ranks, wide.expert_replicas)) == wide.data_ranks
