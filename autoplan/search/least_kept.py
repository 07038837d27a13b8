"""What a unit keeps at least for the seconds that it spends on making things again, whatever its layouts.

A value that is needed in the backward pass may lie in several layouts; one copy of it at least is kept, or the op that
made it runs again, from values of which the same holds. So with all copies of a value taken as one storage, as small
as any of them, and with each op at its fastest, minimum cuts (``keep_choice``) find what nothing is below: any op may
run again, as a unit that is recomputed in full runs even those that draw random numbers.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from autoplan.cost.storages import Step, Storage, Storages
from autoplan.graph.ir import Origin
from autoplan.graph.layout import REPLICATE

if TYPE_CHECKING:
    from autoplan.graph.ir import Block
    from autoplan.graph.strategy import Strategy

__all__ = ["least_storages", "lightened"]


def least_storages(
    block: Block,
    ways: Mapping[str, Sequence[Strategy]],
    forward_s: Mapping[str, float],
    degree: int,
    cp: int,
) -> Storages:
    """The storages of ``block`` in any layouts, on one of ``degree`` ranks of tp and ``cp`` ranks.

    Args:
        ways: how each op may run.
        forward_s: the least seconds of each op.
    """
    pieces = _in_pieces(block, ways)
    found, where = Storages(), dict[str, int]()
    sizes = {saved.root: saved.nbytes for op in block.ops for saved in op.saved if saved.root}
    counted: set[str | None] = set()

    def least(name: str, nbytes: float) -> float:
        return nbytes / (degree * cp if name in pieces else cp)

    for name, value in block.values.items():
        if value.origin is not Origin.OP:
            given = value.origin is Origin.INPUT and value.requires_grad
            where[name] = len(found.storages)
            found.storages.append(Storage(value.nbytes / (degree * cp) if given else 0.0, ""))
    for op in block.ops:
        value = block.values[op.output]
        if op.alias:
            at = where[op.alias]
            if degree * cp > 1:  # a view moves without what it is a view of
                storage = found.storages[at]
                storage.nbytes = min(storage.nbytes, least(op.output, value.nbytes))
        else:
            at = len(found.storages)
            whole = 0.0 if op.output in counted else sizes.get(op.output, value.nbytes)
            found.storages.append(Storage(least(op.output, whole), op.name))
        where[op.output] = at
        for name in op.keeps:
            found.storages[where[name]].needed = True
        if op.alias and not op.saved:
            continue
        inside = [saved for saved in op.saved if saved.root not in where]
        counted |= {saved.root for saved in inside if saved.root}
        shared = degree if any(way.share for way in ways[op.name]) else 1
        found.steps[op.name] = Step(
            op.name,
            tuple(dict.fromkeys(where[name] for name in op.inputs)),
            forward_s[op.name],
            0.0,
            sum(saved.nbytes for saved in inside) / (shared * cp),
            again=True,
            meets=False,
        )
    found.place = {(name, REPLICATE): at for name, at in where.items()}
    return found


def lightened(found: Storages, smaller: Collection[str], faster: Mapping[str, float]) -> Storages:
    """``found`` of a block of which nothing is known to be kept of the values ``smaller``, and the steps ``faster`` may
    take as few seconds."""
    gone = {found.place[name, REPLICATE] for name in smaller}
    storages = [
        replace(storage, nbytes=0.0) if index in gone else storage
        for index, storage in enumerate(found.storages)
    ]
    steps = {
        name: replace(step, forward_s=min(step.forward_s, faster[name])) if name in faster else step
        for name, step in found.steps.items()
    }
    return Storages(storages, steps)


def _in_pieces(block: Block, ways: Mapping[str, Sequence[Strategy]]) -> set[str]:
    """The values that some op can make or use in pieces, or that may pass between units so."""
    found = {*block.inputs, *block.outputs}
    for op in block.ops:
        for way in ways[op.name]:
            if way.output.is_shard:
                found.add(op.output)
            found.update(name for name, layout in zip(op.inputs, way.inputs, strict=True) if layout.is_shard)
    return found
