"""What backward reads of a unit on one rank: every storage once, in each layout that it is read in."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from autoplan.graph.layout import REPLICATE, REPLICATE_STAR, Layout
from autoplan.verify.ways import Way

if TYPE_CHECKING:
    from autoplan.graph.ir import Block

__all__ = ["kept_bytes"]

_Home = tuple[str, str]
"""A value that lies in a storage of its own, and how."""


def kept_bytes(block: Block, ways: Mapping[str, Way], made: Mapping[str, Layout], degree: int) -> float:
    """Bytes on one of ``degree`` ranks; ``made``: how each value lies where it comes from."""
    first = {saved.root: saved.nbytes for op in block.ops for saved in op.saved if saved.root}
    home: dict[str, _Home] = {name: (name, "as it is") for name in made}
    sizes: dict[_Home, float] = {}
    for name in block.inputs:
        if block.values[name].requires_grad:
            sizes[home[name]] = block.values[name].nbytes / (degree if made[name].is_shard else 1)
    read: set[_Home] = set()
    total, apart = 0.0, set()

    def at(name: str, wanted: Layout) -> _Home:
        have, value = made[name], block.values[name]
        if not value.requires_grad:
            have, wanted = (REPLICATE if layout == REPLICATE_STAR else layout for layout in (have, wanted))
        if str(have).rstrip("*") == str(wanted).rstrip("*"):
            return home[name]
        sizes[name, str(wanted)] = value.nbytes / (degree if wanted.is_shard else 1)
        return name, str(wanted)

    seen = set(block.inputs) | set(block.parameters) | set(block.buffers)
    for op in block.ops:
        way = ways[op.name]
        places = {name: at(name, layout) for name, layout in zip(op.inputs, way.inputs, strict=True)}
        if op.alias:
            home[op.output] = places[op.alias]
        else:
            whole = 0 if op.output in apart else first.get(op.output, block.values[op.output].nbytes)
            sizes[home[op.output]] = whole / (degree if way.output.is_shard else 1)
        places[op.output] = home[op.output]
        seen.add(op.output)
        read |= {places[name] for name in op.keeps}
        for saved in op.saved:
            if saved.root not in seen:
                total += saved.nbytes / (degree if way.shares else 1)
                apart.add(saved.root)
    return total + sum(sizes.get(place, 0.0) for place in read)
