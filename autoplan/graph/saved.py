"""What the backward pass keeps of a whole model: every storage once, whoever keeps it.

``Block.saved_bytes`` counts what a block keeps when it is run alone. In the chain two units may keep the same
tensor (what one's ReLU made and the next one's convolution reads), and all keep the same masks and tables.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from autoplan.graph.ir import Block, ModelGraph

__all__ = ["saved_bytes"]

_Storage = tuple[str, str]
"""The unit (or ``free`` or ``batch``) that makes a storage, and the name of the first value in it."""


def saved_bytes(graph: ModelGraph) -> int:
    """Bytes kept for backward by one micro-batch of the whole chain on one rank, parameters and buffers left out."""
    free = graph.free
    sizes: dict[_Storage, int] = {}
    storage: dict[str, _Storage] = {}
    for node in free.graph.nodes:
        if node.op == "placeholder":
            storage[f"batch.{node.target}"] = ("free", node.name)
    for name in free.outputs:
        storage[f"free.{name}"] = ("free", free.roots.get(name, name))
    for unit in graph.units:
        block = graph.kinds[unit.kind]
        inside = dict(zip(block.inputs, unit.arguments, strict=True))
        for name in inside.values():
            storage.setdefault(name, ("batch", name))

        def placed(name: str, inside: dict[str, str] = inside, unit_name: str = unit.name) -> _Storage:
            return storage[inside[name]] if name in inside else (unit_name, name)

        for name in block.shared:
            sizes[placed(name)] = _nbytes(placed(name), name, free, block)
        for op in block.ops:
            for index, saved in enumerate(op.saved):
                key = placed(saved.root) if saved.root else (unit.name, f"{op.name}/{index}")
                sizes[key] = saved.nbytes
        for name, result in zip(block.outputs, unit.results, strict=True):
            storage[result] = placed(block.roots.get(name, name))
    return sum(sizes.values())


def _nbytes(key: _Storage, name: str, free: Block, block: Block) -> int:
    return free.values[key[1]].nbytes if key[0] == "free" else block.values[name].nbytes
