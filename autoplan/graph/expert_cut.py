"""A block, or a model, as one rank of an expert-parallel axis has it: again a block, with its own experts alone.

The axis lies along data ranks. Each has tokens of its own, and all parameters but those of experts, which are
shared out; rows travel to their experts' rank and back by all-to-all, as many as there are:

    rows, sorted by expert ─ there ─→ products, activations ─ back ─→ rows        no token is dropped
                    ends ─→ counts ─→ own ends ─┘

How many rows arrive is known only when the program runs. Shapes here are those of even routing, under which a
rank gets as many as it sends; work and memory are those of the busiest rank (``graph.routing``).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import fx

from autoplan.errors import PlanError
from autoplan.graph.axes.local_sizes import with_local_sizes
from autoplan.graph.cut import cut_op
from autoplan.graph.cutter import Cutter
from autoplan.graph.gemms import is_grouped, tensor_arguments
from autoplan.graph.ir import Block, Gemm, ModelGraph, Op, OpKind, Origin, Saved, Sent, Value
from autoplan.graph.layout import Layout, shard
from autoplan.graph.mesh_calls import ExpertCall
from autoplan.graph.routed_rows import RoutedRows, routed_rows

__all__ = ["away", "busiest_op", "cut_experts", "routes", "shares_experts"]


def routes(block: Block) -> bool:
    """True if the block has products grouped by expert."""
    return any(op.routing is not None for op in block.ops)


def cut_experts(graph: ModelGraph, degree: int) -> ModelGraph:
    """``graph`` as one of ``degree`` ranks that share out its experts has it; itself for one.

    Raises PlanError for a model without routed experts, or one whose experts cannot be shared out so.
    """
    if degree == 1:
        return graph
    if not any(map(routes, graph.kinds.values())):
        raise PlanError(
            "ep", degree, "1, since no layer of this model routes its tokens to experts", "leave it out"
        )
    kinds = {kind: _Cutter(b, degree).run() if routes(b) else b for kind, b in graph.kinds.items()}
    kind_of = {unit.name: unit.kind for unit in graph.units}
    for group in graph.tied:
        for unit, name in group:
            if name in kinds[kind_of[unit]].expert_dims:
                raise PlanError(
                    "ep", degree, f"1, since {unit} shares its experts' weights", "plan with ep=1"
                )
    return replace(graph, kinds=kinds, whole=graph.whole or graph)


def shares_experts(graph: ModelGraph, degree: int) -> bool:
    """True if ``cut_experts`` cuts."""
    if degree > 1 and not any(map(routes, graph.kinds.values())):
        return False
    try:
        return bool(cut_experts(graph, degree))
    except PlanError:
        return False


def away(block: Block, degrees: Sequence[int]) -> frozenset[str]:
    """What of ``block`` is another once its experts are shared out among as many ranks as any of ``degrees``: the ops that
    run away, and what makes their weights, parameters included. All else does the same, on values of the same
    sizes."""
    if not routes(block):
        return frozenset()
    found = [routed_rows(block, degree) for degree in degrees if degree > 1]
    nodes = (node for rows in found for some in (rows.ends, rows.made, rows.parameters) for node in some)
    return frozenset(node.name for node in nodes)


def busiest_op(block: Block, op: Op, load: float, degree: int) -> Op:
    """What the busiest rank does of ``op``: ``load`` times its share of rows, and products of fewer experts."""
    gemm, routing, held = op.gemm, op.routing, 0.0
    if routing is not None and gemm is not None:
        routing = routing.of_busiest(gemm.batch, degree)
        gemm = Gemm(max(gemm.batch // degree, 1), max(round(gemm.m * degree * load), 1), gemm.n, gemm.k)
        held = block.values[op.inputs[1]].nbytes
    spared = held * (1 - 1 / degree)
    return replace(
        op,
        gemm=gemm,
        routing=routing,
        flops_forward=round(op.flops_forward * load),
        flops_backward=round(op.flops_backward * load),
        bytes_forward=round((op.bytes_forward - held) * load + held - spared),
        # what a backward pass reads of the weights it writes again as their gradient
        bytes_backward=round((op.bytes_backward - 2 * held) * load + 2 * (held - spared)),
        saved=tuple(replace(saved, nbytes=round(saved.nbytes * load)) for saved in op.saved),
    )


class _Cutter(Cutter):
    def __init__(self, block: Block, degree: int) -> None:
        super().__init__(block, degree)
        self.routed: RoutedRows = routed_rows(block, degree)
        self.home: dict[fx.Node, fx.Node] = {}
        self.away: dict[tuple[fx.Node, fx.Node], fx.Node] = {}  # by value, and by where its experts' rows end
        self.counts: dict[fx.Node, fx.Node] = {}
        self.own_ends: dict[fx.Node, fx.Node] = {}
        self.routing = next(op.routing for op in block.ops if op.routing is not None)

    def run(self) -> Block:
        dims = {node.name: dim for node, dim in self.routed.parameters.items()}
        return replace(super().run(), expert_dims=dims)

    def _given(self, node: fx.Node) -> fx.Node:
        return self._at_home(node)

    def _source(self, node: fx.Node) -> None:
        new = self.graph.node_copy(node)
        dim = self.routed.parameters.get(node)
        layout = shard(dim) if dim is not None else None
        self.home[node] = self._made(node, new, layout)

    def _made(self, node: fx.Node, new: fx.Node, layout: Layout | None = None) -> fx.Node:
        """Note the value of ``new``, which stands for ``node``."""
        value = self.block.values[node.name]
        if layout is not None:
            local = layout.local_shape(value.shape, self.degree)
            value = replace(value, shape=local)
            new.meta["val"] = torch.empty(local, dtype=node.meta["val"].dtype, device="meta")
        self.values[new.name] = replace(value, name=new.name)
        return new

    def _call(self, node: fx.Node) -> None:
        if node in self.routed.made:
            self._weight(node)
        elif node in self.routed.ends:
            self._row_op(node, self.routed.ends[node])
        else:
            args, kwargs = fx.map_arg((node.args, node.kwargs), self._at_home)
            self.home[node] = self._made(node, self._copy(node, node.target, args, kwargs))
            self._note(node, self.home[node], self.by_name[node.name])

    def _copy(self, node: fx.Node, target: Any, args: Any, kwargs: Any) -> fx.Node:
        new = self.graph.create_node("call_function", target, args, kwargs, name=node.name)
        assert new.name == node.name, f"{node.name} became {new.name}"
        new.meta.update(node.meta)
        return new

    def _note(self, node: fx.Node, new: fx.Node, op: Op) -> None:
        """The op of ``new``, which reads what stands for the arguments of ``node``."""
        sources = tensor_arguments(new)
        names = {old.name: now.name for old, now in zip(tensor_arguments(node), sources, strict=True)}

        def moved(saved: Saved) -> Saved:
            now = names.get(saved.value or "", saved.value)
            root = saved.root if now == saved.value else now
            return replace(saved, value=now, root=root)

        self.ops.append(
            replace(
                op,
                inputs=tuple(source.name for source in sources),
                saved=tuple(map(moved, op.saved)),
                keeps=tuple(names.get(name, name) for name in op.keeps),
                alias=names.get(op.alias, ""),
            )
        )

    def _weight(self, node: fx.Node) -> None:
        strategy = self.routed.made[node]
        args, kwargs = fx.map_arg((node.args, node.kwargs), lambda n: self.home[n])
        target, args, kwargs = with_local_sizes(node, strategy, args, kwargs, self.degree)
        new = self._made(node, self._copy(node, target, args, kwargs), strategy.output)
        self.home[node] = new
        self._note(node, new, cut_op(self.by_name[node.name], strategy, self.degree))

    def _row_op(self, node: fx.Node, ends: fx.Node) -> None:
        rows = self.routed.rows[node]

        def read(source: fx.Node) -> fx.Node:
            if source in rows:
                return self._there(source, ends)
            return self._own_ends(ends) if is_grouped(node) and source is ends else self.home[source]

        args, kwargs = fx.map_arg((node.args, node.kwargs), read)
        new = self._made(node, self._copy(node, node.target, args, kwargs))
        new.meta["ragged"] = True
        self.away[node, ends] = new
        self._note(node, new, busiest_op(self.block, self.by_name[node.name], self._load(ends), self.degree))

    def _load(self, ends: fx.Node) -> float:
        """Rows of the busiest rank over their mean."""
        return self.routing.load(_experts(ends), self.degree)

    def _at_home(self, node: fx.Node) -> fx.Node:
        """The value of ``node`` with the rows of this rank's own tokens."""
        if node not in self.home:
            ends = self.routed.ends[node]
            call = ExpertCall("back", self.degree, int(node.meta["val"].shape[0]))
            self.home[node] = self._exchange(node, self.away[node, ends], call, ends)
        return self.home[node]

    def _there(self, node: fx.Node, ends: fx.Node) -> fx.Node:
        """The value of ``node`` with the rows of this rank's experts."""
        if (node, ends) not in self.away:
            home = self._at_home(node)
            new = self._exchange(node, home, ExpertCall("there", self.degree), ends)
            new.meta["ragged"] = True
            self.away[node, ends] = new
        return self.away[node, ends]

    def _exchange(self, node: fx.Node, source: fx.Node, call: ExpertCall, ends: fx.Node) -> fx.Node:
        value, counts = self.block.values[node.name], self._counts(ends)
        name = self._name(f"{node.name}_{call.step}")
        new = self.graph.create_node("call_function", call, (source, counts), {}, name=name)
        new.meta["val"] = torch.empty(value.shape, dtype=node.meta["val"].dtype, device="meta")
        self.values[name] = replace(value, name=name, origin=Origin.OP)
        sent = value.nbytes * self._load(ends)
        phases = ("forward", "backward") if value.requires_grad else ("forward",)
        self.ops.append(
            _op(
                new,
                call,
                (source, counts),
                round(4 * sent),  # rows are laid out for each rank, and again for each expert
                round(4 * sent) if value.requires_grad else 0,
                tuple(Sent("all_to_all", sent, phase, self.degree) for phase in phases),  # type: ignore[arg-type]
            )
        )
        return new

    def _counts(self, ends: fx.Node) -> fx.Node:
        if ends not in self.counts:
            shape = (2, self.degree, _experts(ends) // self.degree)
            sends = (Sent("all_to_all", 4 * shape[1] * shape[2] * 2, "forward", self.degree),)
            self.counts[ends] = self._integers(ends, "counts", shape, torch.int64, (self.home[ends],), sends)
        return self.counts[ends]

    def _own_ends(self, ends: fx.Node) -> fx.Node:
        if ends not in self.own_ends:
            shape = (_experts(ends) // self.degree,)
            sources = (self._counts(ends), self.home[ends])
            self.own_ends[ends] = self._integers(ends, "ends", shape, ends.meta["val"].dtype, sources, ())
        return self.own_ends[ends]

    def _integers(
        self, ends: fx.Node, step: Any, shape: tuple[int, ...], dtype: torch.dtype,
        sources: tuple[fx.Node, ...], sends: tuple[Sent, ...],
    ) -> fx.Node:  # fmt: skip
        call, name = ExpertCall(step, self.degree), self._name(f"{ends.name}_{step}")
        new = self.graph.create_node("call_function", call, sources, {}, name=name)
        new.meta["val"] = torch.empty(shape, dtype=dtype, device="meta")
        self.values[name] = Value(
            name, shape, str(dtype).removeprefix("torch."), dtype.itemsize, False, Origin.OP
        )
        self.ops.append(_op(new, call, sources, 2 * self.values[name].nbytes, 0, sends))
        return new

    def _name(self, wanted: str) -> str:
        name, number = wanted, 0
        while name in self.taken:
            number += 1
            name = f"{wanted}{number}"
        self.taken.add(name)
        return name


def _op(
    node: fx.Node, call: ExpertCall, sources: Sequence[fx.Node], forward: int, backward: int, sends: tuple[Sent, ...]
) -> Op:  # fmt: skip
    return Op(
        name=node.name,
        target=f"autoplan.{call.step}",
        module_path="",
        kind=OpKind.MEMORY,
        inputs=tuple(source.name for source in sources),
        output=node.name,
        flops_forward=0,
        flops_backward=0,
        bytes_forward=forward,
        bytes_backward=backward,
        sends=sends,
        again=False,  # what all ranks must do together is done once
    )


def _experts(ends: fx.Node) -> int:
    """How many experts have their rows' ends in ``ends``."""
    return int(ends.meta["val"].shape[0])
