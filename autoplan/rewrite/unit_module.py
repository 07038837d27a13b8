"""A unit of the chain as a module: the block's local graph, with this rank's pieces of its parameters."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Replicate, Shard
from torch.utils.checkpoint import checkpoint

from autoplan.graph.ir import Block, Unit
from autoplan.graph.layout import Layout, shard
from autoplan.rewrite.host_copies import Copies
from autoplan.rewrite.keeping import Keeping, planned
from autoplan.rewrite.local_graph import EXPERTS, LocalBlock, localise
from autoplan.rewrite.move import shard_of
from autoplan.rewrite.weight_halves import defer_weight_halves

__all__ = ["ParameterSource", "UnitModule", "build_unit", "local_parameter", "put_on", "run_again"]


@dataclass(frozen=True, slots=True)
class ParameterSource:
    """Where a unit's parameter comes from: its name in the user's model, and its layout on the tp axis."""

    name: str
    layout: Layout


class UnitModule(nn.Module):
    """Runs one unit on local tensors. With ``recompute``, backward runs its forward again instead of keeping it; a
    ``policy`` says so of some of its ops (see ``keeping``). ``parked`` holds what the last run has in the host's memory.

    ``sources`` maps the names of this module's parameters to where they come from; ``updates`` those of the buffers
    that running it changes to their names in the user's model. With ``draws`` its last input is what its random numbers
    come from (``random_kernels.unit_draws``). ``experts`` holds the parameters of this rank's
    experts, if other ranks have others; the body reads them there, but does not own them: their state lies on other
    ranks than that of the rest.
    """

    def __init__(
        self,
        body: fx.GraphModule,
        sources: dict[str, ParameterSource],
        recompute: bool,
        updates: dict[str, str],
        draws: bool = False,
        policy: Mapping[str, str] | None = None,
        experts: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.body = body
        self.policy = dict(policy or {})
        self.parked: Copies | None = None
        self.inputs = [node.name for node in body.graph.nodes if node.op == "placeholder"]
        self.experts = experts
        self.sources = sources
        self.recompute = recompute
        self.updates = updates
        self.draws = draws

    def forward(self, *values: Tensor) -> tuple[Tensor, ...]:
        if self.recompute and torch.is_grad_enabled():
            return run_again(self.body, values, [self.get_buffer(name) for name in self.updates])
        if self.policy and torch.is_grad_enabled():
            self.parked = Copies()
            return Keeping(self.policy, self.parked).run(self.body, values, self.inputs)
        return self.body(*values)


def run_again(body: nn.Module, values: tuple[Tensor, ...], changed: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """``body(*values)``, which the backward pass runs again instead of keeping what it makes; ``changed`` are the
    buffers that running it changes, once."""

    def contexts() -> tuple[Any, Any]:
        return contextlib.nullcontext(), _as_before(changed)

    return checkpoint(body, *values, use_reentrant=False, context_fn=contexts)  # type: ignore[return-value]


@contextlib.contextmanager
def _as_before(buffers: Sequence[Tensor]) -> Iterator[None]:
    kept = [(buffer, buffer.clone()) for buffer in buffers]
    try:
        yield
    finally:
        with torch.no_grad():
            for buffer, value in kept:
                buffer.copy_(value)


def build_unit(
    unit: Unit,
    local: LocalBlock,
    recompute: bool,
    parameters: Mapping[str, nn.Parameter],
    buffers: Mapping[str, Tensor],
    summed_loss: str | None,
    device: torch.device,
    halves: bool = False,
    policy: Mapping[str, str] | None = None,
) -> UnitModule:
    """Make the module of ``unit``.

    Args:
        unit: which copy of the block.
        local: how the block is cut.
        recompute: whether backward runs it again.
        parameters: this rank's parameters, by their names in the user's model.
        buffers: the user's model's buffers, by name.
        summed_loss: see ``localise``.
        device: where the unit's own tensors (positions, constants) are made.
        halves: whether backward leaves gradients of weights for later (see ``weight_halves``).
        policy: which ops do not keep what they make (see ``keeping``).
    """
    root, experts = nn.Module(), nn.Module()
    sources: dict[str, ParameterSource] = {}
    for value, relative in local.block.parameters.items():
        name = full_name(unit, relative)
        routed = value in local.block.expert_dims
        attach(experts if routed else root, relative, parameters[name])
        own = f"experts.{relative}" if routed else f"body.{relative}"
        sources[own] = ParameterSource(name, Layout.parse(local.layouts.get(value, "R")))
    if local.block.expert_dims:
        root.add_module(EXPERTS, experts)
    updates = {local.block.buffers[value] for value in local.block.updates}
    for relative in local.block.buffers.values():
        buffer = buffers[full_name(unit, relative)]
        attach(root, relative, buffer.clone() if relative in updates else buffer)
    draws = any(op.random for op in local.block.ops)
    moves: dict[fx.Node, str] = {}
    graph = (
        localise(local, summed_loss, moves)
        if local.degree > 1 or local.cp_group or local.ep_group or summed_loss or draws
        else _unchanged(local.block)
    )
    put_on(graph, device)
    if halves:
        defer_weight_halves(graph)
    planned(f"policies.{unit.kind}", graph, policy or {}, moves)
    body = fx.GraphModule(root, graph, class_name=_class_name(unit))
    if local.block.expert_dims:
        del body._modules[EXPERTS]
        body.__dict__[EXPERTS] = experts  # to read, not to own
    return UnitModule(
        body,
        sources,
        recompute,
        {f"body.{relative}": full_name(unit, relative) for relative in sorted(updates)},
        draws,
        policy,
        experts if local.block.expert_dims else None,
    )


def full_name(unit: Unit, relative: str) -> str:
    """The name in the user's model of a parameter or buffer of ``unit``."""
    return f"{unit.path}.{relative}" if unit.path else relative


def _class_name(unit: Unit) -> str:
    return unit.kind.replace(".", "_")


def _unchanged(block: Block) -> fx.Graph:
    graph = fx.Graph()
    graph.output(graph.graph_copy(block.graph, {}))
    return graph


def put_on(graph: fx.Graph, device: torch.device) -> None:
    """Make on ``device`` what ``graph`` makes; models are traced on the CPU, and say so in every factory call."""
    for node in graph.nodes:
        if node.op == "call_function" and "device" in node.kwargs:
            node.kwargs = {**node.kwargs, "device": device}


def attach(root: nn.Module, name: str, tensor: Tensor) -> None:
    """Give ``root`` a parameter or buffer under a dotted name, making plain modules on the way."""
    *path, last = name.split(".")
    for part in path:
        if part not in root._modules:
            root.add_module(part, nn.Module())
        root = root._modules[part]  # type: ignore[assignment]
    if isinstance(tensor, nn.Parameter):
        root.register_parameter(last, tensor)
    else:
        root.register_buffer(last, tensor)


def local_parameter(
    whole: Tensor, layout: Layout, mesh: DeviceMesh | None, trainable: bool, expert_dim: int | None = None
) -> nn.Parameter:
    """This rank's parameter: a DTensor on ``mesh`` that holds its piece of ``whole`` (a copy, always).

    ``mesh`` is the tensor-parallel axis, which cuts as ``layout`` says, and before it, for a weight of experts, the
    one that shares them out along ``expert_dim``. A dim cut in parts is held in the order in which the ranks hold
    it, so that to DTensor it is a plain shard; ``runtime.state`` puts the order right when it is read.
    """
    piece = whole.detach()
    if mesh is None:
        return nn.Parameter(piece.clone(), requires_grad=trainable)
    layouts = [layout] if expert_dim is None else [shard(expert_dim), layout][: mesh.ndim]
    for axis, one in enumerate(layouts):
        if one.is_shard:
            piece = shard_of(piece, one, mesh.size(axis), mesh.get_local_rank(axis))
    if piece.untyped_storage().data_ptr() == whole.untyped_storage().data_ptr():
        piece = piece.clone()
    placements = [Shard(one.dim) if one.is_shard else Replicate() for one in layouts]
    return nn.Parameter(DTensor.from_local(piece, mesh, placements, run_check=False), requires_grad=trainable)
