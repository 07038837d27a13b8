"""Gradients reduced and parameters gathered over the data ranks, in each micro-batch or once a step.

    zero   each micro-batch                            once a step
    0      nothing                                     gradients all-reduced
    1, 2   nothing                                     gradients reduce-scattered, parameters all-gathered
    2      (FSDP) parameters gathered forward,         nothing
           gradients reduce-scattered
    3      parameters gathered forward and backward,   nothing
           gradients reduce-scattered

Volumes: Rajbhandari et al., 2020, section 7. Experts have their own, smaller data group.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from autoplan.cost.transformer.configuration import Configuration
from autoplan.cost.transformer.formats import Formats
from autoplan.cost.transformer.group_times import group_time_s
from autoplan.cost.transformer.software import Software
from autoplan.cost.transformer.work_times import Passes, exposed_s

if TYPE_CHECKING:
    from autoplan.hardware import Cluster

__all__ = ["gather_s", "once_a_step", "scatter_s", "with_sharded_state"]


def gather_s(dense: Any, experts: Any, c: Configuration, element_bytes: float, cluster: Cluster) -> Any:
    """Seconds to all-gather ``dense`` and ``experts`` elements of this tp rank."""
    return _group_s("all_gather", dense, experts, c, element_bytes, cluster)


def scatter_s(dense: Any, experts: Any, c: Configuration, element_bytes: float, cluster: Cluster) -> Any:
    """Seconds to reduce-scatter them."""
    return _group_s("reduce_scatter", dense, experts, c, element_bytes, cluster)


def _group_s(
    kind: str, dense: Any, experts: Any, c: Configuration, element_bytes: float, cluster: Cluster
) -> Any:
    seconds = group_time_s(cluster, kind, dense * element_bytes, c.data_ranks, c.tp)
    if np.any(np.asarray(experts) > 0):
        stride = np.minimum(c.ep * c.etp, c.tp * c.cp * c.dp)
        seconds = seconds + group_time_s(cluster, kind, experts * element_bytes, c.expert_ranks, stride)
    return seconds


def with_sharded_state(
    layer: Passes,
    dense: Any,
    experts: Any,
    c: Configuration,
    formats: Formats,
    software: Software,
    cluster: Cluster,
) -> Passes:
    """``layer`` with what ZeRO-3 sends for its parameters beside it, prefetched by one layer."""
    sharded = _in_layers(c, software)
    if not np.any(sharded):
        return layer
    gather = gather_s(dense, experts, c, formats.parameter_bytes, cluster) / software.gather_share
    scatter = scatter_s(dense, experts, c, software.gradient_bytes, cluster) / software.gather_share
    scatter = np.where(c.frozen, 0.0, scatter)
    overlap = cluster.overlap if software.overlap_dp else 0.0
    forward = exposed_s(gather, layer.forward_s * (overlap > 0), overlap)
    again = np.where(np.asarray(c.zero) == 3, gather, 0.0)
    backward = exposed_s(again + scatter, layer.backward_s * (overlap > 0), overlap)
    return layer + Passes(
        {"fsdp_comm": np.where(sharded, forward, 0.0)}, {"fsdp_comm": np.where(sharded, backward, 0.0)}
    )


def _in_layers(c: Configuration, software: Software) -> Any:
    """Where parameters travel beside each layer, in each micro-batch."""
    return np.asarray(c.zero) >= (2 if software.name == "fsdp" else 3)


def once_a_step(
    dense: Any,
    experts: Any,
    window: Passes,
    c: Configuration,
    formats: Formats,
    software: Software,
    cluster: Cluster,
) -> Any:
    """Seconds that a step waits for gradients and parameters of ZeRO 0 to 2.

    Args:
        dense, experts: elements of the stage on this rank.
        window: the stage's passes of one micro-batch: reductions hide behind the last backward, and
            gathers behind the next step's first forward.
    """
    overlap = cluster.overlap if software.overlap_dp else 0.0
    size = float(software.gradient_bytes)
    whole = _group_s("all_reduce", dense, experts, c, size, cluster)
    scatter = scatter_s(dense, experts, c, size, cluster)
    gather = gather_s(dense, experts, c, formats.parameter_bytes, cluster)
    if overlap:
        whole = exposed_s(whole, window.backward_s, overlap)
        scatter = exposed_s(scatter, window.backward_s, overlap)
        gather = exposed_s(gather, window.forward_s, overlap)
    zero = np.asarray(c.zero)
    waited = np.where(zero == 0, whole, np.where(_in_layers(c, software), 0.0, scatter + gather))
    return np.where(c.frozen, 0.0, waited)
