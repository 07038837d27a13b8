"""The layout program against brute force, and against the price of what it chose."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_cost_toys import toy_cluster, toy_graph, toy_layer, toy_layouts, toy_strategies

from autoplan.cost.unit import unit_cost
from autoplan.graph.layout import PARTIAL, REPLICATE, Layout, shard
from autoplan.search import layout_elimination
from autoplan.search.layout_choice import layout_choices
from autoplan.search.layout_elimination import eliminate
from autoplan.search.layout_ilp import solve_layouts
from autoplan.search.layout_problem import LayoutProblem, Node, Option, Port, layout_problem

LAYOUTS = (REPLICATE, PARTIAL, shard(0), shard(1))
PRICES = st.integers(0, 20).map(lambda price: price * 1e-5)


@st.composite
def problems(draw: st.DrawFn) -> LayoutProblem:
    """Up to five nodes in a random acyclic graph, each with up to three options."""
    nodes: list[Node] = []
    readers: dict[int, list[tuple[int, int]]] = {}
    for index in range(draw(st.integers(1, 5))):
        reads = draw(st.lists(st.integers(0, index - 1), max_size=2)) if index else []
        options = tuple(
            Option(
                str(o),
                draw(PRICES),
                draw(st.sampled_from(LAYOUTS)),
                tuple(draw(st.sampled_from(LAYOUTS)) for _ in reads),
            )
            for o in range(draw(st.integers(1, 3)))
        )
        for position, maker in enumerate(reads):
            readers.setdefault(maker, []).append((index, position))
        nodes.append(Node("block", str(index), tuple(map(str, reads)), str(index), options))
    prices = {(a, b): 0.0 if a == b else draw(PRICES) for a in LAYOUTS for b in LAYOUTS}
    ports = [
        Port(index, tuple(readers.get(index, ())), draw(st.sampled_from((None, REPLICATE))), prices)
        for index in range(len(nodes))
    ]
    return LayoutProblem(tuple(nodes), tuple(ports))


def price_of(problem: LayoutProblem, taken: tuple[int, ...] | list[int]) -> float:
    """What a choice of options costs, straight from the definition."""
    options = [node.options[t] for node, t in zip(problem.nodes, taken, strict=True)]
    total = sum(option.price_s for option in options)
    for port in problem.ports:
        made = port.maker if isinstance(port.maker, Layout) else options[port.maker].gives
        wanted = {options[node].wants[position] for node, position in port.readers}
        wanted |= {port.leaves} if port.leaves is not None else set()
        total += sum(port.price_s[made, layout] for layout in wanted if layout != made)
    return total


@settings(max_examples=60, deadline=None)
@given(problems())
def test_equals_brute_force(problem: LayoutProblem) -> None:
    every = itertools.product(*(range(len(node.options)) for node in problem.nodes))
    best = min(price_of(problem, taken) for taken in every)
    assert price_of(problem, solve_layouts(problem)) == pytest.approx(best, abs=1e-12)
    joined = layout_elimination._JOINED
    try:
        for layout_elimination._JOINED in (joined, 1):  # with 1, values of several readers become variables
            taken = eliminate(problem)
            assert taken is not None and price_of(problem, taken) == pytest.approx(best, abs=1e-12)
    finally:
        layout_elimination._JOINED = joined


@pytest.mark.parametrize("boundary", [REPLICATE, shard(1)])
@pytest.mark.parametrize("degree", [2, 4])
def test_its_price_is_the_cost_of_the_plan(boundary: Layout, degree: int) -> None:
    block, cluster = toy_layer(1, 2048, 4096), toy_cluster()
    problem = layout_problem([block], (), boundary, degree, cluster, toy_strategies, toy_layouts)
    taken = solve_layouts(problem)
    names = {node.name: node.options[t].name for node, t in zip(problem.nodes, taken, strict=True)}
    cost = unit_cost(block, names, boundary, degree, cluster, toy_strategies)
    assert cost.times.total_s == pytest.approx(price_of(problem, taken), rel=1e-3)


def test_finds_megatron() -> None:
    """Column then row parallel, with the sequence cut between them: Korthikanti et al., 2022, figure 5."""
    graph, cluster = toy_graph(1, seq=4096, hidden=4096), toy_cluster()
    choices = layout_choices(graph, 4, cluster, toy_strategies, toy_layouts)
    assert {str(choice.boundary) for choice in choices} == {"R", "S(1)"}
    cut = next(choice for choice in choices if str(choice.boundary) == "S(1)")
    layer = cut.layouts["layer"]
    assert (layer["up"], layer["down"], layer["norm"]) == ("cut o", "cut i", "cut d1")
    assert (layer["w_up"], layer["w_down"]) == ("S(0)", "S(1)")


def test_tied_parameters_share_a_layout() -> None:
    for choice in layout_choices(toy_graph(1, tied=True), 4, toy_cluster(), toy_strategies, toy_layouts):
        assert choice.layouts["prologue"]["w_table"] == choice.layouts["epilogue"]["w_logits"]


def test_one_rank_needs_no_layouts() -> None:
    (choice,) = layout_choices(toy_graph(), 1, toy_cluster(), toy_strategies, toy_layouts)
    assert choice.layouts == {}
