"""A unit's policy at work: what its backward pass reads is kept, made again, or fetched from the host.

``planned`` marks in a graph the ops that a policy names; ``Keeping`` runs the graph with hooks on what autograd saves
(``torch.autograd.graph.saved_tensors_hooks``). A tensor that lies in a storage which a marked op made is not saved: in
its place stands a ``_Made``, which can run the op again from what the op read, itself kept, made or fetched; or a
``_Parked``, a copy in the host's memory. The graph of autograd stays as it is, so that of all that runs in the unit
only the marked ops run twice, each once at most, when the backward pass first asks for what they make.

What a tensor lies in is told by its storage. While a unit runs, weak references keep the addresses of storages that
are gone from being used again.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import torch
import torch.utils._pytree as pytree
from torch import Tensor, fx
from torch.autograd.graph import saved_tensors_hooks
from torch.multiprocessing.reductions import StorageWeakRef

from autoplan.errors import PlanError
from autoplan.rewrite.host_copies import Copies, HostCopy

__all__ = ["Keeping", "Planned", "planned", "planned_nodes"]


class _Made:
    """What a marked op made: its results, and what its backward reads besides; made again when somebody asks."""

    def __init__(self, op: Planned, args: Any, kwargs: Any) -> None:
        self._op, self._given = op, (args, kwargs)
        self._saved, self._inside = 0, False
        self._results: list[Tensor] = []
        self._packed: list[Tensor] = []

    def slot(self, inside: bool) -> int:
        """The place of one more tensor that the op saves; ``inside``: it is none that the op was given."""
        self._inside |= inside
        self._saved += 1
        return self._saved - 1

    def result(self, place: int) -> Tensor:
        self._run()
        return self._results[place]

    def inside(self, slot: int) -> Tensor:
        self._run()
        return self._packed[slot]

    def _run(self) -> None:
        if self._given is None:
            return
        args, kwargs = pytree.tree_map_only(_Reading, _Reading.get, self._given)
        self._given = None  # what it read may go
        if not self._inside:
            with torch.no_grad():
                self._results = _tensors(self._op.target(*args, **kwargs))
            return

        def pack(tensor: Tensor) -> Tensor:
            self._packed.append(tensor.detach())
            return tensor.detach()

        with torch.enable_grad(), saved_tensors_hooks(pack, lambda tensor: tensor):
            self._results = [one.detach() for one in _tensors(self._op.target(*args, **kwargs))]


class _Result:
    """One of the tensors that a marked op made; a list of them is one op's too."""

    __slots__ = ("_made", "_place")

    def __init__(self, made: _Made, place: int) -> None:
        self._made, self._place = made, place

    def tensor(self) -> Tensor:
        return self._made.result(self._place)


class _Parked:
    """A storage that waits in the host's memory."""

    def __init__(self, storage: torch.UntypedStorage, copies: Copies) -> None:
        whole = torch.empty(0, dtype=torch.uint8, device=storage.device).set_(storage)
        self._copy: HostCopy = copies.away(whole)

    def storage(self) -> torch.UntypedStorage:
        return self._copy.back().untyped_storage()


class _Reading:
    """An argument of an op that will run again, or a tensor that autograd saved: a view of ``source``, which may not
    be there yet."""

    __slots__ = ("dtype", "grad", "offset", "shape", "slot", "source", "stride")

    def __init__(
        self, source: Tensor | _Made | _Result | _Parked, like: Tensor, slot: int | None = None
    ) -> None:
        self.source, self.slot = source, slot
        self.shape, self.stride, self.offset = like.shape, like.stride(), like.storage_offset()
        self.dtype, self.grad = like.dtype, like.requires_grad

    def get(self) -> Tensor:
        """The tensor, apart from any graph, with a gradient asked for where there was one."""
        if isinstance(self.source, Tensor):
            return self.source.detach().requires_grad_(self.grad)
        return self.view().requires_grad_(self.grad)

    def view(self) -> Tensor:
        """The tensor as it was saved."""
        source = self.source
        if isinstance(source, Tensor):
            return source
        if isinstance(source, _Parked):
            empty = torch.empty(0, dtype=self.dtype, device=source.storage().device)
            return empty.set_(source.storage(), self.offset, self.shape, self.stride)
        if isinstance(source, _Made):
            assert self.slot is not None
            return source.inside(self.slot)
        return source.tensor().as_strided(self.shape, self.stride, self.offset)


class Keeping:
    """Runs a marked graph: the storages that marked ops have made so far, and what stands for them."""

    active: ClassVar[list[Keeping]] = []

    def __init__(self, policy: Mapping[str, str], copies: Copies) -> None:
        self.policy, self.copies = policy, copies
        self.now: _Made | str | None = None
        self._given: frozenset[int] = frozenset()
        self._known: dict[int, tuple[StorageWeakRef, _Result | _Parked | str]] = {}

    def run(self, body: Callable[..., Any], values: tuple[Tensor, ...], inputs: list[str]) -> Any:
        """``body(*values)``. ``inputs``: the names of the values, which may be parked too."""
        for name, value in zip(inputs, values, strict=True):
            if self.policy.get(name) == "offload":
                self.note(value, name)
        self.active.append(self)
        try:
            with saved_tensors_hooks(self._pack, _unpack):
                return body(*values)
        finally:
            self.active.pop()
            self._known.clear()

    def call(self, op: Planned, args: Any, kwargs: Any) -> Any:
        """Run a marked op."""
        self._given = _storages((args, kwargs))
        now: _Made | str = op.name
        if self.policy[op.name] == "recompute":
            now = _Made(op, *pytree.tree_map_only(Tensor, self._reading, (args, kwargs)))
        self.now = now
        made = op.target(*args, **kwargs)
        if _storages(made).isdisjoint(self._given):
            for place, tensor in enumerate(_tensors(made)):
                self.note(tensor, _Result(now, place) if isinstance(now, _Made) else now)
        self.now, self._given = None, frozenset()
        return made

    def note(self, tensor: Tensor, made: _Result | str) -> None:
        """``made`` stands for all that lies where ``tensor`` does."""
        reference = StorageWeakRef(tensor.untyped_storage())
        self._known.setdefault(reference.cdata, (reference, made))

    def _reading(self, tensor: Tensor) -> _Reading:
        """What stands for ``tensor`` as the argument of an op that may run again."""
        source = self._source(tensor)
        return _Reading(tensor.detach() if source is None else source, tensor)

    def _source(self, tensor: Tensor) -> _Result | _Parked | None:
        storage = tensor.untyped_storage()
        reference, source = self._known.get(storage._cdata, (None, None))
        if isinstance(source, str):
            assert reference is not None
            source = _Parked(storage, self.copies)
            self._known[storage._cdata] = reference, source
        return source

    def _pack(self, tensor: Tensor) -> Any:
        inside = self.now is not None and tensor.untyped_storage()._cdata not in self._given
        slot = self.now.slot(inside) if isinstance(self.now, _Made) else None
        if inside and isinstance(self.now, _Made):
            return _Reading(self.now, tensor, slot)
        if inside and isinstance(self.now, str):
            self.note(tensor, self.now)
        source = self._source(tensor)
        return tensor if source is None else _Reading(source, tensor)


def _unpack(saved: Any) -> Tensor:
    return saved.view() if isinstance(saved, _Reading) else saved


class Planned:
    """A target of a graph's node that a policy names: an op, or a change of layout."""

    __name__ = "planned"  # which a graph's code asks for

    def __init__(self, name: str, target: Any) -> None:
        self.name, self.target = name, target

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if Keeping.active and self.name in Keeping.active[-1].policy:
            return Keeping.active[-1].call(self, args, kwargs)
        return self.target(*args, **kwargs)


def _tensors(tree: Any) -> list[Tensor]:
    return [leaf for leaf in pytree.tree_leaves(tree) if isinstance(leaf, Tensor)]


def _storages(tree: Any) -> frozenset[int]:
    return frozenset(tensor.untyped_storage()._cdata for tensor in _tensors(tree))


def planned(where: str, graph: fx.Graph, policy: Mapping[str, str], moves: Mapping[fx.Node, str]) -> None:
    """Mark the nodes of ``graph`` that ``policy`` names; ``moves`` are the names of changes of layout there.

    Raises PlanError, naming ``where``, for a name that no node has.
    """
    for node, name in planned_nodes(where, graph, policy, moves).items():
        node.target = Planned(name, node.target)


def planned_nodes(
    where: str, graph: fx.Graph, policy: Mapping[str, str], moves: Mapping[fx.Node, str]
) -> dict[fx.Node, str]:
    """The calls of ``graph`` that ``policy`` names, and these names; arguments and errors as for ``planned``."""
    named = {moves.get(node, node.name): node for node in graph.nodes}
    for name in sorted(set(policy) - set(named)):
        remedy = "search again for this model, batch and tp"
        raise PlanError(f"{where}.{name}", policy[name], "an op or a change of layout of this block", remedy)
    return {node: name for name, node in named.items() if name in policy and node.op == "call_function"}
