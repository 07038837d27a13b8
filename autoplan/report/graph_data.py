"""A traced model for programs: JSON with everything that the text shows, and a DOT drawing of it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from autoplan.graph import Block, ModelGraph, Op, Value
from autoplan.graph.axes.notation import axes_text
from autoplan.report.graph_text import value_text

__all__ = ["graph_dot", "graph_json"]

_COLOURS = {"gemm": "#cfe2f3", "attention": "#d9d2e9", "memory": "#ffffff", "view": "#eeeeee"}


def graph_json(graph: ModelGraph) -> dict[str, Any]:
    """The folded graph as plain data. Bytes and FLOP are numbers, for one micro-batch on one rank."""
    return {
        "name": graph.name,
        "fingerprint": graph.fingerprint,
        "micro_batch": graph.micro_batch,
        "parameters": graph.parameter_count,
        "batch": {
            name: {"shape": list(shape), "dtype": dtype}
            for name, (shape, dtype) in graph.batch_inputs.items()
        },
        "loss": graph.loss,
        "weight": graph.weight,
        "tied": [[{"unit": unit, "value": value} for unit, value in group] for group in graph.tied],
        "unused": {name: list(shape) for name, shape in graph.unused.items()},
        "meetings": list(graph.meetings),
        "units": [
            {
                "name": unit.name,
                "kind": unit.kind,
                "path": unit.path,
                "arguments": list(unit.arguments),
                "results": list(unit.results),
            }
            for unit in graph.units
        ],
        "kinds": {name: _block(block, graph.count(name)) for name, block in graph.kinds.items()},
        "free": _block(graph.free, 1),
    }


def _block(block: Block, copies: int) -> dict[str, Any]:
    return {
        "path": block.path,
        "count": copies,
        "parameters": block.parameter_count,
        "flops_forward": block.flops_forward,
        "flops_backward": block.flops_backward,
        "saved_bytes": block.saved_bytes,
        "inputs": list(block.inputs),
        "outputs": list(block.outputs),
        "parameter_names": dict(block.parameters),
        "buffer_names": dict(block.buffers),
        "values": {name: _value(value) for name, value in block.values.items()},
        "ops": [_op(block, op) for op in block.ops],
    }


def _value(value: Value) -> dict[str, Any]:
    return {
        "shape": list(value.shape),
        "dtype": value.dtype,
        "origin": value.origin.value,
        "requires_grad": value.requires_grad,
    }


def _op(block: Block, op: Op) -> dict[str, Any]:
    return {
        "name": op.name,
        "target": op.target,
        "module": op.module_path,
        "kind": op.kind.value,
        "axes": axes_text(block, op),
        "inputs": list(op.inputs),
        "output": op.output,
        "flops_forward": op.flops_forward,
        "flops_backward": op.flops_backward,
        "bytes_forward": op.bytes_forward,
        "bytes_backward": op.bytes_backward,
        "saved": [{"value": item.value, "bytes": item.nbytes} for item in op.saved],
        "random": op.random,
    }


def graph_dot(graph: ModelGraph) -> str:
    """Graphviz DOT: the chain on one side, and each distinct block as a cluster of its ops."""
    lines = [
        "digraph model {",
        '  node [shape=box, style=filled, fillcolor="#ffffff", fontname="monospace"];',
    ]
    lines += _chain_dot(graph)
    for number, (name, block) in enumerate(graph.kinds.items()):
        lines += _block_dot(f"k{number}", f"{name} × {graph.count(name)}", block)
    return "\n".join([*lines, "}"]) + "\n"


def _chain_dot(graph: ModelGraph) -> Iterator[str]:
    """Consecutive copies of one kind are one node; an edge is a value that flows between two nodes."""
    runs: list[list[str]] = []
    node_of: dict[str, int] = {}
    kinds: list[str] = []
    for unit in graph.units:
        if not kinds or kinds[-1] != unit.kind:
            kinds.append(unit.kind)
            runs.append([])
        runs[-1].append(unit.name)
        node_of.update(dict.fromkeys(unit.results, len(runs) - 1))
    yield "  subgraph cluster_chain {"
    yield f"    label={_quoted(graph.name)};"
    for index, names in enumerate(runs):
        shown = names[0] if len(names) == 1 else f"{names[0]} … {names[-1]} ({len(names)})"
        yield f"    u{index} [label={_quoted(shown)}];"
    edges = {
        (node_of[read], node_of[unit.results[0]])
        for unit in graph.units
        for read in unit.arguments
        if read in node_of and unit.results
    }
    for source, target in sorted(edges):
        if source != target:
            yield f"    u{source} -> u{target};"
    yield "  }"


def _block_dot(prefix: str, title: str, block: Block) -> Iterator[str]:
    ids = {name: f"{prefix}_v{index}" for index, name in enumerate(block.values)}
    yield f"  subgraph cluster_{prefix} {{"
    yield f"    label={_quoted(title)};"
    for name in (*block.inputs, *block.parameters, *block.buffers):
        yield f"    {ids[name]} [label={_quoted(f'{name} {value_text(block.values[name])}')}, shape=ellipse];"
    for op in block.ops:
        label = "\n".join(filter(None, (op.name, axes_text(block, op), value_text(block.values[op.output]))))
        yield f'    {ids[op.output]} [label={_quoted(label)}, fillcolor="{_COLOURS[op.kind.value]}"];'
        for source in dict.fromkeys(op.inputs):
            if source in ids:
                yield f"    {ids[source]} -> {ids[op.output]};"
    yield "  }"


def _quoted(text: str) -> str:
    """A DOT string; JSON's escapes are a subset of what Graphviz reads, but for other alphabets."""
    return json.dumps(text, ensure_ascii=False)
