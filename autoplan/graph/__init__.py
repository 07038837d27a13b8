"""What is trained: a model as data, traced once per distinct block."""

from autoplan.graph.ir import Block, ModelGraph, Op, Unit, Value

__all__ = ["Block", "ModelGraph", "Op", "Unit", "Value"]
