"""A toy model, its strategies and a toy cluster, from which the tests of cost and search are made."""

from __future__ import annotations

from typing import Any

from msgspec.structs import replace

from autoplan.cost.unit import unit_cost
from autoplan.graph.ir import Block, Gemm, ModelGraph, Op, OpKind, Origin, Saved, Unit, Value
from autoplan.graph.layout import PARTIAL, REPLICATE, REPLICATE_STAR, Layout, shard
from autoplan.graph.strategy import Strategy
from autoplan.hardware import Cluster

R, RS, P = REPLICATE, REPLICATE_STAR, PARTIAL


def toy_strategies(block: Block, op: Op, degree: int) -> tuple[Strategy, ...]:
    """Megatron's ways to run a linear layer, and every cut of an elementwise op."""
    whole = Strategy("R", (R,) * len(op.inputs), R, share=False)
    if op.target == "aten.linear.default":
        return (
            whole,
            Strategy("cut s", (shard(1), RS), shard(1), share=True, gemm_axis="m"),
            Strategy("cut o", (RS, shard(0)), shard(2), share=True, gemm_axis="n"),
            Strategy("cut i", (shard(2), shard(1)), P, share=True, gemm_axis="k"),
        )
    if op.target == "loss":
        return whole, Strategy("cut s", (shard(1),), P, share=True)
    if op.target == "embedding":
        return whole, Strategy("cut h", (R, shard(1)), shard(2), share=True)
    cuts = tuple(Strategy(f"cut d{d}", (shard(d),) * len(op.inputs), shard(d), share=True) for d in (1, 2))
    return (
        (whole, *cuts, Strategy("P", (P,) * len(op.inputs), P, share=False))
        if op.target == "add"
        else (whole, *cuts)
    )


def toy_layouts(block: Block, name: str, degree: int) -> tuple[Layout, ...]:
    """Whole, or cut along any dim that divides."""
    shape = block.values[name].shape
    return (R, *(shard(dim) for dim, size in enumerate(shape) if size % degree == 0))


class BlockMaker:
    """Builds a block op by op."""

    def __init__(self, kind: str, path: str) -> None:
        self.kind, self.path = kind, path
        self.values: dict[str, Value] = {}
        self.ops: list[Op] = []
        self.parameters: dict[str, str] = {}

    def value(
        self, name: str, shape: tuple[int, ...], origin: Origin, dtype: str = "bfloat16", grows: bool = True
    ) -> str:
        size = {"bfloat16": 2, "float32": 4, "int64": 8}[dtype]
        self.values[name] = Value(name, shape, dtype, size, grows, origin)
        if origin is Origin.PARAMETER:
            self.parameters[name] = name
        return name

    def linear(self, name: str, x: str, out: int) -> str:
        b, s, k = self.values[x].shape
        weight = self.value(f"w_{name}", (out, k), Origin.PARAMETER)
        y = self.value(name, (b, s, out), Origin.OP)
        gemm = Gemm(1, b * s, out, k)
        self.add(
            name,
            "aten.linear.default",
            OpKind.GEMM,
            (x, weight),
            y,
            gemm,
            saved=(Saved(x, self.values[x].nbytes),),
        )
        return y

    def pointwise(self, name: str, target: str, *inputs: str) -> str:
        y = self.value(name, self.values[inputs[0]].shape, Origin.OP)
        self.add(
            name, target, OpKind.MEMORY, inputs, y, saved=(Saved(inputs[0], self.values[inputs[0]].nbytes),)
        )
        return y

    def add(
        self,
        name: str,
        target: str,
        kind: OpKind,
        inputs: tuple[str, ...],
        output: str,
        gemm: Gemm | None = None,
        saved: tuple[Saved, ...] = (),
    ) -> None:
        moved = sum(self.values[v].nbytes for v in (*inputs, output))
        flops = gemm.flops if gemm else 0
        self.ops.append(
            Op(
                name,
                target,
                self.path,
                kind,
                inputs,
                output,
                flops,
                2 * flops,
                moved,
                2 * moved,
                gemm,
                saved=saved,
            )
        )

    def done(self, inputs: tuple[str, ...], outputs: tuple[str, ...]) -> Block:
        nothing: Any = None
        return Block(
            self.kind, self.path, tuple(self.ops), self.values, inputs, outputs, self.parameters, {}, nothing
        )


def toy_layer(batch: int, seq: int, hidden: int, kind: str = "layer") -> Block:
    """x → norm → up → act → down → + x."""
    make = BlockMaker(kind, f"{kind}s.0")
    x = make.value("x", (batch, seq, hidden), Origin.INPUT)
    act = make.pointwise("act", "silu", make.linear("up", make.pointwise("norm", "norm", x), 4 * hidden))
    y = make.pointwise("sum", "add", x, make.linear("down", act, hidden))
    return make.done(("x",), (y,))


def toy_graph(
    batch: int = 1,
    layers: int = 6,
    seq: int = 512,
    hidden: int = 1024,
    tied: bool = False,
    vocabulary: int = 4096,
) -> ModelGraph:
    """Tokens → embedding → ``layers`` equal layers → head → loss, for ``batch`` samples."""
    first = BlockMaker("prologue", "")
    ids = first.value("ids", (batch, seq), Origin.INPUT, "int64", grows=False)
    table = first.value("w_table", (vocabulary, hidden), Origin.PARAMETER)
    hidden_states = first.value("embedded", (batch, seq, hidden), Origin.OP)
    first.add("embedded", "embedding", OpKind.MEMORY, (ids, table), hidden_states)
    last = BlockMaker("epilogue", "")
    x = last.value("x", (batch, seq, hidden), Origin.INPUT)
    logits = last.linear("logits", x, vocabulary)
    loss = last.value("loss", (), Origin.OP, "float32")
    last.add(
        "loss", "loss", OpKind.MEMORY, (logits,), loss, saved=(Saved(logits, 2 * last.values[logits].nbytes),)
    )
    kinds = {
        "prologue": first.done(("ids",), ("embedded",)),
        "layer": toy_layer(batch, seq, hidden),
        "epilogue": last.done(("x",), ("loss",)),
    }
    units = [Unit("prologue", "prologue", "", ("batch.ids",), ("h0",))]
    for i in range(layers):
        units.append(Unit(f"layers.{i}", "layer", f"layers.{i}", (f"h{i}",), (f"h{i + 1}",)))
    units.append(Unit("epilogue", "epilogue", "", (f"h{layers}",), ("loss",)))
    shared = ((("prologue", "w_table"), ("epilogue", "w_logits")),) if tied else ()
    return ModelGraph("toy", "f00d", batch, kinds, tuple(units), first.done((), ()), "loss", None, shared, {})


def toy_cluster(nodes: int = 1, node_size: int = 4, memory: float = 16e9, speed: float = 1.0) -> Cluster:
    """H100 nodes of ``node_size`` devices with ``memory`` bytes; ``speed`` scales every link."""
    base = Cluster.of("h100-sxm", nodes=2)
    node, net = base.levels[0], base.levels[1]
    levels = (
        replace(node, size=node_size, bandwidth_bytes_per_s=node.bandwidth_bytes_per_s * speed),
        replace(net, size=nodes, bandwidth_bytes_per_s=net.bandwidth_bytes_per_s * speed),
    )
    device = replace(base.device, memory_bytes=int(memory), usable_bytes=int(memory))
    return replace(base, levels=levels if nodes > 1 else levels[:1], device=device)


def test_toy_is_a_model() -> None:
    graph, cluster = toy_graph(), toy_cluster()
    assert graph.count("layer") == 6
    cost = unit_cost(graph.kinds["layer"], {}, R, 1, cluster, toy_strategies)
    assert cost.parameters == 8 * 1024**2
    assert cost.saved_bytes == graph.kinds["layer"].saved_bytes
    assert cost.times.forward_comm_s == cost.times.backward_comm_s == 0
