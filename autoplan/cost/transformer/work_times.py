"""Seconds of one layer's works for one micro-batch, forward and backward, by cause."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from autoplan.cost.transformer.configuration import Configuration, Recompute
from autoplan.cost.transformer.formats import Formats
from autoplan.cost.transformer.group_times import group_time_s
from autoplan.cost.transformer.layer_works import Product, Works
from autoplan.cost.transformer.software import Software

if TYPE_CHECKING:
    from autoplan.hardware import Cluster

__all__ = ["Passes", "exposed_s", "work_times"]

SHARPNESS = 4
"""q of ``_together``; fitted to vTrain's single-node runs (3.6 to 3.7)."""

COLLECTIVE_OPS = 2.0
"""Ops that the host issues around each kind of collective: the call and the wait."""

EXPERT_WIDTH = 900.0
"""Width of an expert at which its products reach half the rate of one product with as many tiles (fitted)."""

ALIGNED = 8
"""Elements of 16 bits in 16 bytes, the boundaries that loads of the matrix units need."""

UNALIGNED_CORE = 0.09
"""Rate of the products of unfused attention where heads are no multiple of ``ALIGNED``, over that where they are:
batched kernels then leave the matrix units (Anthony et al., 2024, arXiv:2401.14489, section VI; fitted to BLOOM's
runs with heads of 108 and 150, which reach 10 to 15 of an A100's 312 TFLOP/s there)."""

MEMORY_KERNELS = (8.0, 10.0)
"""Memory-bound kernels of a layer forward and backward, each with its launch."""


@dataclass(slots=True)
class Passes:
    """Seconds by cause (``compute``, ``recompute``, ``tp_comm``, ``cp_comm``, ``ep_comm``, ``fsdp_comm``,
    ``launch``) of a forward and a backward pass; ``weight_s`` is the part of backward's compute that
    makes weight gradients, which zero-bubble schedules can put off."""

    forward: dict[str, Any] = field(default_factory=dict)
    backward: dict[str, Any] = field(default_factory=dict)
    weight_s: Any = 0.0

    @property
    def forward_s(self) -> Any:
        return sum(self.forward.values(), 0.0)

    @property
    def backward_s(self) -> Any:
        return sum(self.backward.values(), 0.0)

    @property
    def total_s(self) -> Any:
        return self.forward_s + self.backward_s

    def __mul__(self, count: Any) -> Passes:
        return Passes(
            {name: s * count for name, s in self.forward.items()},
            {name: s * count for name, s in self.backward.items()},
            self.weight_s * count,
        )

    def __add__(self, other: Passes) -> Passes:
        return Passes(
            _sum(self.forward, other.forward),
            _sum(self.backward, other.backward),
            self.weight_s + other.weight_s,
        )

    def by_cause(self) -> dict[str, Any]:
        return _sum(self.forward, self.backward)


def _sum(a: Mapping[str, Any], b: Mapping[str, Any]) -> dict[str, Any]:
    return {name: a.get(name, 0.0) + b.get(name, 0.0) for name in (*a, *(n for n in b if n not in a))}


def exposed_s(comm_s: Any, window_s: Any, overlap: float) -> Any:
    """What is left to wait for of ``comm_s`` that runs beside ``window_s`` of compute: at least the share
    that overlap cannot hide (first and last pieces), and all that the window is too short for."""
    return np.maximum((1 - overlap) * comm_s, comm_s - window_s)


def work_times(
    works: Works,
    c: Configuration,
    formats: Formats,
    software: Software,
    cluster: Cluster,
    *,
    recomputes: bool = True,
    linear: bool = True,
) -> Passes:
    """Price ``works``.

    Args:
        recomputes: False for what is never run again (the ends of the chain).
        linear: products run in the format of ``formats``' matrices; False keeps 16 bit (the logits).
    """
    device = cluster.device
    core_f = core_b = product_f = product_b = weight_s = 0.0
    for product in works.products:
        dtype = formats.activations if product.core or not linear else formats.products
        forward_s, input_s, other_s = _product_s(product, dtype, cluster)
        if product.grouped:
            rate = _grouped_rate(product)
            forward_s, input_s, other_s = (s / rate for s in (forward_s, input_s, other_s))
        if product.core:
            core_f, core_b = core_f + forward_s, core_b + input_s + other_s
            continue
        if dtype != formats.activations:
            forward_s, input_s = _with_casts(product, forward_s, input_s, formats, cluster)
        product_f = product_f + forward_s
        product_b = product_b + input_s
        weight_s = weight_s + np.where(c.frozen, 0.0, other_s)
    if works.attention is not None:
        speed = software.attention_hopper if _is_hopper(cluster) else software.attention
        fused_f, fused_b = (s / speed for s in _fused_s(works, formats, cluster))
        stream = device.memory_bytes_per_s * device.memory_efficiency
        core_f = np.where(c.flash, fused_f, core_f + works.core_bytes / stream)
        core_b = np.where(c.flash, fused_b, core_b + works.core_backward_bytes / stream)
    kernels_f, kernels_b = MEMORY_KERNELS if works.attention is not None else (4.0, 4.0)
    memory_f = device.memory_time_s(works.forward_bytes) + (kernels_f - 1) * device.launch_s
    memory_b = device.memory_time_s(works.backward_bytes) + (kernels_b - 1) * device.launch_s

    forward = {"compute": product_f + core_f + memory_f}
    backward = {"compute": product_b + weight_s + core_b + memory_b}
    full = (np.asarray(c.recompute) == Recompute.FULL) if recomputes else False
    if recomputes:
        selective = np.asarray(c.recompute) == Recompute.SELECTIVE
        some = core_f + memory_f if software.recomputes_memory_bound else core_f
        backward["recompute"] = np.where(full, forward["compute"], np.where(selective, some, 0.0))
    _add_messages(works, c, software, cluster, forward, backward, full, product_f, core_f)
    _add_launches(works, software, cluster, forward, backward, full)
    return Passes(forward, backward, weight_s)


def _is_hopper(cluster: Cluster) -> bool:
    """Hopper or later, by what one multiprocessor multiplies (H100 7.5 TFLOP/s, A100 2.9)."""
    device = cluster.device
    return bool(device.compute_units) and device.peak_flops.get("bfloat16", 0) > 5e12 * device.compute_units


def _product_s(product: Product, dtype: str, cluster: Cluster) -> tuple[Any, Any, Any]:
    """Forward, for the input and for the other operand; a product that a configuration lacks takes none."""
    b, m = product.batch, product.m
    n, k = np.maximum(product.n, 1), np.maximum(product.k, 1)
    there = np.asarray(product.n > 0) & np.asarray(product.k > 0)
    time_s = cluster.device.gemm_time_s
    sizes = ((b, m, n, k), (b, m, k, n), (b, k, n, m))
    if cluster.device.compute_units and product.core:
        there = there / np.where(_ragged(n) | _ragged(k), UNALIGNED_CORE, 1.0)
    forward_s, input_s, other_s = (there * time_s(size, dtype) for size in sizes)
    return forward_s, input_s, other_s


def _ragged(elements: Any) -> Any:
    """Whether rows of so many elements start off the boundaries of ``ALIGNED``."""
    return np.asarray(elements) % ALIGNED > 0


def _grouped_rate(product: Product) -> Any:
    """Rate of experts' products over that of one product with as many tiles: narrow experts are slow."""
    width = np.minimum(product.n, product.k)
    return width / (width + EXPERT_WIDTH)


def _with_casts(
    product: Product, forward_s: Any, input_s: Any, formats: Formats, cluster: Cluster
) -> tuple[Any, Any]:
    """The inputs of a product, and the gradient of its result, are quantized by memory-bound kernels."""
    stream = cluster.device.memory_bytes_per_s * cluster.device.memory_efficiency
    rows = product.batch * product.m
    forward_s = forward_s + formats.cast_bytes * rows * product.k / stream
    return forward_s, input_s + formats.cast_bytes * rows * product.n / stream


def _fused_s(works: Works, formats: Formats, cluster: Cluster) -> tuple[Any, Any]:
    assert works.attention is not None
    batch, queries, keys, size = works.attention
    time_s = cluster.device.attention_time_s
    args = (batch, queries, keys, size, formats.activations, True)
    return time_s(*args), time_s(*args, backward=True)


def _add_messages(
    works: Works,
    c: Configuration,
    software: Software,
    cluster: Cluster,
    forward: dict[str, Any],
    backward: dict[str, Any],
    full: Any,
    product_s: Any,
    core_s: Any,
) -> None:
    groups = {"tp": (c.tp, 1), "cp": (c.cp, c.tp), "ep": (c.ep, c.etp)}
    sent: dict[str, list[Any]] = {}
    for message in works.messages:
        nbytes = message.nbytes
        if message.axis == "ep" and software.deduplicated:
            nbytes = nbytes * _distinct_share(message.copies, c, cluster)
        each = group_time_s(cluster, message.kind, nbytes, *groups[message.axis])
        pair = sent.setdefault(message.axis, [0.0, 0.0])
        pair[0] = pair[0] + each * message.forward
        pair[1] = pair[1] + each * message.backward
    for axis, (forward_s, backward_s) in sent.items():
        if axis == "tp" and software.overlap_tp:
            forward_s = exposed_s(forward_s, product_s, cluster.overlap)
            backward_s = exposed_s(backward_s, 2 * product_s, cluster.overlap)
        elif axis == "cp":
            forward_s = exposed_s(forward_s, core_s, cluster.overlap)
            backward_s = exposed_s(backward_s, 2 * core_s, cluster.overlap)
        elif axis == "ep" and software.overlap_ep:
            forward_s = exposed_s(forward_s, forward["compute"], cluster.overlap)
            backward_s = exposed_s(backward_s, backward["compute"], cluster.overlap)
        forward[f"{axis}_comm"] = forward_s
        backward[f"{axis}_comm"] = backward_s + np.where(full, forward_s, 0.0)


def _distinct_share(copies: Any, c: Configuration, cluster: Cluster) -> Any:
    """Copies of a token that go to different places, over all its copies, if experts are drawn evenly:
    N (1 - (1 - 1/N)^k) / k over N nodes, or ranks where one node has them all."""
    nodes = -(-np.asarray(c.ep) * c.etp // cluster.node_size)
    places = np.where(nodes > 1, nodes, np.maximum(c.ep, 1))
    return places * (1 - (1 - 1 / places) ** copies) / copies


def _add_launches(
    works: Works,
    software: Software,
    cluster: Cluster,
    forward: dict[str, Any],
    backward: dict[str, Any],
    full: Any,
) -> None:
    """What the device waits for Python to issue ops, in an eager program.

    Of a layer's ops some wait for the host and some for the device, so neither time alone is the pass's:
    (host^q + device^q)^(1/q), which is the longer where they differ much.
    """
    issued = software.eager or (works.dynamic and not software.routed_in_graph)
    op_s = cluster.device.eager_op_s if issued else 0.0
    if not op_s:
        return
    collectives = COLLECTIVE_OPS * sum(np.asarray(m.nbytes) > 0 for m in works.messages)
    device_s = sum(forward.values())
    forward_s = _together((works.forward_ops + collectives) * op_s, device_s)
    forward["launch"] = forward_s - device_s
    again_s = np.where(full, device_s, 0.0)
    device_s = sum(backward.values())
    backward_s = _together((works.backward_ops + collectives) * op_s, device_s - again_s)
    backward["launch"] = backward_s + np.where(full, forward_s, 0.0) - device_s


def _together(host_s: Any, device_s: Any) -> Any:
    return (host_s**SHARPNESS + device_s**SHARPNESS) ** (1 / SHARPNESS)
