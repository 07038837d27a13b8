"""What a unit of a program really holds between its forward and its backward pass."""

from __future__ import annotations

import gc
import os
import time
from typing import Any

import torch
import torch.utils._pytree as pytree
from equality import Case, make, make_batch, plan_for
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode

import autoplan
from autoplan.cost.unit import unit_cost
from autoplan.graph.axes import strategies
from autoplan.graph.boundary import boundary_layout
from autoplan.graph.cut import cut_graph
from autoplan.graph.layout import Layout
from autoplan.graph.trace import trace
from autoplan.hardware import Cluster
from autoplan.plan import Precision


class _Storages(TorchDispatchMode):
    """Every storage that ops have made while it is on."""

    def __init__(self) -> None:
        super().__init__()
        self.found: dict[int, tuple[StorageWeakRef, int]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        for leaf in pytree.tree_leaves(made):
            if isinstance(leaf, Tensor):
                self.note(leaf)
        return made

    def note(self, tensor: Tensor) -> None:
        reference = StorageWeakRef(tensor.untyped_storage())
        self.found.setdefault(reference.cdata, (reference, tensor.untyped_storage().nbytes()))

    def alive(self) -> int:
        return sum(nbytes for reference, nbytes in self.found.values() if not reference.expired())


def held_bytes(
    unit: Any, shapes: list[tuple[tuple[int, ...], torch.dtype, bool]], expected: float
) -> tuple[int, int]:
    """Bytes on the device and in the host's memory that are held for backward once ``unit`` has run on inputs of
    these shapes, dtypes and needs of a gradient. Weights, and inputs without gradient, are not counted.

    gloo's threads let go of a message some time after the call that waits for it returns, and tell nobody. So as long
    as more than ``expected`` bytes are alive on the device, they are given time, up to ten seconds.
    """
    sources = [torch.randn(shape, dtype=dtype, requires_grad=True) for shape, dtype, grad in shapes if grad]
    constants = [torch.ones(shape, dtype=dtype) for shape, dtype, grad in shapes if not grad]
    leaves = iter(constants)
    weights = [getattr(parameter, "_local_tensor", parameter) for parameter in unit.parameters()]
    stay = {tensor.untyped_storage()._cdata for tensor in [*weights, *unit.buffers(), *constants]}
    with _Storages() as storages:
        made = iter([source.clone() for source in sources])
        inputs = [next(made) if grad else next(leaves) for _, _, grad in shapes]
        outputs = unit(*inputs)
    behind = [output.grad_fn for output in outputs]
    del inputs, outputs, made
    gc.collect()
    for address in stay:
        storages.found.pop(address, None)
    parked = 0 if unit.parked is None else sum(copy.nbytes for copy in unit.parked)
    deadline = time.monotonic() + 10
    while storages.alive() - parked > expected and time.monotonic() < deadline:
        os.sched_yield()
    alive = storages.alive()
    del behind
    return alive - parked, parked


def compare(case: Case) -> dict[str, tuple[float, float, float, float]]:
    """By unit and way: bytes priced and real, on the device and on the host. One unit is asked in every way."""
    model, loss = make(case.model, case.dtype)
    graph = trace(
        model, make_batch(case.model, case.micro_batch, 0), loss, Precision(case.dtype), device="cpu"
    )
    plan = plan_for(graph, case)
    batch = make_batch(case.model, case.global_batch, 0)
    program = autoplan.parallelize(model, batch, loss, plan=plan, precision=case.dtype)
    local = cut_graph(graph, plan.cp_layouts, Layout.parse(plan.cp_boundary), plan.cp)
    boundary, cluster = Layout.parse(plan.boundary), Cluster.of("h100-sxm", gpus=8)
    found = {}
    for stage in program.stages:
        for unit in stage.chain:
            block = local.kinds[unit.kind]
            cost = unit_cost(
                block, plan.layouts.get(unit.kind, {}), boundary, plan.tp, cluster, strategies,
                plan.policies.get(unit.kind),
            )  # fmt: skip
            way = next(stage.way(unit.name) for stage in plan.stages if unit.name in stage.units)
            values = [block.values[name] for name in block.inputs]
            shapes = [
                (boundary_layout(v, boundary, plan.tp).local_shape(v.shape, plan.tp), getattr(torch, v.dtype), v.requires_grad)
                for v in values
            ]  # fmt: skip
            if any(not v.requires_grad and not v.dtype.startswith("float") for v in values):
                continue  # ids that must be in range
            keep = cost.keep(way)
            real = held_bytes(stage.unit_modules()[unit.name], shapes, keep.kept_bytes)
            found[f"{unit.name} {way}"] = (keep.kept_bytes, real[0], keep.host_bytes, real[1])
    program.close()
    return found


def check_bytes(case: Case) -> None:
    """Raises unless what is priced is what is held."""
    found = compare(case)
    assert found
    wrong = {
        name: figures
        for name, figures in found.items()
        if figures[0] != figures[1] or figures[2] != figures[3]
    }
    assert not wrong, f"{case}: (priced, held, priced on the host, held there) {wrong}"
