"""Runs a ModelGraph on real tensors, unit after unit, as its fields say; no code of the runtime is used."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx, nn

from autoplan.graph.ir import Block, ModelGraph


def run(graph: ModelGraph, model: nn.Module, batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """Every chain value, with the parameters and buffers of ``model``; ``graph.loss`` names the loss."""
    chain: dict[str, Any] = {f"batch.{key}": value for key, value in batch.items()}
    free = graph.free
    wanted = [node.target for node in free.graph.nodes if node.op == "placeholder"]
    outputs = _call(free, model, "", [chain[f"batch.{name}"] for name in wanted])
    chain |= {f"free.{name}": value for name, value in zip(free.outputs, outputs, strict=True)}
    for unit in graph.units:
        values = _call(graph.kinds[unit.kind], model, unit.path, [chain[name] for name in unit.arguments])
        chain |= dict(zip(unit.results, values, strict=True))
    return chain


def _call(block: Block, model: nn.Module, path: str, arguments: list[Any]) -> tuple[Any, ...]:
    tensors = dict(model.named_parameters(remove_duplicate=False)) | dict(
        model.named_buffers(remove_duplicate=False)
    )
    names = block.parameters | block.buffers
    waiting = iter(arguments)
    env: dict[fx.Node, Any] = {}
    for node in block.graph.nodes:
        if node.op == "placeholder":
            env[node] = next(waiting)
        elif node.op == "get_attr":
            env[node] = tensors[f"{path}.{names[node.name]}" if path else names[node.name]]
        elif node.op == "call_function":
            args, kwargs = fx.map_arg((node.args, node.kwargs), lambda n: env[n])
            env[node] = node.target(*args, **kwargs)
            _check_shape(node, env[node])
        else:
            return tuple(env[n] for n in node.args[0])
    raise AssertionError("a graph without an output")


def _check_shape(node: fx.Node, value: Any) -> None:
    expected = node.meta["val"]
    for got, fake in zip(
        value if isinstance(value, tuple | list) else [value],
        expected if isinstance(expected, tuple | list) else [expected],
        strict=True,
    ):
        if isinstance(fake, torch.Tensor):
            assert (got.shape, got.dtype) == (fake.shape, fake.dtype), f"{node.name}: traced as {fake}"
