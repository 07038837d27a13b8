"""A block as one rank of the context-parallel axis has it: every fact about it derived again from the whole block.

The next axis, tp, is checked on the cut block, so the cut block itself must be right: each op's way is legal, its
work, what it keeps and what its kernel sends are a rank's; each value has a rank's shape; and between what made a
value and what reads it lies the change of layout that the two ask for, with its collectives.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING

from autoplan.graph.ir import Gemm, OpKind, Saved, Window
from autoplan.graph.layout import PARTIAL, REPLICATE, REPLICATE_STAR, Layout, shard
from autoplan.graph.mesh_calls import Drawn, OnMesh
from autoplan.verify.unit import joins, passed
from autoplan.verify.verdict import Finding, Illegal, Unfamiliar, Verdict
from autoplan.verify.ways import Way, has_kernel, way_of

if TYPE_CHECKING:
    from autoplan.graph.ir import Block, Op, Value

__all__ = ["check_cut", "sequence_way"]

Sends = tuple[tuple[str, float, str, int], ...]
"""(collective, bytes, phase, how many times beside the kernel's work or 0) of each."""


def check_cut(
    verdict: Verdict,
    block: Block,
    cut: Block,
    names: Mapping[str, str],
    boundary: Layout,
    degree: int,
    zigzag: bool = False,
) -> None:
    """Note what ``cut`` has wrong of one of ``degree`` ranks' part of ``block``, by a plan's ``names``; with ``zigzag``
    that part is two pieces of 2 · ``degree``."""
    _Check(verdict, block, cut, boundary, degree, zigzag).run(names)


def sequence_way(block: Block, op: Op, name: str, degree: int) -> tuple[Way, Sends]:
    """The way called ``name`` on the context-parallel axis, and what its kernel sends. Raises Illegal, or Unfamiliar
    for a kernel that is not known here."""
    if name == "ring q" and degree > 1:
        return _ring(block, op, degree)
    if name.startswith("cut ") and degree > 1:
        if op.kind is OpKind.ATTENTION and op.causal and name == "cut q":
            return _gathered(block, op, degree)
        if op.target.startswith("aten.cross_entropy_loss") and (
            found := re.fullmatch(r"cut d(\d+)(/\d+)?", name)
        ):
            return _tokens(block, op, int(found[1]), int((found[2] or "/1")[1:]), degree), ()
    if has_kernel(block, op, name, degree):
        from autoplan.graph.axes import sequence_strategies

        if any(offered.name == name for offered in sequence_strategies(block, op, degree)):
            raise Unfamiliar(f"{op.target} with {name}")
        raise Illegal(f"{op.target} has no {name} for a sequence")
    return way_of(block, op, name, degree), ()


def _gathered(block: Block, op: Op, degree: int) -> tuple[Way, Sends]:
    """Each rank has rows of queries, keys and values; all keys and values are gathered, forward and backward, and
    their gradients added up on the ranks that have the rows."""
    if op.random or len(op.inputs) != 3:
        raise Illegal("attention with dropout or a mask needs its rows together")
    rows = [block.values[name].shape[-2] for name in op.inputs]
    if rows[0] != rows[1] or rows[0] % degree:
        raise Illegal(f"{rows[0]} queries and {rows[1]} keys are not the same on {degree} ranks")
    cut = tuple(shard(len(block.values[name].shape) - 2) for name in op.inputs)
    sends: list[tuple[str, float, str, int]] = []
    for name in op.inputs[1:]:
        whole = float(block.values[name].nbytes)
        sends += [
            ("all_gather", whole, "forward", 0),
            ("all_gather", whole, "backward", 0),
            ("reduce_scatter", whole, "backward", 0),
        ]
    return Way(cut, cut[0], True, "m"), tuple(sends)


def _ring(block: Block, op: Op, degree: int) -> tuple[Way, Sends]:
    """Each rank has rows of queries, keys and values; keys and values go to every other rank in turn, and their
    gradients with them and once more, home."""
    if op.kind is not OpKind.ATTENTION or op.random or len(op.inputs) != 3:
        raise Illegal("only attention without dropout or a mask meets keys in turn")
    q, k, v = (block.values[name] for name in op.inputs)
    rows, keys = q.shape[-2], k.shape[-2]
    if rows % degree or keys % degree or v.shape[-2] != keys or (op.causal and rows != keys):
        raise Illegal(f"{rows} queries and {keys} keys do not go round {degree} ranks")
    if q.shape[:-3] != k.shape[:-3] or k.shape[:-2] != v.shape[:-2]:
        raise Illegal("queries, keys and values have not the same batch")
    message = (k.nbytes + v.nbytes) / degree
    summed = message * (k.itemsize if k.itemsize > 4 else 4) / k.itemsize
    others = degree - 1
    sends = (
        ("send_recv", message, "forward", others),
        ("send_recv", message, "backward", others),
        ("send_recv", summed, "backward", others),
        ("send_recv", summed, "backward", 0),
    )
    cut = tuple(shard(len(value.shape) - 2) for value in (q, k, v))
    return Way(cut, cut[0], True, "m"), sends


def _tokens(block: Block, op: Op, dim: int, parts: int, degree: int) -> Way:
    """A mean over tokens: ranks add up their tokens' losses over the number of all."""
    shape = block.values[op.inputs[0]].shape
    if len(op.inputs) != 2 or len(shape) < 2 or block.values[op.output].shape:
        raise Illegal("only a plain mean over tokens can be cut by tokens")
    if dim == 1 or dim >= len(shape) or shape[dim] % (parts * degree):
        raise Illegal(f"{list(shape)} has no tokens in dim {dim} for {parts} times {degree} pieces")
    return Way((shard(dim, parts), shard(max(dim - 1, 0), parts)), PARTIAL, True)


class _Check:
    def __init__(
        self, verdict: Verdict, block: Block, cut: Block, boundary: Layout, degree: int, zigzag: bool
    ) -> None:
        self.verdict, self.block, self.cut, self.boundary, self.degree = verdict, block, cut, boundary, degree
        self.zigzag, self.finest = zigzag, degree * (2 if zigzag else 1)
        self.ops = {op.name: op for op in cut.ops}
        self.calls = {node.name: node.target for node in cut.graph.nodes if node.op == "call_function"}
        self.used: set[str] = set()
        self.made: dict[str, Layout] = dict.fromkeys(block.buffers, REPLICATE)
        for name in block.parameters:
            self.made[name] = REPLICATE_STAR if block.values[name].requires_grad else REPLICATE
        for name in block.inputs:
            self.made[name] = passed(block.values[name], boundary, self.finest)

    def run(self, names: Mapping[str, str]) -> None:
        where = f"cp_layouts.{self.block.kind}"
        for name in names.keys() - {op.name for op in self.block.ops}:
            self.verdict.findings.append(Finding(f"{where}.{name}", names[name], "of nothing here"))
        for op in self.block.ops:
            name = names.get(op.name, "R")
            try:
                way, sends = sequence_way(self.block, op, name, self.degree)
                sequence_way(self.block, op, name, self.finest)  # what is cut must divide so
                self._op(op, way, sends)
            except Illegal as wrong:
                self.verdict.findings.append(Finding(f"{where}.{op.name}", name, str(wrong)))
                return
            except Unfamiliar as unknown:
                self.verdict.unchecked.append(f"cp: {unknown}")
                return
        read = [self._reads(name, self._boundary(name)) for name in self.block.outputs]
        self._same("outputs", list(self.cut.outputs), read)
        self._same("ops", sorted(self.ops), sorted(self.used))
        for name in self.made:
            self._value(name, self.block.values[name], self.made[name])

    def _boundary(self, name: str) -> Layout:
        return passed(self.block.values[name], self.boundary, self.finest)

    def _same(self, what: str, said: object, found: object) -> None:
        self.verdict.expect(f"{self.block.kind} on a rank of cp: {what}", said, found)

    def _value(self, name: str, whole: Value, layout: Layout) -> None:
        local = self.cut.values[name]
        shape = list(whole.shape)
        if layout.is_shard:
            pieces = layout.parts * self.finest
            if layout.dim >= len(shape) or shape[layout.dim] % pieces:
                raise Illegal(f"{name} of shape {shape} has no {layout} on {self.degree} ranks")
            shape[layout.dim] //= self.degree
        self._same(f"shape of {name}", list(local.shape), shape)
        self._same(f"gradient of {name}", local.requires_grad, whole.requires_grad)

    def _op(self, op: Op, way: Way, sends: Sends) -> None:
        here = self.ops.get(op.name)
        if here is None:
            raise Illegal("nothing on a rank")
        self.used.add(op.name)
        self.made[op.output] = way.output
        inputs = [self._reads(name, layout) for name, layout in zip(op.inputs, way.inputs, strict=True)]
        self._same(f"inputs of {op.name}", list(here.inputs), inputs)
        pieces = self.degree if way.shares else 1
        for name in ("flops_forward", "flops_backward", "bytes_forward", "bytes_backward"):
            self._same(f"{name} of {op.name}", getattr(here, name), getattr(op, name) // pieces)
        by_rows = bool(sends) and op.kind is OpKind.ATTENTION
        uneven = by_rows and op.causal and not self.zigzag
        self._same(f"causal of {op.name}", here.causal, op.causal and not uneven)
        window = Window(op.gemm.n, 1 - 0.5 / self.degree, True) if uneven and op.gemm else op.window
        self._same(f"window of {op.name}", here.window, window)
        in_turn = any(kind == "send_recv" for kind, *_ in sends)
        self._same(f"parts of the keys of {op.name}", here.pieces, self.degree if in_turn else 1)
        call = self.calls[op.name]
        if isinstance(call, OnMesh | Drawn):
            self._same(f"order of {op.name}", (call.degree, call.zigzag), (self.degree, self.zigzag))
        self._same(f"product of {op.name}", here.gemm, _piece_of(op.gemm, way, pieces))
        self._same(f"kept by {op.name}", here.saved, self._kept(op, way, inputs, pieces))
        self._same(f"sent by {op.name}", _said(here), tuple((*send, self.degree) for send in sends))

    def _kept(self, op: Op, way: Way, inputs: list[str], pieces: int) -> tuple[Saved, ...]:
        lies = dict(zip(op.inputs, way.inputs, strict=True)) | {op.output: way.output}
        now = dict(zip(op.inputs, inputs, strict=True))
        kept = []
        for one in op.saved:
            cut = pieces > 1 if one.value is None else lies.get(one.value, REPLICATE).is_shard
            name = one.value and now.get(one.value, one.value)
            kept.append(Saved(name, one.nbytes // (self.degree if cut else 1), one.root))
        return tuple(kept)

    def _reads(self, name: str, wanted: Layout) -> str:
        """What stands for a value in the layout that its reader asks for."""
        value, have = self.block.values[name], self.made[name]
        if not value.requires_grad:  # R* says how a gradient lies, and there is none
            have, wanted = (REPLICATE if layout == REPLICATE_STAR else layout for layout in (have, wanted))
        if have == wanted:
            return name
        moves = (
            one
            for one in self.cut.ops
            if one.target == "autoplan.moved" and one.inputs == (name,) and self._turns(one, have, wanted)
        )
        move = next(moves, None)
        if move is None:
            raise Illegal(f"{name} is never turned from {have} into {wanted}")
        if move.name not in self.used:
            self.used.add(move.name)
            self._move(move, value, have, wanted)
        return move.output

    def _turns(self, move: Op, have: Layout, wanted: Layout) -> bool:
        call = self.calls[move.name]
        asked = (str(have), str(wanted), self.degree, self.zigzag)
        return (call.src, call.dst, call.degree, call.zigzag) == asked

    def _move(self, move: Op, value: Value, have: Layout, wanted: Layout) -> None:
        ways = joins(value, have, wanted, self.degree)
        sent = [
            (kind, nbytes, phase, 0, self.degree)
            for (kind, nbytes, _), phase in zip(ways, ("forward", "backward"), strict=True)
            if kind
        ]
        self._same(f"sent by {move.name}", _said(move), tuple(sent))
        touched = (move.bytes_forward, move.bytes_backward)
        self._same(f"bytes of {move.name}", touched, tuple(round(rewritten) for _, _, rewritten in ways))
        self._value(move.output, value, wanted)
        table = not value.requires_grad and not value.dtype.startswith(("int", "bool"))
        kept = (Saved(move.output, self.cut.values[move.output].nbytes, move.output),) if table else ()
        self._same(f"kept by {move.name}", move.saved, kept)


def _said(op: Op) -> tuple[tuple[str, float, str, int, int], ...]:
    return tuple(
        (str(send.kind), float(send.nbytes), send.phase, send.beside, send.ranks) for send in op.sends
    )


def _piece_of(gemm: Gemm | None, way: Way, pieces: int) -> Gemm | None:
    if gemm is None or pieces == 1:
        return gemm
    sizes = {"batch": gemm.batch, "m": gemm.m, "n": gemm.n, "k": gemm.k}
    axis = way.product_axis or ("batch" if gemm.batch % pieces == 0 else "m")
    sizes[axis] = max(sizes[axis] // pieces, 1)
    return Gemm(**sizes)
