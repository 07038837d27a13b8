"""Seconds of a training step, by cause: layers, stages, schedule, data-parallel traffic, optimizer.

The pipeline, with t_s the seconds of one micro-batch on stage s, T the greatest of them, m micro-batches
and v chunks (Narayanan et al., 2021, section 2.2; uneven stages as Alpa has them, Zheng et al., 2022,
equation 2):

    m T + (sum of t_s - T) / v        exact for equal stages: (m + (p - 1) / v) t

The other schedules' bubbles are ``cost.pipeline.closed_forms``, of the slowest stage. The event simulator
prices one configuration in detail; here thousands are priced at once.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from autoplan.cost.transformer.configuration import Configuration
from autoplan.cost.transformer.formats import Formats
from autoplan.cost.transformer.group_times import group_time_s
from autoplan.cost.transformer.host_copies import host_step_s, with_parked_activations
from autoplan.cost.transformer.layer_works import dense_works, ends_works, hybrid_works, mixture_works
from autoplan.cost.transformer.saved_bytes import layer_saved_bytes
from autoplan.cost.transformer.shape import Transformer
from autoplan.cost.transformer.software import Software
from autoplan.cost.transformer.stages import stage_layers
from autoplan.cost.transformer.state_messages import once_a_step, with_sharded_state
from autoplan.cost.transformer.work_times import Passes, work_times

if TYPE_CHECKING:
    from autoplan.hardware import Cluster

__all__ = [
    "STEP_FIXED_S",
    "StepTimes",
    "bubble_s",
    "end_passes",
    "layer_passes",
    "once_parts",
    "send_s",
    "step_times",
]

STEP_OPS = 30.0
"""Ops that the host issues once a step: the optimizer on many tensors at once, norms, logging."""

STEP_FIXED_S = 3e-3
"""Seconds a step that no op accounts for: the data loader's hand-over and a synchronization (assumed)."""


@dataclass(frozen=True, slots=True)
class StepTimes:
    """``step_s`` and its ``parts``, which add up to it; one entry for each configuration."""

    step_s: Any
    parts: dict[str, Any]


def step_times(
    shape: Transformer,
    c: Configuration,
    formats: Formats,
    software: Software,
    cluster: Cluster,
    schedule: str = "1f1b",
) -> StepTimes:
    """Price every configuration of ``c`` for ``shape``; 1F1B is interleaved where ``c.vpp`` is above 1."""
    dense, mixture = layer_passes(shape, c, formats, software, cluster)
    first_end, last_end = end_passes(shape, c, formats, software, cluster)
    held = stage_layers(shape, c)

    def stage(layers: Any, of_dense: Any) -> Passes:
        passes = dense * of_dense
        return passes + mixture * (layers - of_dense) if mixture is not None else passes

    first = stage(held.first, held.first_dense) + first_end
    last = stage(held.last, held.last_dense) + last_end
    middle = stage(held.middle, held.middle_dense)
    pp = np.asarray(c.pp)
    only = first + last_end
    mixed = shape.mixture_layers
    whole_s = dense.total_s * (shape.layers - mixed) + first_end.total_s + last_end.total_s
    if mixture is not None:
        whole_s = whole_s + mixture.total_s * mixed
    first_s = np.where(pp == 1, only.total_s, first.total_s)
    last_s = np.where(pp == 1, 0.0, last.total_s)
    middle_s = np.where(pp > 2, middle.total_s, 0.0)
    slowest_s = np.maximum(np.maximum(first_s, last_s), middle_s)
    busiest = _where(
        (first_s >= slowest_s),
        _where(pp == 1, only, first),
        _where(middle_s >= slowest_s, middle, last),
    )
    parts = {name: c.micro_batches * s for name, s in busiest.by_cause().items()}
    send_steady, send_fill = send_s(shape, c, software, cluster)
    parts["pp_comm"] = c.micro_batches * send_steady + send_fill
    parts["bubble"] = bubble_s(whole_s, slowest_s, busiest, c, schedule)

    parts |= once_parts(shape, c, first, formats, software, cluster)
    parts["overhead"] = STEP_FIXED_S + 0.0 * parts["optimizer"]
    return StepTimes(sum(parts.values()), parts)


def once_parts(
    shape: Transformer,
    c: Configuration,
    first: Passes,
    formats: Formats,
    software: Software,
    cluster: Cluster,
) -> dict[str, Any]:
    """Seconds that come once a step on the first stage, whose passes are ``first``: ``dp_comm`` and ``optimizer``."""
    held = stage_layers(shape, c)
    dense_held, expert_held = _held_parameters(shape, c, held.first, held.first_dense)
    sent = once_a_step(dense_held, expert_held, first, c, formats, software, cluster)
    return {
        "dp_comm": sent + _tied_s(shape, c, software, cluster),
        "optimizer": _optimizer_s(dense_held, expert_held, c, formats, software, cluster),
    }


def layer_passes(
    shape: Transformer, c: Configuration, formats: Formats, software: Software, cluster: Cluster
) -> tuple[Passes, Passes | None]:
    """One dense layer, and one with experts where the model has any."""
    t = c.tp

    def parked(layer: Passes, *, mixture: bool) -> Passes:
        if not np.any(np.asarray(c.parked) > 0):
            return layer
        saved = layer_saved_bytes(shape, c, formats, software, mixture=mixture)
        return with_parked_activations(layer, saved, c, cluster)

    attention = (shape.attention_parameters + shape.vector_parameters) / t
    average = None
    if shape.hybrid is not None:
        average = sum(
            (
                work_times(works, c, formats, software, cluster) * share
                for share, works in hybrid_works(shape, c, software)
            ),
            Passes(),
        )
    priced = average or work_times(dense_works(shape, c, software), c, formats, software, cluster)
    dense = with_sharded_state(
        priced, attention + shape.mlp_parameters / t, 0.0, c, formats, software, cluster
    )
    if not shape.moe:
        return parked(dense, mixture=False), None
    priced = average or work_times(mixture_works(shape, c, software), c, formats, software, cluster)
    experts = shape.expert_parameters / (c.ep * c.etp)
    common = attention + shape.common_parameters / t
    mixture = with_sharded_state(priced, common, experts, c, formats, software, cluster)
    return parked(dense, mixture=False), parked(mixture, mixture=True)


def end_passes(
    shape: Transformer, c: Configuration, formats: Formats, software: Software, cluster: Cluster
) -> tuple[Passes, Passes]:
    """The embedding and the logits with the loss; ZeRO-3 gathers their weights too."""
    first, last = ends_works(shape, c, software)
    rows = shape.embedding_parameters / c.tp
    priced = []
    for works in (first, last):
        passes = work_times(works, c, formats, software, cluster, recomputes=False, linear=False)
        priced.append(with_sharded_state(passes, rows, 0.0, c, formats, software, cluster))
    return priced[0], priced[1]


def _where(condition: Any, a: Passes, b: Passes) -> Passes:
    def merged(left: dict[str, Any], right: dict[str, Any]) -> dict[str, Any]:
        names = dict.fromkeys((*left, *right))
        return {n: np.where(condition, left.get(n, 0.0), right.get(n, 0.0)) for n in names}

    return Passes(
        merged(a.forward, b.forward),
        merged(a.backward, b.backward),
        np.where(condition, a.weight_s, b.weight_s),
    )


def bubble_s(whole_s: Any, slowest_s: Any, busiest: Passes, c: Configuration, schedule: str) -> Any:
    """Seconds that the busiest stage waits; ``whole_s`` are those of a micro-batch on all stages."""
    p, v, m = np.asarray(c.pp), np.asarray(c.vpp), np.asarray(c.micro_batches)
    bubble: Any = np.maximum(whole_s - slowest_s, 0.0) / v + (v - 1) * np.maximum(p - m, 0) * slowest_s / v
    if schedule not in ("gpipe", "1f1b", "interleaved"):
        forward, backward = busiest.forward_s / v, busiest.backward_s / v
        weight = np.minimum(busiest.weight_s / v, backward)
        inner = backward - weight
        if schedule == "zb-h1":
            other = forward + inner - np.minimum(np.minimum(forward, inner), weight)
        elif schedule == "zbv":
            other = np.maximum(inner, 2 * (inner - weight))
        else:
            other = np.maximum(forward + 2 * backward - 3 * weight, 0.0)
        bubble = np.minimum((p - 1) * other, bubble * v)
    return np.where(p > 1, bubble, 0.0)


def send_s(shape: Transformer, c: Configuration, software: Software, cluster: Cluster) -> tuple[Any, Any]:
    """Seconds that each micro-batch waits for sends, and that filling and draining waits once."""
    pp = np.asarray(c.pp)
    if np.all(pp == 1):
        return 0.0 * pp, 0.0 * pp
    nbytes = c.tokens * shape.hidden * 2.0 / c.tp  # scattered over tp, gathered on arrival: SC21, section 4.1
    each = group_time_s(cluster, "send_recv", np.where(pp > 1, nbytes, 0.0), pp, c.tp * c.cp * c.dp)
    gathered = np.where(
        c.sp, 0.0, group_time_s(cluster, "all_gather", np.where(pp > 1, nbytes * c.tp, 0.0), c.tp, 1)
    )
    each = np.where(pp > 1, each + gathered, 0.0)
    steady = 0.0 * each if software.overlap_pp else 2 * each * c.vpp
    return steady, 2 * (pp - 1) * each


def _held_parameters(shape: Transformer, c: Configuration, layers: Any, of_dense: Any) -> tuple[Any, Any]:
    """Elements of the first stage on one tp rank: dense ones and experts'."""
    attention = shape.attention_parameters + shape.vector_parameters
    ends = np.where(np.asarray(c.pp) > 1, 1, np.where(shape.tied, 1, 2)) * shape.embedding_parameters
    dense = layers * attention + of_dense * shape.mlp_parameters + ends + shape.positions * shape.hidden
    experts = 0.0 * dense
    if shape.moe:
        dense = dense + (layers - of_dense) * shape.common_parameters
        experts = (layers - of_dense) * shape.expert_parameters / (c.ep * c.etp)
    return dense / c.tp, experts


def _tied_s(shape: Transformer, c: Configuration, software: Software, cluster: Cluster) -> Any:
    """The embedding's gradient summed between the first and the last stage."""
    apart = (np.asarray(c.pp) > 1) & np.asarray(shape.tied, dtype=bool)
    if not np.any(apart):
        return 0.0
    nbytes = np.where(apart, shape.embedding_parameters / c.tp * software.gradient_bytes, 0.0)
    stride = np.maximum(c.tp * c.cp * c.dp * (np.asarray(c.pp) - 1), 1)
    return group_time_s(cluster, "all_reduce", nbytes, np.where(apart, 2, 1), stride)


def _optimizer_s(
    dense: Any, experts: Any, c: Configuration, formats: Formats, software: Software, cluster: Cluster
) -> Any:
    """AdamW is bound by memory: it reads the gradient and reads and writes the parameter and both moments
    (28 bytes), writes the copy that computes, and clips by the norm (4); unscaling reads and writes once
    more (8), 16-bit gradients are first copied to 32 bit (6), and buffers are zeroed."""
    sharded = np.asarray(c.zero) >= 1
    elements = dense / np.where(sharded, c.data_ranks, 1) + experts / np.where(sharded, c.expert_ranks, 1)
    kept = 4 if software.main_gradients else 2
    each = 28 + formats.parameter_bytes + 4 + (8 if formats.scaled else 0) + (6 if kept == 2 else 0)
    nbytes = elements * each + (dense + experts) * kept
    op_s = cluster.device.eager_op_s or 0.0
    step_s = cluster.device.memory_time_s(nbytes)
    if np.any(c.host_optimizer):
        sent = software.gradient_bytes + formats.parameter_bytes
        step_s = np.where(c.host_optimizer, host_step_s(elements, each, sent, cluster), step_s)
    return np.where(c.frozen, 0.0, step_s) + STEP_OPS * op_s
