"""Graphs worked out from two traces against graphs traced, and a real model searched end to end."""

from __future__ import annotations

import functools
from dataclasses import replace

import pytest

from autoplan.cost import price
from autoplan.graph.ir import ModelGraph
from autoplan.hardware import Cluster
from autoplan.plan import Job, Precision
from autoplan.search import Status, search
from autoplan.search.graphs import Graphs
from autoplan.search.scaled_graph import scaled_graph


@functools.cache
def gpt2(micro_batch: int) -> ModelGraph:
    """GPT-2 at 256 tokens, traced in bf16."""
    import torch

    from autoplan.graph.sources import load_source
    from autoplan.graph.trace import trace

    source = load_source("gpt2", 256)
    with torch.device("meta"):
        model = source.build()
    return trace(model, source.example_batch(micro_batch), source.loss, Precision.BF16, source.name)


def test_scaled_equals_traced() -> None:
    from autoplan.graph.axes import strategies

    scaled, traced = scaled_graph(gpt2(1), gpt2(2), 8), gpt2(8)
    assert scaled is not None
    for kind, block in traced.kinds.items():
        assert scaled.kinds[kind].ops == block.ops
        assert scaled.kinds[kind].values == block.values
        for mine, theirs in zip(scaled.kinds[kind].ops, block.ops, strict=True):
            assert strategies(scaled.kinds[kind], mine, 4) == strategies(block, theirs, 4)


def test_two_sizes_are_traced_and_the_winner_confirmed() -> None:
    sizes: list[int] = []

    def graph_at(micro_batch: int) -> ModelGraph:
        sizes.append(micro_batch)
        return gpt2(micro_batch)

    job, cluster = Job(global_batch=64, tokens_per_sample=256), Cluster.of("h100-sxm", nodes=1)
    result = search(graph_at, job, cluster)
    assert result.plan is not None and result.status in (Status.OPTIMAL, Status.WITHIN_GAP)
    assert sizes == list(dict.fromkeys((1, 2, result.plan.micro_batch)))
    assert price(gpt2(result.plan.micro_batch), result.plan, job, cluster) == result.estimate


def test_a_graph_that_does_not_scale_is_traced() -> None:
    """Where the third size disagrees, every size is traced from then on."""

    def odd(micro_batch: int) -> ModelGraph:
        graph = gpt2(micro_batch)
        if micro_batch < 4:
            return graph
        epilogue = graph.kinds["epilogue"]
        changed = replace(
            epilogue, ops=tuple(replace(op, bytes_forward=op.bytes_forward + 1) for op in epilogue.ops)
        )
        return replace(graph, kinds={**graph.kinds, "epilogue": changed})

    graphs = Graphs(odd)
    assert graphs.at(1) is gpt2(1) and graphs.at(2) is gpt2(2)
    assert graphs.at_hand(8) is not None
    assert not graphs.confirm(8)
    assert graphs.at_hand(16) is None
    assert graphs.confirm(4)


@pytest.mark.parametrize("degree", [1, 4])
def test_what_was_not_traced_costs_nothing_at_best(degree: int) -> None:
    from autoplan.graph.axes import strategies
    from autoplan.search.optimist import Optimist

    graphs = Graphs(gpt2)
    optimist = Optimist(graphs, graphs.trace(1), Cluster.of("h100-sxm", nodes=1), strategies)
    assert all(cost.times.total_s == 0 for cost in optimist.costs(2, degree).values())
    assert all(cost.times.total_s > 0 for cost in optimist.costs(1, degree).values())
