"""The layout program against brute force, and against the price of what it chose."""

from __future__ import annotations

import itertools
from collections.abc import Hashable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_cost_toys import toy_cluster, toy_graph, toy_layer, toy_layouts, toy_strategies

from autoplan.cost.unit import unit_cost
from autoplan.graph.layout import PARTIAL, REPLICATE, Layout, shard
from autoplan.search import layout_elimination
from autoplan.search.layout_choice import layout_choices
from autoplan.search.layout_elimination import eliminate, least_s, nearly, price_s
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


@settings(max_examples=60, deadline=None)
@given(problems())
def test_equals_brute_force(problem: LayoutProblem) -> None:
    every = itertools.product(*(range(len(node.options)) for node in problem.nodes))
    best = min(price_s(problem, taken) for taken in every)
    assert price_s(problem, solve_layouts(problem)) == pytest.approx(best, abs=1e-12)


@settings(max_examples=100, deadline=None)
@given(problems(), st.sampled_from([(4096, 1 << 22), (1, 1 << 22), (4096, 60), (1, 60)]))
def test_elimination_equals_the_program(problem: LayoutProblem, sizes: tuple[int, int]) -> None:
    """Whether values of several readers are tables, variables, or relaxed because tables would be too large."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(layout_elimination, "_JOINED", sizes[0])
        patch.setattr(layout_elimination, "_ENTRIES", (sizes[1],))
        patch.setattr(layout_elimination, "_SMALL", 30)
        known: dict[Hashable, Any] = {}
        taken, near = eliminate(problem), nearly(problem, known)
        assert nearly(problem, known) == near
        bound_s = least_s(problem, known)
    best_s = price_s(problem, solve_layouts(problem))
    assert bound_s <= best_s * (1 + 1e-9) + 1e-12
    if near is not None:
        assert near[1] <= 3e-3
        assert price_s(problem, near[0]) * (1 - near[1]) <= best_s * (1 + 1e-9) + 1e-12
    if taken is None:  # too large, or no proof: the program answers then
        assert sizes[1] == 60
        return
    assert price_s(problem, taken) == pytest.approx(best_s, rel=1e-4, abs=1e-12)


@pytest.mark.parametrize("boundary", [REPLICATE, shard(1)])
@pytest.mark.parametrize("degree", [2, 4])
def test_its_price_is_the_cost_of_the_plan(boundary: Layout, degree: int) -> None:
    block, cluster = toy_layer(1, 2048, 4096), toy_cluster()
    problem = layout_problem([block], (), boundary, degree, cluster, toy_strategies, toy_layouts)
    taken = solve_layouts(problem)
    names = {node.name: node.options[t].name for node, t in zip(problem.nodes, taken, strict=True)}
    cost = unit_cost(block, names, boundary, degree, cluster, toy_strategies)
    assert cost.times.total_s == pytest.approx(price_s(problem, taken), rel=1e-3)


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
