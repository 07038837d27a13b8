"""What a unit's backward pass needs of its forward pass, storage by storage, on one rank.

A *storage* is memory of one rank: what an op made, in the layout that it made it in, with every view of it; a copy
of it in another layout; or an input of the unit. Each is kept, or dropped and made again by the step that made it:

    h ─ rms_norm ─→ [rms_norm] ─ gather ─→ [rms_norm:R] ─ linear ─→ [linear] …
        step        storage      step      storage        step

``cost.keep`` says what that comes to for a set of steps that run again (and one whose results wait in the host's
memory), and ``search.keep_choice`` which sets are worth it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from autoplan.cost.compute import op_times
from autoplan.cost.convert import conversion_times, local_bytes
from autoplan.graph.boundary import boundary_layout
from autoplan.graph.ir import Block, Op, OpKind, Origin
from autoplan.graph.layout import REPLICATE, REPLICATE_STAR, Layout

if TYPE_CHECKING:
    from autoplan.cost.times import Times
    from autoplan.graph.strategy import Strategy
    from autoplan.hardware import Cluster

__all__ = ["Step", "Storage", "Storages", "storages_of"]


@dataclass(slots=True)
class Storage:
    """``nbytes`` on this rank (0 for what stays anyway: weights and tables as they lie); ``maker`` the step that makes it, empty
    for an input; ``needed`` says that some op's backward reads it."""

    nbytes: float
    maker: str
    needed: bool = False


@dataclass(frozen=True, slots=True)
class Step:
    """What can run again: an op, or a change of layout (named ``value:layout``).

    Args:
        reads: the storages that it needs.
        forward_s, comm_s: of one run.
        inside_bytes: what its backward keeps that no other op sees.
        again: it may run again.
        meets: it is a product of activations with each other (attention, or a part of it).
    """

    name: str
    reads: tuple[int, ...]
    forward_s: float
    comm_s: float
    inside_bytes: float
    again: bool
    meets: bool


@dataclass(slots=True)
class Storages:
    """Of one unit: its storages, the steps by name in the order in which they run, where each value lies, and which
    ops give views of what others made."""

    storages: list[Storage] = field(default_factory=list)
    steps: dict[str, Step] = field(default_factory=dict)
    place: dict[tuple[str, Layout], int] = field(default_factory=dict)
    inputs: dict[str, int] = field(default_factory=dict)
    views: set[str] = field(default_factory=set)

    @property
    def kept_bytes(self) -> float:
        """What is kept where nothing is dropped."""
        inside = sum(step.inside_bytes for step in self.steps.values())
        return inside + sum(storage.nbytes for storage in self.storages if storage.needed)


def storages_of(
    block: Block,
    strategies: Mapping[str, Strategy],
    stored: Mapping[str, Layout],
    boundary: Layout,
    degree: int,
    cluster: Cluster,
    times: Mapping[str, Times] | None = None,
) -> Storages:
    """The storages of ``block`` on one of ``degree`` ranks.

    Args:
        strategies: how each op runs.
        stored: the layout of each parameter.
        boundary: the layout of what passes between units.
        times: seconds of each op, where they are known.
    """
    return _Builder(block, strategies, stored, boundary, degree, cluster, times or {}).run()


class _Builder:
    def __init__(
        self, block: Block, strategies: Mapping[str, Strategy], stored: Mapping[str, Layout], boundary: Layout,
        degree: int, cluster: Cluster, times: Mapping[str, Times],
    ) -> None:  # fmt: skip
        self.block, self.strategies, self.stored, self.boundary = block, strategies, stored, boundary
        self.degree, self.cluster, self.times = degree, cluster, times
        self.found = Storages()
        self.layout: dict[str, Layout] = {}
        self.sizes = {saved.root: saved.nbytes for op in block.ops for saved in op.saved if saved.root}
        self.counted: set[str | None] = set()
        self.weights = set(block.parameters)

    def run(self) -> Storages:
        for name, value in self.block.values.items():
            if value.origin is not Origin.OP:
                self._source(name)
        for op in self.block.ops:
            self._op(op)
        for name in self.block.outputs:
            self._read(name, boundary_layout(self.block.values[name], self.boundary, self.degree))
        return self.found

    def _source(self, name: str) -> None:
        value = self.block.values[name]
        layout, nbytes = REPLICATE, 0.0
        if value.origin is Origin.PARAMETER:
            layout = self.stored[name]
        elif value.origin is Origin.INPUT and value.requires_grad:
            layout = boundary_layout(value, self.boundary, self.degree)
            nbytes = local_bytes(value, layout, self.degree)
            self.found.inputs[name] = len(self.found.storages)
        self._lies(name, layout, self._storage(nbytes, ""))

    def _storage(self, nbytes: float, maker: str) -> int:
        self.found.storages.append(Storage(nbytes, maker))
        return len(self.found.storages) - 1

    def _lies(self, name: str, layout: Layout, storage: int) -> None:
        self.layout[name] = layout
        self.found.place[name, layout] = storage

    def _op(self, op: Op) -> None:
        strategy, degree, block = self.strategies[op.name], self.degree, self.block
        at = {name: self._read(name, layout) for name, layout in zip(op.inputs, strategy.inputs, strict=True)}
        if op.alias:
            made = at[op.alias]
        else:
            whole = (
                0 if op.output in self.counted else self.sizes.get(op.output, block.values[op.output].nbytes)
            )
            made = self._storage(whole / degree if strategy.output.is_shard else whole, op.name)
        self._lies(op.output, strategy.output, made)
        at[op.output] = made
        if op.inputs and self.weights.issuperset(op.inputs):
            self.weights.add(op.output)
        for name in op.keeps:
            self.found.storages[at[name]].needed = True
        if op.alias:
            self.found.views.add(op.name)
            if not op.saved:
                return
        times = self.times.get(op.name) or op_times(block, op, strategy, degree, self.cluster)
        inside = [saved for saved in op.saved if saved.root not in self.layout]
        self.counted |= {saved.root for saved in inside if saved.root}
        self.found.steps[op.name] = Step(
            op.name,
            tuple(dict.fromkeys(at[name] for name in op.inputs)),
            times.forward_s,
            times.forward_comm_s,
            sum(saved.nbytes / degree if strategy.share else saved.nbytes for saved in inside),
            op.again and not op.alias,
            op.kind in (OpKind.GEMM, OpKind.ATTENTION) and self.weights.isdisjoint(op.inputs),
        )

    def _read(self, name: str, layout: Layout) -> int:
        """The storage of ``name`` in ``layout``, with the step that makes it."""
        have, value = self.layout[name], self.block.values[name]
        if not value.requires_grad:
            have, layout = (REPLICATE if x == REPLICATE_STAR else x for x in (have, layout))
        at = self.found.place.get((name, layout))
        if at is None:
            at = self.found.place[name, have]
            if not _same_value(have, layout):
                at = self._moved(name, have, layout, at)
            self.found.place[name, layout] = at
        return at

    def _moved(self, name: str, src: Layout, dst: Layout, at: int) -> int:
        value, step = self.block.values[name], f"{name}:{dst}"
        times = conversion_times(value, src, dst, self.degree, self.cluster)
        self.found.steps[step] = Step(
            step, (at,), times.forward_s, times.forward_comm_s, 0.0, again=True, meets=False
        )
        return self._storage(local_bytes(value, dst, self.degree), step)


def _same_value(a: Layout, b: Layout) -> bool:
    """True if a value that lies in one way lies in the other too, whatever its gradient does."""
    return a.value_kind is b.value_kind and (not a.is_shard or (a.dim, a.parts) == (b.dim, b.parts))
