"""Which ops' backward falls into two halves that can run apart: the gradient of the input, and of the weight."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from autoplan.graph.ir import Block, Op

__all__ = ["halved_product"]

_WEIGHT = {"aten.linear.default": 1, "aten.mm.default": 1, "aten.matmul.default": 1, "aten.addmm.default": 2}
"""From an op to the place of its weight among its tensors; its input is just before."""


def halved_product(block: Block, op: Op) -> tuple[str, str] | None:
    """(input, weight) of a product of a value by a parameter, or by what is made of parameters alone, where both
    have a gradient; None for any other op. A program of a zero-bubble schedule halves exactly these."""
    place = _WEIGHT.get(op.target)
    if place is None or len(op.inputs) <= place:
        return None
    x, weight = op.inputs[place - 1], op.inputs[place]
    if not (block.values[x].requires_grad and block.values[weight].requires_grad):
        return None
    flat = len(block.values[weight].shape) == 2 and len(block.values[x].shape) >= 2
    return (x, weight) if flat and _of_parameters(block, weight) else None


def _of_parameters(block: Block, name: str) -> bool:
    if name in block.parameters or name in block.buffers:
        return True
    made = next((op for op in block.ops if op.output == name), None)
    return made is not None and bool(made.inputs) and all(_of_parameters(block, n) for n in made.inputs)
