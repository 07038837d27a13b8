"""What every way to cut a block does: take its graph node by node, and write down one rank's part of it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import replace

from torch import fx

from autoplan.graph.ir import Block, Op, Value

__all__ = ["Cutter"]


class Cutter(ABC):
    """Makes one rank's part of ``block``: a ``graph`` with its ``ops`` and ``values``. Names in ``taken`` are no longer
    free for what is new in it."""

    def __init__(self, block: Block, degree: int) -> None:
        self.block, self.degree = block, degree
        self.graph = fx.Graph()
        self.by_name = {op.name: op for op in block.ops}
        self.ops: list[Op] = []
        self.values: dict[str, Value] = {}
        self.taken = {node.name for node in block.graph.nodes}

    def run(self) -> Block:
        """One rank's part of the block."""
        outputs: list[fx.Node] = []
        for node in self.block.graph.nodes:
            if node.op in ("placeholder", "get_attr"):
                self._source(node)
            elif node.op == "call_function":
                self._call(node)
            else:
                outputs = [self._given(n) for n in node.args[0]]
                self.graph.output(tuple(outputs)).meta["val"] = tuple(n.meta["val"] for n in outputs)
        self.graph.lint()
        names = [node.name for node in outputs]
        return replace(
            self.block,
            ops=tuple(self.ops),
            values=self.values,
            outputs=tuple(names),
            graph=self.graph,
            roots={name: root for name, root in self.block.roots.items() if name in names},
            _strategies={},
        )

    @abstractmethod
    def _source(self, node: fx.Node) -> None:
        """Write down an input, parameter or buffer."""

    @abstractmethod
    def _call(self, node: fx.Node) -> None:
        """Write down an op."""

    @abstractmethod
    def _given(self, node: fx.Node) -> fx.Node:
        """What stands for an output."""
