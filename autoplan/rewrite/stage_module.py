"""One pipeline stage as a module: its units in order, and the free values they share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.distributed.device_mesh import DeviceMesh

from autoplan.graph.boundary import boundary_layout
from autoplan.graph.chain import extract
from autoplan.graph.ir import ModelGraph, Unit, Value
from autoplan.graph.layout import Layout
from autoplan.plan import SCHEDULE_NEEDS, Plan
from autoplan.rewrite.host_copies import Copies, fetch_ahead
from autoplan.rewrite.local_graph import LocalBlock
from autoplan.rewrite.random_calls import draw_in
from autoplan.rewrite.random_kernels import DRAWS, unit_draws
from autoplan.rewrite.replicas import Replicas
from autoplan.rewrite.unit_module import UnitModule, attach, build_unit, full_name, local_parameter, put_on

__all__ = [
    "GradientTimes",
    "StageModule",
    "Wire",
    "build_stage",
    "free_module",
    "inputs_of",
    "loss_wire",
    "wires_into",
]


@dataclass(frozen=True, slots=True)
class Wire:
    """A value that passes from one stage to the next: its chain name, and shape and dtype on one rank."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    requires_grad: bool


class StageModule(nn.Module):
    """Runs the units of one stage on one micro-batch.

    ``forward(*received, **batch)`` takes what the stage before sent (``reads``) and the micro-batch, each input
    under its name with ``batch_`` before it, and ``random_kernels.DRAWS`` so where something draws random numbers; it
    returns what the next stage needs (``writes``), or, in the last stage, the loss times ``batch["loss_scale"]``, as a
    tensor of one element. ``replicas`` average its gradients, where nothing shards its state.
    """

    def __init__(
        self, units: list[tuple[Unit, UnitModule]], free: fx.GraphModule, free_names: list[str],
        reads: list[Wire], writes: list[Wire], loss: str | None, cp: int = 1,
    ) -> None:  # fmt: skip
        super().__init__()
        self.units = nn.ModuleDict({_key(unit): module for unit, module in units})
        self.free = free
        self.chain = [unit for unit, _ in units]
        self.free_names = free_names
        self.free_reads = inputs_of(free)
        self.reads = reads
        self.writes = writes
        self.loss = loss
        self.cp = cp
        self.replicas: Replicas | None = None

    def forward(self, *received: Tensor, **batch: Tensor) -> tuple[Tensor, ...] | Tensor:
        values = {f"batch.{name.removeprefix('batch_')}": tensor for name, tensor in batch.items()}
        values.update(zip((wire.name for wire in self.reads), received, strict=True))
        free = self.free(*(batch[f"batch_{name}"] for name in self.free_reads))
        values.update(zip(self.free_names, free, strict=True))
        parked: Copies | None = None
        for unit in self.chain:
            module: UnitModule = self.units[_key(unit)]  # type: ignore[assignment]
            inputs = [values[name] for name in unit.arguments]
            if module.draws:
                inputs.append(unit_draws(batch[f"batch_{DRAWS}"], unit.name))
            results = module(*inputs)
            fetch_ahead(parked, results)
            parked = module.parked
            values.update(zip(unit.results, results, strict=True))
        if self.loss is not None:
            loss = values[self.loss].reshape(1) * batch["loss_scale"].to(values[self.loss].dtype)
            return loss if self.cp == 1 else GradientTimes.apply(loss, self.cp)
        return tuple(values[wire.name].contiguous() for wire in self.writes)  # what can be sent

    def unit_modules(self) -> dict[str, UnitModule]:
        """The units' modules by unit name."""
        return {unit.name: self.units[_key(unit)] for unit in self.chain}  # type: ignore[misc]


class GradientTimes(torch.autograd.Function):
    """The value as it is, and a gradient ``times`` as large: cp ranks each have a part of a parameter's gradient, and
    the data axes, which cp is among, average where these parts must be summed."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, times: int) -> Tensor:
        ctx.times = times
        return value.view_as(value)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        return grads[0] * ctx.times, None


def _key(unit: Unit) -> str:
    return unit.name.replace(".", "_")


def build_stage(
    graph: ModelGraph,
    plan: Plan,
    stage: int,
    whole: Mapping[str, nn.Parameter],
    buffers: Mapping[str, Tensor],
    tp_mesh: DeviceMesh | None,
    master: torch.dtype | None,
    device: torch.device,
    cp_group: str = "",
    experts: DeviceMesh | None = None,
) -> StageModule:
    """Make stage ``stage`` of ``plan`` for this rank, copying its weights out of the ``whole`` parameters.

    ``graph`` is this rank's part of the model (``graph.cut``) where cp is above 1, and ``cp_group`` names the process
    group of that axis; likewise where ep is above 1 (``graph.expert_cut``), and ``experts`` is the mesh axis ep, with tp
    inside it where tp is above 1. ``whole`` and ``buffers`` are the model's, by all of their names. ``tp_mesh`` is the tensor-parallel axis, None when tp is 1. ``master`` is the dtype that floating-point
    parameters are kept in; None keeps each one's own. ``device``: where the rank computes.
    """
    names = set(plan.stages[stage].units)
    halves = SCHEDULE_NEEDS[plan.schedule].halves
    chain = [unit for unit in graph.units if unit.name in names]
    boundary = Layout.parse(plan.boundary)
    made: dict[tuple[int, str], nn.Parameter] = {}
    units = []
    for unit in chain:
        block = graph.kinds[unit.kind]
        layouts = plan.layouts.get(unit.kind, {})
        parameters: dict[str, nn.Parameter] = {}
        for value, relative in block.parameters.items():
            name = full_name(unit, relative)
            text = layouts.get(value, "R")
            key = (id(whole[name]), text)  # a tied weight is made once
            if key not in made:
                tensor = (
                    whole[name].to(master)
                    if master is not None and whole[name].is_floating_point()
                    else whole[name]
                )
                dim = block.expert_dims.get(value)
                mesh = tp_mesh if dim is None else experts
                made[key] = local_parameter(tensor, Layout.parse(text), mesh, whole[name].requires_grad, dim)
            parameters[name] = made[key]
        group = tp_mesh.get_group().group_name if tp_mesh is not None else ""
        ep_group = experts["ep"].get_group().group_name if block.expert_dims and experts is not None else ""
        local = LocalBlock(block, layouts, boundary, plan.tp, group, cp_group, ep_group, plan.ep)
        summed = _loss_node(graph, unit) if graph.weight is not None else None
        units.append(
            (
                unit,
                build_unit(
                    unit,
                    local,
                    unit.name in plan.stages[stage].recompute,
                    parameters,
                    buffers,
                    summed,
                    device,
                    halves,
                    _policy(plan, stage, unit),
                ),
            )
        )
    free_names = sorted({name for unit in chain for name in unit.arguments if name.startswith("free.")})
    free = free_module(graph, free_names, buffers, device)
    last = stage == len(plan.stages) - 1
    reads = wires_into(graph, plan, stage)
    writes = [loss_wire(graph)] if last else wires_into(graph, plan, stage + 1)
    return StageModule(units, free, free_names, reads, writes, graph.loss if last else None, plan.cp)


def _policy(plan: Plan, stage: int, unit: Unit) -> Mapping[str, str] | None:
    name = plan.stages[stage].policies.get(unit.name)
    return plan.policies[unit.kind][name] if name is not None else None


def loss_wire(graph: ModelGraph) -> Wire:
    """What the last stage gives: the loss as a tensor of one element."""
    dtypes = [
        graph.kinds[unit.kind].values[output].dtype
        for unit in graph.units
        for result, output in zip(unit.results, graph.kinds[unit.kind].outputs, strict=True)
        if result == graph.loss
    ]
    return Wire(graph.loss, (1,), dtypes[0], True)


def _loss_node(graph: ModelGraph, unit: Unit) -> str | None:
    """The cross-entropy behind the loss, if ``unit`` holds it."""
    if graph.loss not in unit.results:
        return None
    return next(op.name for op in reversed(graph.kinds[unit.kind].ops) if "cross_entropy_loss" in op.target)


def free_module(
    graph: ModelGraph, names: list[str], buffers: Mapping[str, Tensor], device: torch.device
) -> fx.GraphModule:
    """A module that computes the free values ``names`` from the batch, on ``device``."""
    root = nn.Module()
    for relative in graph.free.buffers.values():
        attach(root, relative, buffers[relative])
    source = graph.free.graph
    nodes = {f"free.{node.name}": node for node in source.nodes}
    new = extract(source, [nodes[name] for name in names], [], keep=set(source.nodes))
    draw_in(new)
    put_on(new, device)
    return fx.GraphModule(root, new, class_name="Free")


def inputs_of(free: fx.GraphModule) -> list[str]:
    """The batch's inputs that a module of free values takes, in calling order."""
    return [str(node.target) for node in free.graph.nodes if node.op == "placeholder"]


def wires_into(graph: ModelGraph, plan: Plan, stage: int) -> list[Wire]:
    """What stage ``stage`` receives: values made before it and read in it or after it, in chain order."""
    if stage == 0:
        return []
    before = {name for s in plan.stages[:stage] for name in s.units}
    made: dict[str, Wire] = {}
    boundary = Layout.parse(plan.boundary)
    needed = {name for unit in graph.units if unit.name not in before for name in unit.arguments}
    for unit in graph.units:
        if unit.name not in before:
            continue
        block = graph.kinds[unit.kind]
        for result, output in zip(unit.results, block.outputs, strict=True):
            if result in needed:
                made[result] = _wire(result, block.values[output], boundary, plan.tp)
    return list(made.values())


def _wire(name: str, value: Value, boundary: Layout, degree: int) -> Wire:
    layout = boundary_layout(value, boundary, degree)
    return Wire(name, layout.local_shape(value.shape, degree), value.dtype, value.requires_grad)
