"""What tests of the search ask about small models of ``equality``."""

from __future__ import annotations

import functools
from collections.abc import Callable

from equality import SEQ, make, make_batch

from autoplan.graph.axes import strategies, value_layouts
from autoplan.graph.ir import ModelGraph
from autoplan.graph.trace import trace
from autoplan.hardware import Cluster
from autoplan.plan import Job, Precision
from autoplan.search.graphs import Graphs
from autoplan.search.pins import Pins
from autoplan.search.space import Space

__all__ = ["CLUSTER", "graphs_of", "job_of", "space_of"]

CLUSTER = Cluster.of("h100-sxm", gpus=8)


@functools.cache
def graphs_of(model_name: str) -> Callable[[int], ModelGraph]:
    """From a number of samples to the graph, each traced once."""

    @functools.cache
    def graph_at(micro_batch: int) -> ModelGraph:
        model, loss = make(model_name, "fp32")
        return trace(model, make_batch(model_name, micro_batch, 0), loss, Precision.FP32)

    return graph_at


def job_of(global_batch: int) -> Job:
    return Job(global_batch=global_batch, tokens_per_sample=SEQ, precision=Precision.FP32)


def space_of(model_name: str, job: Job, pins: Pins) -> Space:
    return Space(Graphs(graphs_of(model_name)), job, CLUSTER, pins, strategies, value_layouts)
