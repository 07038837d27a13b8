"""Bytes on the ranks of the first, the fullest middle and the last stage at their worst moment, by owner.

States of P elements on a tp rank, d data ranks, bytes each (Rajbhandari et al., 2020, section 5):

    zero   parameters   gradients      optimizer (masters and two moments)
    0      2 P          4 P or 2 P     12 P
    1      2 P          4 P or 2 P     12 P / d         (DeepSpeed 16 P / d)
    2      2 P          4 P / d        12 P / d
    3      all 16 P / d and two layers gathered

Activations stay for as many micro-batches as the schedule holds: with 1F1B min(m, p - s) on stage s
(Narayanan et al., 2021, section 2.2.1), with v chunks (v p + p - 1 - 2 s) / v (Korthikanti et al., 2022,
equation 8).

The lower figure is what tensors take (what ``torch.cuda.max_memory_allocated`` tells); the upper adds the
context, communicators and the allocator's slack. ``fits`` is a promise made on the upper.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from autoplan.cost.transformer.configuration import Configuration, Recompute
from autoplan.cost.transformer.formats import Formats
from autoplan.cost.transformer.saved_bytes import ends_saved_bytes, layer_saved_bytes, whole_layer_bytes
from autoplan.cost.transformer.shape import Transformer
from autoplan.cost.transformer.software import Software
from autoplan.cost.transformer.stages import stage_layers

if TYPE_CHECKING:
    from autoplan.hardware import Cluster

__all__ = ["OWNERS", "StageMemory", "StepMemory", "stage_memories", "step_memory"]

ENDS = ("first", "middle", "last")

OWNERS = ("parameters", "gradients", "optimizer", "gathered", "activations", "logits", "workspace", "reserve")

CONTEXT_BYTES = {"cuda": 2.0e9, "cpu": 0.1e9}
"""CUDA context, cuBLAS workspaces and NCCL's channels of a few communicators (assumed)."""

SLACK = 0.04
"""Reserved over allocated memory, less one: the median of 43 published runs."""


@dataclass(frozen=True, slots=True)
class StageMemory:
    """One stage: bytes by owner (``OWNERS``)."""

    owners: dict[str, Any]

    @property
    def allocated(self) -> Any:
        return sum(b for name, b in self.owners.items() if name != "reserve")

    @property
    def total(self) -> Any:
        return sum(self.owners.values())


@dataclass(frozen=True, slots=True)
class StepMemory:
    """The first, a middle and the last stage (all alike where there is one)."""

    first: StageMemory
    middle: StageMemory
    last: StageMemory
    allocated: Any
    total: Any
    usable: float

    @property
    def fits(self) -> Any:
        return np.asarray(self.total) <= self.usable


def step_memory(
    shape: Transformer,
    c: Configuration,
    formats: Formats,
    software: Software,
    cluster: Cluster,
    schedule: str = "1f1b",
) -> StepMemory:
    """Memory of every configuration of ``c``."""
    pp = np.asarray(c.pp)
    places = (0, 1, pp - 1)
    first, middle, last = (
        memory
        for _, memory in _placed(
            shape, c, formats, software, cluster, schedule, zip(ENDS, places, strict=True)
        )
    )
    inner = pp > 2
    return StepMemory(
        first=first,
        middle=middle,
        last=last,
        allocated=np.maximum(
            np.maximum(first.allocated, last.allocated), np.where(inner, middle.allocated, 0)
        ),
        total=np.maximum(np.maximum(first.total, last.total), np.where(inner, middle.total, 0)),
        usable=float(cluster.device.usable_bytes),
    )


def stage_memories(
    shape: Transformer,
    c: Configuration,
    formats: Formats,
    software: Software,
    cluster: Cluster,
    schedule: str = "1f1b",
) -> list[tuple[Any, StageMemory]]:
    """Layers and memory of every stage of one configuration."""
    stages = int(c.pp)
    kinds = ["first", *["middle"] * (stages - 2), "last"] if stages > 1 else ["last"]
    places = zip(kinds, range(stages), strict=True)
    return list(_placed(shape, c, formats, software, cluster, schedule, places))


def _placed(
    shape: Transformer,
    c: Configuration,
    formats: Formats,
    software: Software,
    cluster: Cluster,
    schedule: str,
    places: Iterable[tuple[str, Any]],
) -> Iterator[tuple[Any, StageMemory]]:
    """Layers and memory of stages: the kind (``ENDS``) and the place of each."""
    held = stage_layers(shape, c)
    one = np.asarray(c.pp) == 1
    first_end, last_end = ends_saved_bytes(shape, c, software)
    rows = np.asarray(shape.embedding_parameters, dtype=float)
    untied = one & ~np.asarray(shape.tied, dtype=bool)
    first_rows = rows * np.where(untied, 2, 1) + shape.positions * shape.hidden
    ends = {
        "first": (held.first, held.first_dense, first_rows, first_end, np.where(one, last_end, 0.0)),
        "middle": (held.middle, held.middle_dense, 0.0 * rows, 0.0, 0.0),
        "last": (held.last, held.last_dense, np.where(one, first_rows, rows), first_end * one, last_end),
    }
    for kind, place in places:
        layers, dense, embedding, entry, logits = ends[kind]
        flying = in_flight(c, place, schedule)
        yield (
            layers,
            _stage(shape, c, formats, software, cluster, layers, dense, flying, embedding, entry, logits),
        )


def in_flight(c: Configuration, place: Any, schedule: str = "1f1b") -> Any:
    """Micro-batches whose activations a stage holds at once (``cost.pipeline.closed_forms``, over chunks)."""
    p, v, m = np.asarray(c.pp), np.asarray(c.vpp), np.asarray(c.micro_batches)
    rank = np.minimum(place, p - 1)
    if schedule == "gpipe":
        return m
    if schedule == "zb-h1":
        return np.minimum(m, ((v - 1) * np.minimum(p, m) + p) / v)
    if schedule == "zbv":
        return np.minimum(np.minimum(m, p), (m + rank + 1) / 2)
    if schedule == "dualpipe-v":
        return np.where(p > 1, np.minimum(m, p + 0.5), 1)
    plain = np.minimum(m, p - rank)
    chunked = ((v - 1) * np.minimum(p, m) + 2 * (p - 1 - rank) + 1) / v
    return np.where(v > 1, np.minimum(m, chunked), plain)


def _stage(
    shape: Transformer,
    c: Configuration,
    formats: Formats,
    software: Software,
    cluster: Cluster,
    layers: Any,
    dense: Any,
    flying: Any,
    embedding: Any,
    entry: Any,
    logits: Any,
) -> StageMemory:
    each = shape.attention_parameters + shape.vector_parameters
    common = layers * each + dense * shape.mlp_parameters + embedding
    experts: Any = 0.0
    if shape.moe:
        common = common + (layers - dense) * shape.common_parameters
        experts = (layers - dense) * shape.expert_parameters / (c.ep * c.etp)
    common = common / c.tp
    zero = np.asarray(c.zero)
    kept = common + experts
    shared = common / c.data_ranks + experts / c.expert_ranks
    gradient = 4.0 if software.main_gradients else 2.0
    if software.partition_gradients and not formats.scaled:
        gradient = 6.0  # DeepSpeed's BF16_Optimizer adds 16-bit gradients up in 32 bit, whole on each rank
    trains = np.where(c.frozen, 0.0, 1.0)
    resident = np.where(c.host_optimizer, 0.0, trains)
    state = 3 * 4.0 if formats.master_bytes else 2 * 4.0
    if (
        software.partition_gradients
    ):  # ZeRO-3 keeps its 16-bit share; gradients in 32 bit come after activations
        state = state + np.where(zero == 3, formats.parameter_bytes, np.where(zero >= 1, 4.0, 0.0))
    wide = formats.parameter_bytes
    sharded = zero == 3
    whole, workspace = _activations(shape, c, formats, software, layers, dense, flying, entry)
    # Layers run again when the logits are gone: the larger of the two counts.
    workspace = np.maximum(workspace - logits, 0.0)
    # With the optimizer on the host, gradients leave as they are made; only those of ZeRO 0 and 1 add up here.
    held = np.where(zero >= 2, resident * shared, trains * kept)
    owners = {
        "parameters": np.where(sharded, 0.0 if formats.master_bytes else wide * shared, wide * kept),
        "gradients": gradient * held,
        "optimizer": resident * state * np.where(zero >= 1, shared, kept)
        + np.where((resident == 0) & sharded, wide * shared, 0.0),
        "gathered": np.where(sharded, wide * _gathered_elements(shape, c, software), 0.0),
        "activations": whole,
        "logits": logits + 0.0 * whole,
        "workspace": workspace + trains * 4.0 * _largest_weight(shape, c, embedding),
    }
    allocated = sum(owners.values())
    owners["reserve"] = CONTEXT_BYTES[cluster.device.kind] + SLACK * allocated
    return StageMemory(owners)


def _activations(
    shape: Transformer,
    c: Configuration,
    formats: Formats,
    software: Software,
    layers: Any,
    dense: Any,
    flying: Any,
    entry: Any,
) -> tuple[Any, Any]:
    """Bytes kept for backward by the micro-batches in flight, and of the layer that runs again."""
    saved = layer_saved_bytes(shape, c, formats, software, mixture=False)
    again = whole_layer_bytes(shape, c, formats, software, mixture=False)
    total = dense * saved
    if shape.moe:
        total = total + (layers - dense) * layer_saved_bytes(shape, c, formats, software, mixture=True)
        again = whole_layer_bytes(shape, c, formats, software, mixture=True)
    rerun = np.where(np.asarray(c.recompute) == Recompute.FULL, again, 0.0)
    here = total * (1 - np.asarray(c.parked))
    on_its_way = np.where(
        np.asarray(c.parked) > 0, np.minimum(total / np.maximum(layers, 1), total - here), 0.0
    )
    return flying * (here + entry) + on_its_way, rerun


def _gathered_elements(shape: Transformer, c: Configuration, software: Software) -> Any:
    """Elements that ZeRO-3 holds gathered: two layers, or what the program allows and at least one matrix."""
    each = (shape.attention_parameters + shape.vector_parameters) / c.tp
    if shape.moe:
        each = each + shape.common_parameters / c.tp + shape.expert_parameters / (c.ep * c.etp)
    else:
        each = each + shape.mlp_parameters / c.tp
    return np.minimum(2 * each, np.maximum(software.live_parameters, _largest_weight(shape, c, 0)))


def _largest_weight(shape: Transformer, c: Configuration, embedding: Any) -> Any:
    """Elements of the largest matrix of the stage: its gradient is made before it is added to the rest."""
    inner = np.asarray(shape.matrices - 1) * shape.hidden * shape.ffn
    return np.maximum(np.where(np.asarray(embedding) > 0, shape.embedding_parameters, 0.0), inner) / c.tp
