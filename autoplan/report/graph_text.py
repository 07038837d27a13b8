"""A traced model for people: the chain of units, then each distinct block once, op by op."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby

from autoplan.graph import Block, ModelGraph, Op, Value
from autoplan.graph.axes.notation import axes_text
from autoplan.report.layers import compress_names
from autoplan.units import bytes_binary, count

__all__ = ["graph_text", "value_text"]

_DTYPES = {
    "bfloat16": "bf16", "float16": "f16", "float32": "f32", "float64": "f64", "int64": "i64", "int32": "i32",
}  # fmt: skip
_NO_AXES = "(no axes: runs whole on every rank)"
_LONGEST_PERIOD = 12
_HEADER = ("op", "value", "axes", "FLOP", "bytes", "saved")


def graph_text(graph: ModelGraph, kinds: Sequence[str] | None = None, ops: bool = True) -> str:
    """The folded graph as text.

    Args:
        kinds: the blocks to list; None lists all.
        ops: False leaves the ops out: the chain and a line for each block.
    """
    lines = [*_summary(graph), "", *_chain(graph)]
    for name, block in graph.kinds.items():
        if kinds is None or name in kinds:
            lines += ["", *_block(graph, name, block, ops)]
    if kinds is None and graph.free.ops:
        lines += ["", *_free(graph, ops)]
    return "\n".join(line.rstrip() for line in lines) + "\n"


def value_text(value: Value) -> str:
    """``bf16[1, 2048, 4096]``."""
    return f"{_DTYPES.get(value.dtype, value.dtype)}{list(value.shape)}"


def _summary(graph: ModelGraph) -> Iterator[str]:
    blocks = [(graph.kinds[unit.kind]) for unit in graph.units]
    forward = sum(block.flops_forward for block in blocks)
    backward = sum(block.flops_backward for block in blocks)
    saved = sum(block.saved_bytes for block in blocks)
    yield (
        f"{graph.name}: {count(graph.parameter_count)} parameters, "
        f"{_plural(len(graph.units), 'unit')} of {_plural(len(graph.kinds), 'kind')}"
    )
    inputs = ", ".join(f"{name} {list(shape)}" for name, (shape, _) in graph.batch_inputs.items())
    yield (
        f"micro-batch of {graph.micro_batch} ({inputs}): forward {_flop(forward)}, "
        f"backward {_flop(backward)}, saved for backward {bytes_binary(saved)}"
    )


def _chain(graph: ModelGraph) -> Iterator[str]:
    yield "chain"
    rows = [(compress_names(names), str(times), kinds) for names, times, kinds in _chain_runs(graph)]
    widths = [max(len(row[i]) for row in rows) for i in range(2)]
    for names, times, kinds in rows:
        yield f"  {names:<{widths[0]}}  {times:>{widths[1]}} × {kinds}"
    if graph.unused:
        yield f"  never read: {compress_names(list(graph.unused))}"
    for meeting in graph.meetings:
        yield f"  samples meet, so the batch stays whole: {meeting}"
    for group in graph.tied:
        yield f"  tied: {' = '.join(_tied_name(graph, unit, value) for unit, value in group)}"


def _chain_runs(graph: ModelGraph) -> Iterator[tuple[list[str], int, str]]:
    """Unit names, a number of times, and the kinds that come that often in this order."""
    runs = [
        (kind, [unit.name for unit in units])
        for kind, units in groupby(graph.units, key=lambda unit: unit.kind)
    ]
    shapes = [(kind, len(names)) for kind, names in runs]
    index = 0
    while index < len(runs):
        period, times = _repetition(shapes, index)
        names = [name for _, part in runs[index : index + period * times] for name in part]
        if period == 1:
            yield names, len(names), runs[index][0]
        else:
            kinds = ", ".join(
                f"{n} × {kind}" if n > 1 else kind for kind, n in shapes[index : index + period]
            )
            yield names, times, f"({kinds})"
        index += period * times


def _repetition(shapes: Sequence[tuple[str, int]], start: int) -> tuple[int, int]:
    """The period from ``start`` on that covers most runs, and how often it comes; (1, 1) if nothing repeats."""
    best = (1, 1)
    for period in range(2, _LONGEST_PERIOD + 1):
        first, times = shapes[start : start + period], 1
        while shapes[start + times * period : start + (times + 1) * period] == first:
            times += 1
        if times > 1 and period * times > best[0] * best[1]:
            best = (period, times)
    return best


def _tied_name(graph: ModelGraph, unit_name: str, value: str) -> str:
    unit = next(unit for unit in graph.units if unit.name == unit_name)
    return f"{unit_name} {graph.kinds[unit.kind].parameters[value]}"


def _block(graph: ModelGraph, name: str, block: Block, ops: bool) -> Iterator[str]:
    title = f"{name} × {graph.count(name)}" + (f" ({block.path})" if block.path else "")
    yield (
        f"{title}: {count(block.parameter_count)} parameters, forward {_flop(block.flops_forward)}, "
        f"backward {_flop(block.flops_backward)}, saves {bytes_binary(block.saved_bytes)}"
    )
    if not ops:
        return
    yield from _values("in", block, block.inputs)
    for value, parameter in block.parameters.items():
        yield f"  parameter {parameter} {value_text(block.values[value])}"
    yield from _table(block)
    yield from _values("out", block, block.outputs)


def _free(graph: ModelGraph, ops: bool) -> Iterator[str]:
    yield f"free: {_plural(len(graph.free.ops), 'op')} without parameters, computed wherever they are needed"
    if ops:
        yield from _values("out", graph.free, graph.free.outputs)


def _values(label: str, block: Block, names: Sequence[str]) -> Iterator[str]:
    for name in names:
        yield f"  {label} {name} {value_text(block.values[name])}"


def _table(block: Block) -> Iterator[str]:
    rows: list[tuple[str, ...] | str] = [_HEADER]
    module = None
    for op in block.ops:
        if op.module_path != module:
            module = op.module_path
            rows.append(module or "(outside any module)")
        rows.append(_row(block, op))
    cells = [row for row in rows if isinstance(row, tuple)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(_HEADER))]
    for row in rows:
        if isinstance(row, str):
            yield f"  {row}"
            continue
        left = "  ".join(f"{row[i]:<{widths[i]}}" for i in range(3))
        right = "  ".join(f"{row[i]:>{widths[i]}}" for i in range(3, len(row)))
        yield f"    {left}  {right}"


def _row(block: Block, op: Op) -> tuple[str, ...]:
    saved = sum(item.nbytes for item in op.saved)
    return (
        op.name,
        value_text(block.values[op.output]),
        axes_text(block, op) or _NO_AXES,
        count(op.flops_forward).replace(" ", "") if op.flops_forward else "-",
        bytes_binary(op.bytes_forward) if op.bytes_forward else "-",
        bytes_binary(saved) if saved else "-",
    )


def _flop(number: int) -> str:
    text = count(number)
    return f"{text}FLOP" if text[-1].isalpha() else f"{text} FLOP"


def _plural(number: int, noun: str) -> str:
    return f"{number:,} {noun}" + ("" if number == 1 else "s")
