"""Finding where samples of a batch meet before the loss.

A plan cuts the batch, which leaves the loss what it was only if each sample goes its own way until the
final mean. Where samples meet (statistics of a batch norm, the pairs of a contrastive loss, a reduction over
the batch), the model is planned with its batch whole: one data rank, one micro-batch.

Each value is followed by the dim that holds the samples (``batch_dims``). Where an op loses track of it,
samples are taken to be apart, but for what runs over dim 0.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import fx

from autoplan.graph.batch_dims import UNKNOWN, SamplesMeet, batch_dim, runs_over
from autoplan.graph.ir import Block, ModelGraph

__all__ = ["meetings"]

_NOT_THEIRS = Path(__file__).parent, Path(torch.__file__).parent
_Places = dict[str, int | None]


def meetings(graph: ModelGraph, means: list[fx.Node]) -> tuple[tuple[str, ...], bool]:
    """``module path: op at file:line`` for each op of the model in which samples meet, each once; and whether all is
    sure. It is not where an op runs over a dim that may or may not hold samples, as far as its size tells.

    Samples also meet in a buffer that forward changes, as it does so once for the whole batch.

    Torch keeps the lines of modules, not of a loss that is a function.

    Args:
        graph: the model.
        means: the nodes of its graphs that take the loss's mean over the batch, where samples should meet.
    """
    chain: _Places = {f"batch.{name}": 0 for name in graph.batch_inputs}
    names = [f"batch.{node.target}" for node in graph.free.graph.nodes if node.op == "placeholder"]
    _, places = _follow(graph.free, [chain[name] for name in names], means, graph.micro_batch)
    chain |= {f"free.{name}": places[name] for name in graph.free.outputs}
    seen: dict[tuple[str, tuple[int | None, ...]], tuple[list[tuple[str, bool]], _Places]] = {}
    found: list[str] = []
    sure = True
    for unit in graph.units:
        block = graph.kinds[unit.kind]
        given = tuple(chain[name] for name in unit.arguments)
        if (unit.kind, given) not in seen:
            seen[unit.kind, given] = _follow(block, list(given), means, graph.micro_batch)
            texts = seen[unit.kind, given][0]
            found.extend(text for text, _ in texts)
            sure &= all(known for _, known in texts)
        places = seen[unit.kind, given][1]
        chain |= {r: places[name] for r, name in zip(unit.results, block.outputs, strict=True)}
    for block in graph.kinds.values():
        found.extend(f"{block.path or block.kind}: changes {block.buffers[name]}" for name in block.updates)
    return tuple(dict.fromkeys(found)), sure


def _follow(
    block: Block, given: list[int | None], means: list[fx.Node], samples: int
) -> tuple[list[tuple[str, bool]], _Places]:
    """The ops of ``block`` in which samples meet (is it sure?), and where the samples are in each of its values."""
    found: list[tuple[str, bool]] = []
    places: dict[fx.Node, int | None] = {}
    waiting = iter(given)
    for node in block.graph.nodes:
        if node.op == "placeholder":
            places[node] = next(waiting)
        elif node.op == "get_attr":
            places[node] = None
        elif node.op == "call_function":
            places[node], meet = _place(node, places, samples)
            if meet and node not in means and _is_differentiable(block, node):
                path = next((op.module_path for op in block.ops if op.name == node.name), "")
                sure = UNKNOWN not in (places[source] for source in node.all_input_nodes)
                found.append((f"{path or 'loss'}: {node.target}{_line(node)}", sure))
    return found, {node.name: place for node, place in places.items()}


def _place(node: fx.Node, places: dict[fx.Node, int | None], samples: int) -> tuple[int | None, bool]:
    """Where the samples are in the result, and whether they meet in this op."""
    held = {source: places[source] for source in node.all_input_nodes}
    if all(place is None for place in held.values()):
        return None, False
    if UNKNOWN in held.values():
        return UNKNOWN, runs_over(node, 0) and _outermost(node) % samples == 0
    try:
        return batch_dim(node, held, samples), False
    except SamplesMeet:
        return UNKNOWN, True


def _outermost(node: fx.Node) -> int:
    source = node.args[0]
    return int(source.meta["val"].shape[0]) if isinstance(source, fx.Node) else 0


def _is_differentiable(block: Block, node: fx.Node) -> bool:
    """Whether a gradient flows through the op; what one does not is a target, a mask or a count."""
    return node.name in block.values and block.values[node.name].requires_grad


def _line(node: fx.Node) -> str:
    """`` at file:line`` of the user's call, where torch kept it."""
    stack = [line.strip() for line in str(node.meta.get("stack_trace") or "").splitlines()]
    calls = [line.removeprefix("File ").partition(", line ") for line in stack if line.startswith("File ")]
    lines = [(Path(file.strip('"')), rest.partition(",")[0]) for file, _, rest in calls]
    theirs = [
        (file, line) for file, line in lines if not any(file.is_relative_to(own) for own in _NOT_THEIRS)
    ]
    return f" at {theirs[-1][0].name}:{theirs[-1][1]}" if theirs else ""
