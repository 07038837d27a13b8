"""A block as one rank of the expert-parallel axis has it: every fact about it derived again from the whole block.

Products grouped by expert run where their experts are, and so may ops between them that treat rows alike; rows must
travel there and back. Of such ops a rank has the work of the busiest; of the experts' weights, and of what is made
of them alone, its share; everything else it has as the whole block does.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import fields, replace
from typing import TYPE_CHECKING

from autoplan.graph.ir import Gemm, Saved, Sent, Value
from autoplan.graph.layout import REPLICATE, Layout, shard
from autoplan.verify.verdict import Finding, Illegal, Unfamiliar, Verdict
from autoplan.verify.ways import way_of

if TYPE_CHECKING:
    from autoplan.graph.ir import Block, ModelGraph, Op

__all__ = ["check_experts"]

_SPELLS_ROWS = re.compile(r"aten\.(expand|repeat|tile|full|zeros|ones|empty|rand|new_)")
"""Calls with a number of rows among their arguments, which is not known where rows travel."""


def check_experts(verdict: Verdict, graph: ModelGraph, local: ModelGraph, degree: int) -> None:
    """Note what ``local`` has wrong of one of ``degree`` ranks' part of ``graph``, whose experts they share out."""
    routed = [kind for kind, block in graph.kinds.items() if any(op.routing for op in block.ops)]
    if not routed:
        verdict.findings.append(Finding("ep", degree, "1, since no layer routes rows to experts"))
    for kind, block in graph.kinds.items():
        if kind not in routed:
            verdict.expect(f"{kind} on a rank of ep", local.kinds[kind], block)
            continue
        try:
            _Check(verdict, block, local.kinds[kind], degree).run()
        except Illegal as wrong:
            verdict.findings.append(Finding(f"{kind} on a rank of ep", "a rank's part", str(wrong)))
        except Unfamiliar as unknown:
            verdict.unchecked.append(f"ep: {unknown}")
    kind_of = {unit.name: unit.kind for unit in graph.units}
    for group in graph.tied:
        for unit, name in group:
            if name in local.kinds[kind_of[unit]].expert_dims:
                verdict.findings.append(
                    Finding(f"experts of {unit}", "shared out", "the weights of others too")
                )


class _Check:
    """``away``: of each value with a row for each of an expert's, the ends of its rows; ``lies``: of each that is cut,
    how."""

    def __init__(self, verdict: Verdict, block: Block, cut: Block, degree: int) -> None:
        self.verdict, self.block, self.cut, self.degree = verdict, block, cut, degree
        self.ops = {op.name: op for op in cut.ops}
        self.made_by = {op.output: op for op in cut.ops}
        self.calls = {node.name: node.target for node in cut.graph.nodes if node.op == "call_function"}
        self.used: set[str] = set()
        self.away: dict[str, str] = {}
        self.lies: dict[str, Layout] = {name: shard(dim) for name, dim in cut.expert_dims.items()}
        self.routing = next(op.routing for op in block.ops if op.routing is not None)

    def run(self) -> None:
        for name in self.lies.keys() - self.block.parameters.keys():
            raise Illegal(f"{name} is shared out, and no parameter")
        for name in (*self.block.parameters, *self.block.buffers, *self.block.inputs):
            self._value(name, self.block.values[name], self.lies.get(name, REPLICATE))
        for op in self.block.ops:
            self._op(op)
        self._same("outputs", list(self.cut.outputs), [self._home(name) for name in self.block.outputs])
        self._same("ops", sorted(self.ops), sorted(self.used))
        for name in ("parameters", "buffers", "inputs", "shared"):
            self._same(name, getattr(self.cut, name), getattr(self.block, name))

    def _same(self, what: str, said: object, found: object) -> None:
        self.verdict.expect(f"{self.block.kind} on a rank of ep: {what}", said, found)

    def _value(self, name: str, whole: Value, layout: Layout) -> None:
        shape = list(whole.shape)
        if layout.is_shard:
            if layout.dim >= len(shape) or shape[layout.dim] % (layout.parts * self.degree):
                raise Illegal(f"{name} of shape {shape} has no {layout} on {self.degree} ranks")
            shape[layout.dim] //= self.degree
        self._same(f"value {name}", self.cut.values[name], replace(whole, name=name, shape=tuple(shape)))

    def _op(self, op: Op) -> None:
        here = self.ops.get(op.name)
        if here is None:
            raise Illegal(f"{op.name} does not run on any rank")
        self.used.add(op.name)
        if op.routing is not None and "grouped_mm" in op.target:
            self._product(op, here)
        elif not self.lies.keys().isdisjoint(op.inputs):
            self._weight(op, here)
        elif any(self._comes_away(name, read) for name, read in zip(op.inputs, here.inputs, strict=False)):
            self._row_op(op, here)
        else:
            self._compare(op, here, replace(op, inputs=tuple(self._home(name) for name in op.inputs)))
            self._value(op.output, self.block.values[op.output], REPLICATE)

    def _comes_away(self, name: str, read: str) -> bool:
        made = self.made_by.get(read)
        return (read == name and name in self.away) or (
            read != name and made is not None and made.target == "autoplan.there"
        )

    def _product(self, op: Op, here: Op) -> None:
        """One product for each expert of this rank, of all rows that come to it."""
        x, weight, ends, *others = op.inputs
        if self.lies.get(weight) != shard(0):
            raise Illegal(f"{op.name} multiplies by {weight}, which is not cut by expert")
        inputs = (self._there(x, ends), weight, self._ends(ends), *(self._home(name) for name in others))
        self._at_busiest(op, here, inputs, ends, held=float(self.block.values[weight].nbytes))

    def _row_op(self, op: Op, here: Op) -> None:
        """An op between products: rows of its result come of the same rows of its arguments."""
        from autoplan.graph.axes import spec_of

        spec = spec_of(self.block, op)
        if spec is None or op.random or spec.pieces or _SPELLS_ROWS.match(op.target):
            raise Illegal(f"{op.name} of {op.target} is not known to treat rows alike")
        rows = spec.output[0] if spec.output else ()
        if len(rows) != 1 or rows[0] in spec.fixed | spec.averaged | {*spec.counts.values()}:
            raise Illegal(f"rows of the result of {op.name} do not go through it one by one")
        (axis,) = rows
        if any(axis in dim for dim in spec.output[1:]):
            raise Illegal(f"{op.name} mixes rows into other dims")
        travel = [bool(dims) and dims[0] == (axis,) for dims in spec.inputs]
        if any(axis in dim for dims in spec.inputs for dim in dims[1:]):
            raise Illegal(f"{op.name} takes rows from other dims")
        ends = {
            self.away.get(name) or self._ends_of(read)
            for name, read, row in zip(op.inputs, here.inputs, travel, strict=True)
            if row and self._comes_away(name, read)
        }
        if len(ends) != 1:
            raise Illegal(f"{op.name} meets rows that end at {sorted(map(str, ends))}")
        (end,) = ends
        inputs = []
        for name, row in zip(op.inputs, travel, strict=True):
            if not row and not self._everywhere(name):
                raise Illegal(f"{op.name} reads {name}, which is each rank's own")
            inputs.append(self._there(name, str(end)) if row else self._home(name))
        self._at_busiest(op, here, tuple(inputs), str(end), held=0.0)

    def _everywhere(self, name: str) -> bool:
        """True of what all ranks have alike: made of the module's own tensors, and not cut."""
        if name in self.block.parameters or name in self.block.buffers:
            return name not in self.lies
        made = next((op for op in self.block.ops if op.output == name), None)
        return made is not None and not made.random and all(map(self._everywhere, made.inputs))

    def _at_busiest(self, op: Op, here: Op, inputs: tuple[str, ...], ends: str, held: float) -> None:
        """The op for the rows of the busiest rank; ``held``: bytes of all experts' weights that it reads."""
        load, gemm, routing = self._load(ends), op.gemm, op.routing
        if gemm is not None and routing is not None:
            if gemm.batch % self.degree:
                raise Illegal(f"{gemm.batch} experts do not divide among {self.degree} ranks")
            routing = routing.of_busiest(gemm.batch, self.degree)
            rows = max(round(gemm.m * self.degree * load), 1)
            gemm = Gemm(gemm.batch // self.degree, rows, gemm.n, gemm.k)
        own = held / self.degree
        wanted = replace(
            op,
            inputs=inputs,
            gemm=gemm,
            routing=routing,
            flops_forward=round(load * op.flops_forward),
            flops_backward=round(load * op.flops_backward),
            bytes_forward=round(load * (op.bytes_forward - held) + own),
            bytes_backward=round(load * (op.bytes_backward - 2 * held) + 2 * own),
            saved=tuple(replace(saved, nbytes=round(load * saved.nbytes)) for saved in op.saved),
        )
        self._compare(op, here, wanted)
        self.away[op.output] = ends
        self._value(op.output, self.block.values[op.output], REPLICATE)

    def _weight(self, op: Op, here: Op) -> None:
        """What is made of experts' weights alone is cut as they are."""
        if any(name not in self.lies for name in op.inputs):
            raise Illegal(f"{op.name} reads the weights of all experts")
        have = tuple(self.lies[name] for name in op.inputs)
        for name in self._ways(op):
            try:
                way = way_of(self.block, op, name, self.degree)
            except Illegal:
                continue
            if way.inputs == have and way.output.is_shard and not way.sends:
                break
        else:
            raise Illegal(f"{op.name} cannot be cut as {', '.join(map(str, have))}")
        self.lies[op.output] = way.output
        pieces = self.degree if way.shares else 1
        work = ("flops_forward", "flops_backward", "bytes_forward", "bytes_backward")
        wanted = replace(
            op,
            **{name: getattr(op, name) // pieces for name in work},
            saved=tuple(replace(saved, nbytes=saved.nbytes // self.degree) for saved in op.saved),
        )
        self._compare(op, here, wanted)
        self._value(op.output, self.block.values[op.output], way.output)

    def _ways(self, op: Op) -> list[str]:
        from autoplan.graph.axes import spec_of

        spec = spec_of(self.block, op)
        return [] if spec is None else [f"cut {axis}" for axis in spec.sizes]

    def _compare(self, op: Op, here: Op, wanted: Op) -> None:
        """Whether the op on a rank is ``wanted``, in whose names those of what it reads now take the place of ``op``'s."""
        now = dict(zip(op.inputs, wanted.inputs, strict=True))

        def renamed(saved: Saved) -> Saved:
            name = now.get(saved.value, saved.value) if saved.value else saved.value
            return saved if name == saved.value else replace(saved, value=name, root=name)

        wanted = replace(
            wanted,
            saved=tuple(map(renamed, wanted.saved)),
            keeps=tuple(now.get(name, name) for name in op.keeps),
            alias=now.get(op.alias, op.alias),
        )
        for field in fields(wanted):
            self._same(f"{field.name} of {op.name}", getattr(here, field.name), getattr(wanted, field.name))

    # What travels.

    def _load(self, ends: str) -> float:
        return self.routing.load(math.prod(self.block.values[ends].shape), self.degree)

    def _exchange(self, step: str, inputs: Sequence[str], rows: int = 0) -> Op | None:
        """The op that does a step of the exchange with ``inputs``."""
        for op in self.cut.ops:
            if op.target == f"autoplan.{step}" and op.inputs == tuple(inputs):
                call = self.calls[op.name]
                self._same(
                    f"call of {op.name}", (call.step, call.degree, call.rows), (step, self.degree, rows)
                )
                return op
        return None

    def _made(self, step: str, inputs: Sequence[str], what: str, rows: int = 0) -> tuple[Op, bool]:
        """The same with whether it was not seen before; Illegal if there is none."""
        op = self._exchange(step, inputs, rows)
        if op is None:
            raise Illegal(what)
        new = op.name not in self.used
        self.used.add(op.name)
        return op, new

    def _home(self, name: str) -> str:
        """What stands for a value with the rows of the rank's own tokens."""
        if name not in self.away:
            return name
        ends, rows = self.away[name], self.block.values[name].shape[0]
        back, new = self._made("back", (name, self._counts(ends)), f"rows of {name} never come back", rows)
        if new:
            self._travels(back, name, ends)
        return back.output

    def _there(self, name: str, ends: str) -> str:
        """The same with the rows of the rank's experts."""
        if self.away.get(name) == ends:
            return name
        there, new = self._made(
            "there", (self._home(name), self._counts(ends)), f"rows of {name} never travel"
        )
        if new:
            self._travels(there, name, ends)
        return there.output

    def _ends_of(self, read: str) -> str | None:
        """The ends of the rows that come by the exchange that makes ``read``."""
        counts = self.made_by[self.made_by[read].inputs[1]]
        return counts.inputs[0] if counts.target == "autoplan.counts" else None

    def _counts(self, ends: str) -> str:
        counts, new = self._made("counts", (self._home(ends),), f"nobody counts the rows that end at {ends}")
        if new:
            experts = math.prod(self.block.values[ends].shape)
            shape = (2, self.degree, experts // self.degree)
            self._integers(counts, shape, "int64", (Sent("all_to_all", 8 * experts, "forward", self.degree),))
        return counts.output

    def _ends(self, ends: str) -> str:
        inputs = (self._counts(ends), self._home(ends))
        own, new = self._made("ends", inputs, f"nobody says where own rows end of {ends}")
        if new:
            whole = self.block.values[ends]
            self._integers(own, (math.prod(whole.shape) // self.degree,), whole.dtype, ())
        return own.output

    def _travels(self, op: Op, name: str, ends: str) -> None:
        """Each row is sent, laid out for each rank and again for each expert; and its gradient."""
        value = self.block.values[name]
        nbytes = value.nbytes * self._load(ends)
        ways = ("forward", "backward")[: 1 + value.requires_grad]
        sends = tuple(Sent("all_to_all", nbytes, way, self.degree) for way in ways)  # type: ignore[arg-type]
        self._work(op, sends, round(4 * nbytes), round(4 * nbytes) if value.requires_grad else 0)
        self._same(f"shape of {op.output}", self.cut.values[op.output].shape, value.shape)
        self._same(f"gradient of {op.output}", self.cut.values[op.output].requires_grad, value.requires_grad)

    def _integers(self, op: Op, shape: tuple[int, ...], dtype: str, sends: tuple[Sent, ...]) -> None:
        value = self.cut.values[op.output]
        said = (value.shape, value.dtype, value.requires_grad)
        self._same(f"value {op.output}", said, (shape, dtype, False))
        self._work(op, sends, 2 * value.itemsize * math.prod(shape), 0)

    def _work(self, op: Op, sends: tuple[Sent, ...], forward: int, backward: int) -> None:
        self._same(f"sent by {op.name}", op.sends, sends)
        self._same(f"bytes of {op.name}", (op.bytes_forward, op.bytes_backward), (forward, backward))
        said = (op.flops_forward, op.flops_backward, op.gemm, op.saved, op.keeps, op.alias, op.again)
        self._same(f"work of {op.name}", said, (0, 0, None, (), (), "", False))
