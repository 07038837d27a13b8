"""Small questions whose every answer can be priced: what ``search`` finds against the best of all of them.

An instance is a random model (a chain of units between an embedding and a loss, each of them a random graph of
products and element-wise ops), a random cluster of at most eight devices, a batch, and sometimes a pin. Every
plan of the space is enumerated here: degrees, state sharding, micro-batches, schedules and stages a rank, layouts, all
cuts of the chain, and which units are recomputed. Each is priced by simulation, and the fastest that fits is what
the search has to find. (``mixed``: clusters of two types of device, with plans whose pipeline ranks are of one type each, under 1F1B.) Several instances with other memory share one enumeration, as seconds do not depend on it.

What is taken from the search and not enumerated again: which layouts of a block are offered (``search.layout_choice``), of
which the fastest is compared with the best of all combinations of options apart, for one block an enumeration.
"""

from __future__ import annotations

import itertools
import math
import operator
import random
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from msgspec.structs import replace as changed

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))
from test_cost_toys import BlockMaker, toy_cluster, toy_layouts, toy_strategies

from autoplan.cost.degrees import Degrees
from autoplan.cost.memory import limit_bytes
from autoplan.cost.step import Assignment
from autoplan.cost.unit import UnitCost
from autoplan.errors import AutoplanError
from autoplan.graph.ir import Block, ModelGraph, OpKind, Origin, Saved, Unit
from autoplan.graph.layout import Layout, shard
from autoplan.hardware import AnyCluster, Cluster, MixedCluster
from autoplan.plan import Job, Schedule
from autoplan.plan.schedule import SCHEDULE_NEEDS
from autoplan.plan.validate import least_micro_batches
from autoplan.search import SearchResult, search
from autoplan.search.graphs import Graphs
from autoplan.search.layout_problem import LayoutProblem, layout_problem
from autoplan.search.pins import Pins
from autoplan.search.space import Space

__all__ = [
    "CLOSE",
    "Family",
    "Outcome",
    "best_layouts_s",
    "compare",
    "families",
    "find",
    "layout_questions",
    "with_memory",
]

CLOSE = 1e-4
"""Relative difference at which the staging program of the search stops."""

MOST = 20_000
"""Plans of one enumeration at most; larger spaces are not small."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """One instance: the best of all plans that fit and what the search found, in seconds; None if nothing fits."""

    seed: int
    plans: int
    best_s: float | None
    found_s: float | None
    bound_s: float

    @property
    def equal(self) -> bool:
        if self.best_s is None or self.found_s is None:
            return self.best_s is self.found_s
        return abs(self.found_s / self.best_s - 1) <= CLOSE and self.bound_s <= self.best_s * (1 + CLOSE)


@dataclass(frozen=True, slots=True)
class Family:
    """A model, a cluster and a job; ``prices`` are (degrees, seconds, for each type of device the bytes on the worst
    rank) of every plan."""

    seed: int
    graphs: Graphs
    cluster: AnyCluster
    job: Job
    prices: tuple[tuple[Degrees, float, tuple[float, ...]], ...]
    shape: _Shape

    @property
    def peaks(self) -> list[tuple[float, ...]]:
        """The bytes of every plan, those that need least first."""
        return sorted(peak for _, _, peak in self.prices)

    def renamed(self) -> Family:
        """The same under other names of ops, values and the cluster."""
        shape = replace(self.shape, prefix="other_")
        cluster = changed(self.cluster, name="another")  # of one type of device
        return replace(self, graphs=Graphs(shape.graph), shape=shape, cluster=cluster)


def families(first_seed: int, mixed: bool = False) -> Iterator[Family]:
    """Random ones, one after another; the same for the same seed."""
    for seed in itertools.count(first_seed):
        family = _family(seed, mixed)
        if family is not None:
            yield family


def compare(family: Family, instances: int) -> Iterator[Outcome]:
    """The search against the enumeration, for several sizes of memory and pins."""
    draw = random.Random(family.seed * 7919 + 1)
    peaks = family.peaks
    for number in range(instances):
        pin = _pin(draw, family) if number else {}
        peak = peaks[int(draw.random() ** 2 * len(peaks))]
        # the share of a device's memory that plans leave free is the search's, so work back from it
        device = family.cluster.types[0].device
        slack = limit_bytes(device) / device.usable_bytes
        sizes = [held * draw.choice([0.97, 1.0001, 1.1]) / slack for held in peak]
        cluster = with_memory(family.cluster, *sizes)
        limits = [limit_bytes(only.device) for only in cluster.types]
        allowed = [
            step_s
            for degrees, step_s, held in family.prices
            if all(map(operator.le, held, limits))
            and all(getattr(degrees, name) == value for name, value in pin.items())
        ]
        found = find(family, cluster, pin)
        yield Outcome(
            family.seed,
            len(family.prices),
            min(allowed, default=None),
            None if found.estimate is None else found.estimate.step_time_s,
            found.bound_s,
        )


def find(family: Family, cluster: AnyCluster, pin: dict[str, Any]) -> SearchResult:
    return search(
        family.graphs,
        family.job,
        cluster,
        pin=pin,
        gap=CLOSE,
        top=1,
        cures=False,
        strategies_of=toy_strategies,
        layouts_of=toy_layouts,
    )


def with_memory(cluster: AnyCluster, *memory: float) -> AnyCluster:
    """``cluster`` with so many bytes on a device of each type."""
    if isinstance(cluster, MixedCluster):
        parts = zip(cluster.parts, memory, strict=True)
        return MixedCluster(cluster.name, tuple(_with_memory(part, size) for part, size in parts))
    return _with_memory(cluster, *memory)


def _with_memory(cluster: Cluster, memory: float) -> Cluster:
    device = cluster.device
    return changed(cluster, device=changed(device, memory_bytes=int(memory), usable_bytes=int(memory)))


def _pin(draw: random.Random, family: Family) -> dict[str, Any]:
    """Of some plan, none or one or two numbers."""
    degrees = draw.choice(family.prices)[0]
    names = ["pp", "dp", "fsdp", "tp", "zero", "micro_batch"]
    if degrees.pp > 1 and degrees.schedule not in (Schedule.GPIPE, Schedule.ZB_H1):
        names.append("schedule")  # held fixed, the other two may do what is else left out
    return {name: getattr(degrees, name) for name in draw.sample(names, draw.choice([0, 1, 1, 2]))}


def _family(seed: int, mixed: bool) -> Family | None:
    draw = random.Random(seed)
    cluster = _two_types(draw) if mixed else _one_type(draw)
    layers = draw.randint(1, 4 if cluster.world_size <= 2 else 3)
    shape = _Shape.of(draw, layers)
    job = Job(global_batch=draw.choice([1, 2, 4, 6, 8]), tokens_per_sample=shape.seq)
    graphs = Graphs(shape.graph)
    try:
        space = Space(graphs, job, cluster, Pins(), toy_strategies, toy_layouts)
    except AutoplanError:
        return None  # a batch that these ranks cannot share
    prices = tuple(itertools.islice(every_price(space), MOST + 1))
    return Family(seed, graphs, cluster, job, prices, shape) if 0 < len(prices) <= MOST else None


def _one_type(draw: random.Random) -> Cluster:
    nodes, node_size = draw.choice([(1, 1), (1, 2), (1, 2), (1, 4), (2, 1), (2, 2), (1, 3), (2, 4)])
    return _links(draw, nodes, node_size)


def _links(draw: random.Random, nodes: int, node_size: int) -> Cluster:
    cluster = toy_cluster(nodes, node_size, memory=1e15, speed=draw.choice([0.02, 0.1, 1.0, 10.0]))
    return changed(cluster, overlap=draw.choice([0.0, 0.5, 0.9]))


def _two_types(draw: random.Random) -> MixedCluster:
    """Nodes of H100s and of A100s, either first, each with links of their own."""
    sizes = draw.choice(
        [((1, 1), (1, 1)), ((1, 2), (1, 2)), ((1, 1), (2, 1)), ((1, 2), (1, 4)), ((1, 4), (1, 4))]
    )
    parts = [(_links(draw, 2, node_size), nodes) for nodes, node_size in sizes]
    slower = draw.randrange(2)
    device = changed(Cluster.load("a100-80-sxm").device, memory_bytes=10**15, usable_bytes=10**15)
    parts[slower] = changed(parts[slower][0], name="a100", device=device), parts[slower][1]
    return MixedCluster.of(parts)


def every_price(space: Space) -> Iterator[tuple[Degrees, float, tuple[float, ...]]]:
    """Each plan of the space, with its seconds and the bytes of its worst rank of each type of device."""
    for degrees in every_degrees(space.job, space.cluster, len(space.chain.units)):
        for choice in space.choices(degrees):
            for stages in _stagings(space, degrees, choice.costs):
                estimate = space.candidate(degrees, choice, stages).estimate
                held = [0.0] * len(space.cluster.types)
                for rank, stage in zip(degrees.stage_ranks, estimate.stages, strict=True):
                    kind = space.cluster.type_of(rank, degrees.pp)
                    held[kind] = max(held[kind], stage.memory.total)
                yield degrees, estimate.step_time_s, tuple(held)


def every_degrees(job: Job, cluster: AnyCluster, units: int) -> Iterator[Degrees]:
    """All that fill the cluster, straight from what the space is said to hold."""
    world, batch = cluster.world_size, job.global_batch
    sizes = range(1, world + 1)
    for pp, dp, fsdp, tp in itertools.product(sizes, repeat=4):
        if pp * dp * fsdp * tp != world or pp > units or cluster.node_size % tp:
            continue
        if isinstance(cluster, MixedCluster) and not _apart(cluster, pp):
            continue
        for zero, micro in itertools.product(range(4), range(1, batch + 1)):
            count, rest = divmod(batch, dp * fsdp * micro)
            if rest or (zero == 0) != (fsdp == 1):
                continue
            plain = Degrees(pp, dp, fsdp, 1, tp, zero, micro, count)
            if count >= pp:
                yield plain
            for schedule, needs in SCHEDULE_NEEDS.items() if pp > 1 and isinstance(cluster, Cluster) else ():
                for vpp in range(1, units // pp + 1):
                    if needs.vpp in (None, vpp) and _worth(schedule, vpp, pp, count, units):
                        yield replace(plain, schedule=schedule, vpp=vpp)


def _apart(cluster: MixedCluster, pp: int) -> bool:
    """True if no pipeline rank has devices of two types."""
    each = cluster.world_size // pp
    names = [cluster.device_of(rank).name for rank in range(cluster.world_size)]
    return all(len(set(names[start : start + each])) == 1 for start in range(0, len(names), each))


def _worth(schedule: Schedule, vpp: int, pp: int, count: int, units: int) -> bool:
    """What the space holds beside 1F1B: GPipe only where 1F1B cannot run, ZB-H1 with one stage a rank, and of the numbers
    of stages with equally many units on the largest, the least."""
    if count < least_micro_batches(schedule, pp)[0]:
        return False
    fewest = min(v for v in range(1, units // pp + 1) if -(-units // (pp * v)) == -(-units // (pp * vpp)))
    match schedule:
        case Schedule.ONE_F_ONE_B:
            return False
        case Schedule.GPIPE:
            return count < pp
        case Schedule.ZB_H1:
            return vpp == 1
        case Schedule.INTERLEAVED:
            return vpp == fewest
        case _:
            return True


def _stagings(space: Space, degrees: Degrees, costs: Mapping[str, UnitCost]) -> Iterator[list[Assignment]]:
    """1F1B: every cut of the chain, and on each stage every number of units of a kind that go each way. Other
    schedules: the even stages, for each way as many units of each rank in turn as there may be, from none to all."""
    units = len(space.chain.units)
    if degrees.schedule is Schedule.ONE_F_ONE_B:
        for cuts in itertools.combinations(range(1, units), degrees.pp - 1):
            ranges = list(itertools.pairwise((0, *cuts, units)))
            ways = [list(_stage_ways(space, start, stop, costs)) for start, stop in ranges]
            yield from (list(stages) for stages in itertools.product(*ways))
        return
    even = space._scheduled.cut(degrees).ranges
    names = dict.fromkeys(name for cost in costs.values() for name in _ways(cost))
    for name in names:
        orders = []
        for rank in range(degrees.pp):
            own = [even[s] for s, home in enumerate(degrees.stage_ranks) if home == rank]
            may = [
                [i for i in range(*ends) if i in space.repeats and name in _ways(_cost(space, i, costs))]
                for ends in own
            ]
            turns = itertools.zip_longest(*may)
            orders.append([unit for turn in turns for unit in turn if unit is not None])
        for counts in itertools.product(*(range(len(order) + 1) for order in orders)):
            again = {unit for order, count in zip(orders, counts, strict=True) for unit in order[:count]}
            yield [Assignment.of(a, b, {i: name for i in range(a, b) if i in again}) for a, b in even]


def _stage_ways(space: Space, start: int, stop: int, costs: Mapping[str, UnitCost]) -> Iterator[Assignment]:
    """Which of equal units go which way makes no difference."""
    kinds: dict[str, list[int]] = {}
    for index in range(start, stop):
        if index in space.repeats:
            kinds.setdefault(space.chain.units[index].kind, []).append(index)
    each = [
        itertools.combinations_with_replacement(("none", *_ways(costs[kind])), len(same))
        for kind, same in kinds.items()
    ]
    for chosen in itertools.product(*each):
        ways = {
            unit: way
            for same, taken in zip(kinds.values(), chosen, strict=True)
            for unit, way in zip(same, taken, strict=True)
        }
        yield Assignment.of(start, stop, ways)


def _cost(space: Space, unit: int, costs: Mapping[str, UnitCost]) -> UnitCost:
    return costs[space.chain.units[unit].kind]


def _ways(cost: UnitCost) -> tuple[str, ...]:
    """What a unit may do again; parking activations on the host is chosen only when asked for."""
    return (*(name for name in cost.keeps if name != "offload"), "full")


def best_layouts_s(problem: LayoutProblem) -> float | None:
    """The price of the cheapest of all combinations of options, added up in one table; None if they are too many."""
    sizes = [len(node.options) for node in problem.nodes]
    if math.prod(sizes) > 3_000_000 or len(sizes) > 30:
        return None
    total = np.zeros(sizes)

    def add(nodes: list[int], price: Any) -> None:
        shape = [size if index in nodes else 1 for index, size in enumerate(sizes)]
        table = np.array([price(taken) for taken in itertools.product(*(range(sizes[n]) for n in nodes))])
        np.add(total, table.reshape(shape), out=total)

    for index, node in enumerate(problem.nodes):
        add([index], lambda taken, node=node: node.options[taken[0]].price_s)
    for port in problem.ports:
        constant = isinstance(port.maker, Layout)
        nodes = sorted({node for node, _ in port.readers} | ({port.maker} if not constant else set()))

        def converted(taken: tuple[int, ...], port: Any = port, nodes: list[int] = nodes) -> float:
            chosen = dict(zip(nodes, taken, strict=True))
            made = (
                port.maker
                if isinstance(port.maker, Layout)
                else problem.nodes[port.maker].options[chosen[port.maker]].gives
            )
            wanted = {problem.nodes[n].options[chosen[n]].wants[position] for n, position in port.readers}
            wanted |= {port.leaves} if port.leaves is not None else set()
            return sum(port.price_s[made, layout] for layout in wanted if layout != made)

        add(nodes, converted)
    for group in problem.equal:
        nodes = sorted(group)

        def same(taken: tuple[int, ...], nodes: list[int] = nodes) -> float:
            found = {problem.nodes[n].options[t].gives for n, t in zip(nodes, taken, strict=True)}
            return 0.0 if len(found) == 1 else math.inf

        add(nodes, same)
    return float(total.min())


class _Maker(BlockMaker):
    """Puts a prefix before the names of values and ops."""

    def __init__(self, kind: str, path: str, prefix: str) -> None:
        super().__init__(kind, path)
        self._prefix = prefix

    def value(
        self, name: str, shape: tuple[int, ...], origin: Origin, dtype: str = "bfloat16", grows: bool = True
    ) -> str:
        return super().value(self._prefix + name, shape, origin, dtype, grows)

    def add(self, name: str, *args: Any, **kwargs: Any) -> None:
        super().add(self._prefix + name, *args, **kwargs)


@dataclass(frozen=True, slots=True)
class _Shape:
    """A random model: its sizes, what the blocks of each kind compute, and the kinds of the chain in order.

    A block's steps make one value each: ``linear`` of a value to a width, ``silu`` of one, ``add`` of two.
    """

    seq: int
    hidden: int
    vocabulary: int
    blocks: tuple[tuple[tuple[Any, ...], ...], ...]
    chain: tuple[int, ...]
    tied: bool
    prefix: str = ""

    @classmethod
    def of(cls, draw: random.Random, layers: int) -> _Shape:
        kinds = draw.choice([1, 1, 2])
        first = draw.randint(0, layers)
        return cls(
            seq=draw.choice([96, 384, 1536]),
            hidden=draw.choice([384, 768, 3072]),
            vocabulary=draw.choice([384, 6144]),
            blocks=tuple(_steps(draw) for _ in range(kinds)),
            chain=tuple(0 if index < first else kinds - 1 for index in range(layers)),
            tied=draw.random() < 0.3,
        )

    def graph(self, batch: int) -> ModelGraph:
        kinds = {"prologue": self._first(batch)}
        units = [Unit("prologue", "prologue", "", ("batch.ids",), ("h0",))]
        for index, kind in enumerate(self.chain):
            kinds.setdefault(f"kind{kind}", self._block(batch, kind))
            made = (f"h{index + 1}",)
            units.append(Unit(f"layers.{index}", f"kind{kind}", f"layers.{index}", (f"h{index}",), made))
        units.append(Unit("epilogue", "epilogue", "", (f"h{len(self.chain)}",), ("loss",)))
        kinds["epilogue"] = self._last(batch)
        both = (("prologue", f"{self.prefix}w_table"), ("epilogue", f"{self.prefix}w_logits"))
        tied = (both,) if self.tied else ()
        free = BlockMaker("free", "").done((), ())
        return ModelGraph("random", "f00d", batch, kinds, tuple(units), free, "loss", None, tied, {})

    def _first(self, batch: int) -> Block:
        make = _Maker("prologue", "", self.prefix)
        ids = make.value("ids", (batch, self.seq), Origin.INPUT, "int64", grows=False)
        table = make.value("w_table", (self.vocabulary, self.hidden), Origin.PARAMETER)
        made = make.value("embedded", (batch, self.seq, self.hidden), Origin.OP)
        make.add("embedded", "embedding", OpKind.MEMORY, (ids, table), made)
        return make.done((ids,), (made,))

    def _last(self, batch: int) -> Block:
        make = _Maker("epilogue", "", self.prefix)
        x = make.value("x", (batch, self.seq, self.hidden), Origin.INPUT)
        logits = make.linear("logits", x, self.vocabulary)
        loss = make.value("loss", (), Origin.OP, "float32")
        saved = (Saved(logits, 2 * make.values[logits].nbytes),)
        make.add("loss", "loss", OpKind.MEMORY, (logits,), loss, saved=saved)
        return make.done((x,), (loss,))

    def _block(self, batch: int, kind: int) -> Block:
        make = _Maker(f"kind{kind}", f"kind{kind}s.0", self.prefix)
        made = [make.value("x", (batch, self.seq, self.hidden), Origin.INPUT)]
        for index, (what, *of, width) in enumerate(self.blocks[kind]):
            name = f"{what}{index}"
            if what == "linear":
                made.append(make.linear(name, made[of[0]], width * self.hidden))
            else:
                made.append(make.pointwise(name, what, *(made[value] for value in of)))
        return make.done((made[0],), (made[-1],))


def _steps(draw: random.Random) -> tuple[tuple[Any, ...], ...]:
    """Two to five steps, the last of them of the residual's width; values are numbered, 0 is the input."""
    widths = [1]
    steps: list[tuple[Any, ...]] = []
    for _ in range(draw.randint(1, 3)):
        source = draw.randrange(len(widths))
        others = [v for v, width in enumerate(widths) if width == widths[source] and v != source]
        what = draw.choice(["linear", "linear", "silu", "add"])
        if what == "add" and others:
            steps.append(("add", source, draw.choice(others), None))
        elif what == "linear":
            steps.append(("linear", source, draw.choice([1, 2, 4])))
        else:
            steps.append(("silu", source, None))
        widths.append(steps[-1][-1] or widths[source])
    if widths[-1] != 1 or not any(step[0] == "linear" for step in steps):
        steps.append(("linear", len(widths) - 1, 1))
        widths.append(1)
    if draw.random() < 0.5:
        steps.append(("add", len(widths) - 1, 0, None))
    return tuple(steps)


def layout_questions(family: Family) -> Iterator[LayoutProblem]:
    """The layouts of one block of the model on two of its ranks, for either boundary; none where a node has one."""
    if family.cluster.node_size < 2 or isinstance(family.cluster, MixedCluster):
        return
    block = list(family.graphs.trace(1).kinds.values())[1]
    for boundary in (Layout.parse("R"), shard(1)):
        yield layout_problem([block], (), boundary, 2, family.cluster, toy_strategies, toy_layouts)
