"""The blocks of a model, and what every unit may read, as classes of a script."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

import torch

from autoplan.emit.code import GROUPS, Code, forward_code
from autoplan.graph.chain import extract
from autoplan.graph.ir import Block, ModelGraph, Op
from autoplan.graph.layout import Layout
from autoplan.plan import SCHEDULE_NEEDS, Plan
from autoplan.rewrite.keeping import planned_nodes
from autoplan.rewrite.local_graph import LocalBlock, localise
from autoplan.rewrite.random_calls import draw_in
from autoplan.rewrite.unit_module import put_on
from autoplan.rewrite.weight_halves import defer_weight_halves

__all__ = ["BlockCode", "block_class", "block_code", "free_class", "free_code"]


@dataclass(frozen=True, slots=True)
class BlockCode:
    """A block's method, and the names of its inputs."""

    code: Code
    inputs: tuple[str, ...]


def _policies_of(plan: Plan, graph: ModelGraph, kind: str) -> dict[str, dict[str, str]]:
    """The policies that some unit of a kind is under, by name."""
    kinds = {unit.name: unit.kind for unit in graph.units}
    ways = {
        way
        for stage in plan.stages
        for unit, way in stage.policies.items()
        if kinds[unit] == kind and unit not in stage.recompute
    }
    return {name: plan.policies[kind][name] for name in sorted(ways)}


def block_code(graph: ModelGraph, block: Block, plan: Plan) -> BlockCode:
    """What one rank runs of ``block``, a block of ``graph`` (one rank's part of the model, where cp or ep cut it)."""
    local = LocalBlock(
        block,
        plan.layouts.get(block.kind, {}),
        Layout.parse(plan.boundary),
        plan.tp,
        GROUPS["tp"],
        GROUPS["cp"] if plan.cp > 1 else "",
        GROUPS["ep"] if block.expert_dims else "",
        plan.ep,
    )
    losses = [op.name for op in block.ops if "cross_entropy_loss" in op.target]
    holds_loss = any(graph.loss in unit.results for unit in graph.units if unit.kind == block.kind)
    summed = losses[-1] if graph.weight is not None and holds_loss else None
    moves: dict[torch.fx.Node, str] = {}
    if plan.tp > 1 or plan.cp > 1 or block.expert_dims or summed or any(op.random for op in block.ops):
        made = localise(local, summed, moves)
    else:
        made = torch.fx.Graph()
        made.output(made.graph_copy(block.graph, {}))
    put_on(made, torch.device("cpu"))
    if SCHEDULE_NEEDS[plan.schedule].halves:
        defer_weight_halves(made)
    named = {
        step: action
        for policy in _policies_of(plan, graph, block.kind).values()
        for step, action in policy.items()
    }
    steps = planned_nodes(f"policies.{block.kind}", made, named, moves)
    inputs = tuple(node.name for node in made.nodes if node.op == "placeholder")
    paths = {op.name: op.module_path for op in block.ops if op.module_path or not _put_in(op)}
    return BlockCode(forward_code(made, paths, steps), inputs)


def _put_in(op: Op) -> bool:
    """True for what cutting the model put in."""
    return op.target.startswith("autoplan.")


def free_code(graph: ModelGraph, names: list[str]) -> Code:
    """What computes the free values ``names`` from the batch."""
    source = graph.free.graph
    nodes = {f"free.{node.name}": node for node in source.nodes}
    made = extract(source, [nodes[name] for name in names], [], keep=set(source.nodes))
    draw_in(made)
    put_on(made, torch.device("cpu"))
    return forward_code(made)


def block_class(graph: ModelGraph, kind: str, name: str, plan: Plan, made: BlockCode) -> str:
    """The class of a kind of block: which tensors it has, and its method."""
    block = graph.kinds[kind]
    layouts = plan.layouts.get(kind, {})
    units = [unit.name for unit in graph.units if unit.kind == kind]
    parameters = {relative: layouts.get(value, "R") for value, relative in block.parameters.items()}
    changed = {block.buffers[value] for value in block.updates}
    shown = ", ".join(units) if len(units) < 4 else f"{units[0]} to {units[-1]}, {len(units)} times"
    facts = [
        f"parameters_and_layouts = {_table(parameters)}",
        f"buffer_names = {sorted(block.buffers.values())!r}",
        f"changed_buffers = {sorted(changed)!r}",
    ]
    if graph.draws:
        facts.append(f"draws = {any(op.random for op in block.ops)}")
    if any(stage.policies for stage in plan.stages):
        policies = _policies_of(plan, graph, kind)
        facts.append(
            f"policies = {_table({name: _table(policy, 2) for name, policy in policies.items()}, literal=True)}"
        )
        facts.append(f"inputs = {list(made.inputs)!r}")
    if plan.ep > 1:
        experts = {
            relative: block.expert_dims[value]
            for value, relative in block.parameters.items()
            if value in block.expert_dims
        }
        facts.append(f"expert_dims = {experts!r}")
    return "\n".join(
        [
            f"class {name}(nn.Module):",
            f'    """{shown}."""',
            "",
            *(f"    {fact}" for fact in facts),
            "",
            made.code.text,
        ]
    )


def _table(entries: Mapping[str, str], depth: int = 1, literal: bool = False) -> str:
    if not entries:
        return "{}"
    inside = "    " * (depth + 1)
    rows = "".join(
        f"{inside}{key!r}: {value if literal else repr(value)},\n" for key, value in entries.items()
    )
    return "{\n" + rows + "    " * depth + "}"


def free_class(name: str, code: Code, doc: str) -> str:
    """The class of a module that computes free values."""
    reads = re.findall(r"self\.([A-Za-z_][\w.]*)", code.text)
    return "\n".join(
        [
            f"class {name}(nn.Module):",
            f'    """{doc}"""',
            "",
            f"    buffer_names = {sorted(set(reads))!r}",
            "",
            code.text,
        ]
    )
