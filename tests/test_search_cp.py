"""Context parallelism in the search: what it returns is priced as said, never below its bounds, and can be run."""

from __future__ import annotations

import functools

import pytest
from frontiers import below
from search_cases import CLUSTER, graphs_of, job_of, space_of

from autoplan.cost import price
from autoplan.errors import PlanError
from autoplan.graph.cut import cut_graph
from autoplan.graph.layout import shard
from autoplan.plan import validate_plan
from autoplan.search import search
from autoplan.search.pins import Pins

JOB = job_of(4)
graph_at = graphs_of("gpt")
space = functools.partial(space_of, "gpt", JOB)


@pytest.mark.parametrize("pin", [{"cp": 2}, {"cp": 4, "tp": 2}, {"cp": 2, "pp": 2, "zero": 1, "fsdp": 1}])
def test_a_plan_that_cuts_sequences_is_priced_as_said(pin: dict[str, int]) -> None:
    result = search(graph_at, JOB, CLUSTER, pin=pin)
    assert result.plan is not None
    assert result.estimate is not None
    plan = result.plan
    validate_plan(plan)
    assert {name: getattr(plan, name) for name in pin} == pin
    assert plan.cp_boundary == "S(1)"
    again = price(graph_at(plan.micro_batch), plan, JOB, CLUSTER)
    assert again == result.estimate
    assert sum(again.parts.values()) == pytest.approx(again.step_time_s)
    assert again.parts["cp_comm"] > 0


def test_no_layouts_are_below_the_bounds() -> None:
    """Of each unit, and of the step."""
    looked = space(Pins(cp=2, pp=2, micro_batch=1))
    seen = 0
    for degrees in looked.candidates:
        optimistic = looked._optimists[0].costs(degrees.micro_batch, degrees.tp, degrees.cp)
        for choice in looked.choices(degrees):
            for kind, cost in choice.costs.items():
                least = optimistic[kind]
                assert least.times.forward_s <= cost.times.forward_s * (1 + 1e-9)
                assert least.times.backward_s <= cost.times.backward_s * (1 + 1e-9)
                assert least.saved_bytes <= cost.saved_bytes
                for kept, seconds in cost.least_again:
                    assert below(least.least_again, kept) <= seconds + 1e-12
                assert least.parameters <= cost.parameters
            staging = looked.solve(degrees, choice)
            assert staging is not None
            found = looked.candidate(degrees, choice, staging.stages)
            assert looked.first_bound_s(degrees) <= found.estimate.step_time_s * (1 + 1e-9)
            assert looked.choice_bound_s(degrees, choice) <= found.estimate.step_time_s * (1 + 1e-9)
            seen += 1
    assert seen > 5


def test_attention_is_cut_by_rows_in_a_ring_and_by_heads() -> None:
    looked = space(Pins(cp=4, tp=1, pp=1, dp=1, fsdp=2, micro_batch=2))
    ways = [choice.cp_layouts["PlainBlock_0"] for choice in looked.choices(looked.candidates[0])]
    attention = [way["scaled_dot_product_attention"] for way in ways]
    assert attention == ["cut q", "ring q", "cut d1"]
    orders = [choice.cp_order for choice in looked.choices(looked.candidates[0])]
    assert orders == ["zigzag", "zigzag", "plain"]
    kept = {name for way in ways for name, strategy in way.items() if strategy in ("R", "R*")}
    assert not kept  # every op of a layer is shared


def test_a_cut_block_does_a_rank_s_share_of_the_work() -> None:
    graph = graph_at(2)
    (choice, *_) = space(Pins(cp=4, tp=1)).choices(space(Pins(cp=4, tp=1, micro_batch=2)).candidates[0])
    local = cut_graph(graph, choice.cp_layouts, shard(1), 4)
    for kind, block in graph.kinds.items():
        assert local.kinds[kind].flops_forward * 4 == block.flops_forward
        assert local.kinds[kind].parameter_count == block.parameter_count


@pytest.mark.parametrize(
    ("pin", "message"), [({"cp": 3}, "a divisor of the 8 ranks"), ({"cp": 8, "tp": 2}, "got 16")]
)
def test_a_degree_that_cannot_be_is_refused(pin: dict[str, int], message: str) -> None:
    with pytest.raises(PlanError, match=message):
        search(graph_at, JOB, CLUSTER, pin=pin)
