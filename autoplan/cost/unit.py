"""The price of one unit of the chain when each of its ops runs under a given strategy."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from autoplan.cost.compute import cuts_experts, op_times, weight_half_s
from autoplan.cost.convert import conversion_times, local_bytes
from autoplan.cost.keep import FULL, NONE, Keep, hull, keep_of
from autoplan.cost.storages import Storages, storages_of
from autoplan.cost.times import NO_TIME, Times
from autoplan.errors import PlanError
from autoplan.graph.boundary import boundary_layout
from autoplan.graph.ir import Block, Op, OpKind, Origin
from autoplan.graph.layout import REPLICATE, Layout
from autoplan.graph.strategy import Strategy
from autoplan.graph.weight_halves import halved_product

if TYPE_CHECKING:
    from autoplan.cost.degrees import Degrees
    from autoplan.hardware import Cluster

__all__ = ["Policies", "PoliciesOf", "StrategiesOf", "UnitCost", "saved_bytes", "unit_cost"]

StrategiesOf = Callable[[Block, Op, int], tuple[Strategy, ...]]
"""``graph.axes.strategies``, or a stand-in for it."""

Policies = Mapping[str, Mapping[str, str]]
"""By name: of each op (or change of layout) that does not keep what it makes, ``recompute`` or ``offload``."""

PoliciesOf = Callable[[Block, Storages, Times], Policies]
"""What finds the policies that are worth it for a block."""


@dataclass(frozen=True, slots=True)
class UnitCost:
    """One unit on one tp rank, for one micro-batch.

    Args:
        times: seconds of both passes, without those of the parameters' data axes.
        saved_bytes: what backward keeps.
        input_bytes: the unit's inputs that carry a gradient: what a recomputed unit keeps instead.
        workspace_bytes: the largest gradients of one op's result and inputs, alive while its backward runs.
        parameters: elements that the rank holds before the data axes cut them.
        trainable: those of them that have a gradient.
        sizes: elements of each parameter by value name.
        weight_half_s: of the backward's seconds, those of products dW that can run apart.
        weight_half_bytes: what is kept between the two halves: those products' inputs and gradients.
        keeps: what the unit keeps, and what making the rest again takes, under policies by name.
        frontier: the lower hull of (bytes kept, seconds spent again) that no way is below; empty: of those above.
        experts: of ``parameters``, those of experts that an ep axis has shared out: fewer ranks shard them.
        trainable_experts: those of them that have a gradient.
    """

    times: Times
    saved_bytes: float
    input_bytes: float
    workspace_bytes: float
    parameters: float
    trainable: float
    sizes: Mapping[str, float]
    weight_half_s: float = 0.0
    weight_half_bytes: float = 0.0
    keeps: Mapping[str, Keep] = field(default_factory=dict)
    frontier: tuple[tuple[float, float], ...] = ()
    experts: float = 0.0
    trainable_experts: float = 0.0

    @property
    def least_again(self) -> tuple[tuple[float, float], ...]:
        """``frontier``, from all that is kept on, bytes falling."""
        if self.frontier:
            return self.frontier
        ways = [self.keep(name) for name in (NONE, FULL, *self.keeps)]
        return hull([(way.kept_bytes, way.rerun_s) for way in ways if not way.host_bytes])

    def keep(self, name: str) -> Keep:
        """Of the policy ``name``, one of ``keeps``, ``none`` (all that backward reads) or ``full`` (the inputs)."""
        if name == NONE:
            return Keep(self.saved_bytes)
        if name == FULL:
            times = self.times
            return Keep(self.input_bytes, times.forward_s, times.forward_comm_s, self.saved_bytes)
        return self.keeps[name]

    def stored(self, degrees: Degrees) -> float:
        """The parameters that take as much state when ``shard_ranks`` share them as this unit's do."""
        return self.parameters + self.experts * (degrees.expert_spread - 1)

    def stepped(self, degrees: Degrees) -> float:
        """The same of those that have a gradient."""
        return self.trainable + self.trainable_experts * (degrees.expert_spread - 1)


def unit_cost(
    block: Block,
    chosen: Mapping[str, str],
    boundary: Layout,
    degree: int,
    cluster: Cluster,
    strategies_of: StrategiesOf,
    policies: Policies | PoliciesOf | None = None,
) -> UnitCost:
    """Price ``block`` under ``chosen``, a plan's strategy names and parameter layouts (R where absent).

    ``policies`` are those of ``keeps``, or what finds them.

    Raises PlanError for a name that the block does not have, or that is none of an op's strategies.
    """
    strategies = {
        op.name: _strategy(block, op, chosen.get(op.name, "R"), degree, strategies_of) for op in block.ops
    }
    stored = {name: Layout.parse(chosen.get(name, "R")) for name in block.parameters}
    _refuse_strangers(block, chosen)

    times, workspace, half_s = NO_TIME, 0.0, 0.0
    of_op: dict[str, Times] = {}
    halves: dict[tuple[str, Layout], float] = {}
    for op in block.ops:
        strategy = strategies[op.name]
        half_s += weight_half_s(block, op, strategy, degree, cluster)
        halves |= weight_half_values(block, op, strategy, degree)
        of_op[op.name] = op_times(block, op, strategy, degree, cluster)
        times += of_op[op.name]
        workspace = max(workspace, _workspace_bytes(block, op, strategy, degree))
    produced = _produced(block, strategies, stored, boundary, degree)
    for name, wanted in _demanded(block, strategies, boundary, degree):
        times += conversion_times(block.values[name], produced[name], wanted, degree, cluster)

    storages = storages_of(block, strategies, stored, boundary, degree, cluster, of_op)
    if callable(policies):
        policies = policies(block, storages, times)
    inputs = (block.values[name] for name in block.inputs)
    sizes = {n: math.prod(stored[n].local_shape(block.values[n].shape, degree)) for n in block.parameters}
    return UnitCost(
        times=times,
        saved_bytes=storages.kept_bytes,
        input_bytes=sum(
            local_bytes(v, boundary_layout(v, boundary, degree), degree) for v in inputs if v.requires_grad
        ),
        workspace_bytes=workspace,
        parameters=sum(sizes.values()),
        trainable=sum(size for name, size in sizes.items() if block.values[name].requires_grad),
        sizes=sizes,
        weight_half_s=half_s,
        weight_half_bytes=sum(halves.values()),
        keeps={
            name: keep_of(f"policies.{block.kind}.{name}", storages, policy, cluster)
            for name, policy in (policies or {}).items()
        },
        experts=sum(sizes[name] for name in block.expert_dims),
        trainable_experts=sum(sizes[name] for name in block.expert_dims if block.values[name].requires_grad),
    )


def weight_half_values(
    block: Block, op: Op, strategy: Strategy, degree: int
) -> dict[tuple[str, Layout], float]:
    """Bytes that ``op`` keeps between the halves of its backward, by what it keeps: its input, which others may
    share, and its result's gradient."""
    found = halved_product(block, op)
    if found is None:
        return {}
    x = found[0]
    layout = strategy.inputs[op.inputs.index(x)]
    return {
        (x, layout): local_bytes(block.values[x], layout, degree),
        (f"gradient of {op.output}", strategy.output): local_bytes(
            block.values[op.output], strategy.output, degree
        ),
    }


def saved_bytes(op: Op, strategy: Strategy, degree: int) -> float:
    """Bytes that ``op`` is the first to keep for backward on one of ``degree`` ranks."""
    layouts = dict(zip(op.inputs, strategy.inputs, strict=False)) | {op.output: strategy.output}
    total = 0.0
    for saved in op.saved:
        cut = strategy.share if saved.value is None else layouts.get(saved.value, REPLICATE).is_shard
        total += saved.nbytes / degree if cut else saved.nbytes
    return total


def _workspace_bytes(block: Block, op: Op, strategy: Strategy, degree: int) -> float:
    """The gradients of an op's result and of its inputs; the values themselves are what backward keeps."""
    total = (
        local_bytes(block.values[op.output], strategy.output, degree) if op.output in block.values else 0.0
    )
    if op.kind is OpKind.ATTENTION:  # keys, values and their gradients, gathered or on their way
        cut = degree if strategy.share else 1
        total += sum(send.nbytes for send in op.sends if send.phase == "backward") / cut
    if cuts_experts(op, strategy) and op.routing is not None and op.gemm is not None:
        # the kernel brings its own experts' rows to the front: a copy of the rows, and of the result
        rows = block.values[op.inputs[0]].nbytes + block.values[op.output].nbytes
        total += op.routing.room(op.gemm.batch, degree) * rows
    for name, layout in zip(op.inputs, strategy.inputs, strict=False):
        value = block.values[name]
        if value.requires_grad and value.origin is not Origin.PARAMETER:
            total += local_bytes(value, layout, degree)
    return total


def _strategy(block: Block, op: Op, name: str, degree: int, strategies_of: StrategiesOf) -> Strategy:
    if degree == 1:
        whole = (REPLICATE,) * len(op.inputs)
        return Strategy("R", whole, REPLICATE, share=False)
    known = strategies_of(block, op, degree)
    for strategy in known:
        if strategy.name == name:
            return strategy
    raise PlanError(
        f"layouts.{block.kind}.{op.name}",
        name,
        "one of " + ", ".join(s.name for s in known),
        "correct the plan file",
    )


def _refuse_strangers(block: Block, chosen: Mapping[str, str]) -> None:
    known = {op.name for op in block.ops} | set(block.parameters)
    for name in chosen:
        if name not in known:
            raise PlanError(
                f"layouts.{block.kind}",
                name,
                "an op or parameter of this block",
                "search again for this model",
            )


def _produced(
    block: Block,
    strategies: Mapping[str, Strategy],
    stored: Mapping[str, Layout],
    boundary: Layout,
    degree: int,
) -> dict[str, Layout]:
    produced = {name: boundary_layout(block.values[name], boundary, degree) for name in block.inputs}
    produced |= dict.fromkeys(block.buffers, REPLICATE)
    produced |= stored
    produced |= {op.output: strategies[op.name].output for op in block.ops}
    return produced


def _demanded(
    block: Block, strategies: Mapping[str, Strategy], boundary: Layout, degree: int
) -> list[tuple[str, Layout]]:
    """Each value and layout that someone needs, once: the program keeps a converted value."""
    wanted = [
        (name, layout)
        for op in block.ops
        for name, layout in zip(op.inputs, strategies[op.name].inputs, strict=True)
    ]
    wanted += [(name, boundary_layout(block.values[name], boundary, degree)) for name in block.outputs]
    return list(dict.fromkeys(wanted))
