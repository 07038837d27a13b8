"""The part of a backward that can wait: products of a value by a parameter, whose dW needs only what is kept.

For y = x · w both the gradient of x and that of w are products; the second may run later, and until then x and the
gradient of y stay.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from autoplan.verify.ways import Way

if TYPE_CHECKING:
    from autoplan.graph.ir import Block, Op

__all__ = ["kept_apart", "products_apart"]

_BY_A_WEIGHT = {"linear": 0, "mm": 0, "matmul": 0, "addmm": 1}
"""From an op to the place of x among its tensors; w comes next."""


def products_apart(block: Block) -> Iterator[tuple[Op, str]]:
    """Each such product of a block, and its x."""
    constant = {*block.parameters, *block.buffers}  # with what is made of these alone
    for op in block.ops:
        if op.inputs and constant.issuperset(op.inputs):
            constant.add(op.output)
    for op in block.ops:
        namespace, _, name = op.target.partition(".")
        name, _, overload = name.partition(".")
        place = _BY_A_WEIGHT.get(name)
        if namespace != "aten" or overload != "default" or place is None or len(op.inputs) < place + 2:
            continue
        x, w = (block.values[value] for value in op.inputs[place : place + 2])
        trains = w.name in constant and w.requires_grad and x.requires_grad
        if trains and len(w.shape) == 2 and len(x.shape) > 1:
            yield op, x.name


def kept_apart(block: Block, ways: Mapping[str, Way], degree: int) -> float:
    """Bytes that wait for the later half: each x once, and the gradient of each y."""
    found: dict[tuple[str, object], float] = {}
    total = 0.0
    for op, x in products_apart(block):
        way = ways[op.name]
        layout = way.inputs[op.inputs.index(x)]
        found[x, layout] = block.values[x].nbytes / (degree if layout.is_shard else 1)
        total += block.values[op.output].nbytes / (degree if way.output.is_shard else 1)
    return total + sum(found.values())
