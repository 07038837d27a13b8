"""Cutting the skeleton's graph into a chain of units, and what they all share.

Every node of the skeleton's graph is one of: *free* (computed from the batch, buffers and constants
alone), a block call, or an outer op that touches a parameter or a block's result. The i-th block call
stands at position 2i+1 of the chain; an outer op stands at the latest position among what it reads, so
at an even position 2i unless it only trims a block's result. Ops that read parameters alone stand where
they are first used, and so does all that has to do with a buffer that forward changes (``meta["updated"]``). Free
nodes are left out of the chain and recomputed by whoever reads them.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import fx

from autoplan.errors import TraceError

__all__ = ["Chain", "Link", "cut_chain", "extract"]


@dataclass(slots=True)
class Link:
    """One position of the chain: a block call (``call`` is the number that it has in the graph) or a run of outer ops.

    ``reads`` are chain names bound to the unit's inputs, ``writes`` those of its results. ``graph`` holds the
    outer ops (None for a block call), with placeholders in the order of ``reads``.
    """

    position: int
    call: int | None
    reads: list[str]
    writes: list[str]
    graph: fx.Graph | None


@dataclass(slots=True)
class Chain:
    """The chain, and the graph of the free values it reads."""

    links: list[Link]
    free: fx.Graph
    loss: str


def cut_chain(graph: fx.Graph, is_block: object) -> Chain:
    """Cut ``graph``, whose block calls are calls of ``is_block``, into a chain that ends in its one output."""
    cutter = _Cutter(graph, is_block)
    return cutter.chain()


class _Cutter:
    def __init__(self, graph: fx.Graph, is_block: object) -> None:
        self.graph = graph
        self.is_block = is_block
        self.free: set[fx.Node] = set()
        self.position: dict[fx.Node, int] = {}
        self.calls: list[fx.Node] = []
        self._copy_what_blocks_read()
        self._classify()

    def _copy_what_blocks_read(self) -> None:
        """A parameter that blocks are given becomes a result of the unit before: a copy, which may outlive it."""
        copies: dict[fx.Node, fx.Node] = {}
        for call in [node for node in self.graph.nodes if node.target is self.is_block]:
            for source in [n for n in call.all_input_nodes if n.meta.get("parameter")]:
                if source not in copies:
                    with self.graph.inserting_before(call):
                        copies[source] = self.graph.call_function(torch.ops.aten.clone.default, (source,))
                    copies[source].meta["val"] = source.meta["val"]
                call.replace_input_with(source, copies[source])

    def _classify(self) -> None:
        parameter_only: list[fx.Node] = []
        for node in self.graph.nodes:
            if node.op == "output":
                continue
            if node.target is self.is_block:
                self.position[node] = 2 * len(self.calls) + 1
                self.calls.append(node)
            elif _belongs_to_a_unit(node):
                parameter_only.append(node)
            elif node.op in ("placeholder", "get_attr") or all(n in self.free for n in node.all_input_nodes):
                self.free.add(node)
            else:
                placed = [self.position[n] for n in node.all_input_nodes if n in self.position]
                if placed:
                    self.position[node] = self._after(node, max(placed))
                elif self._reads_batch(node):
                    self.position[node] = 0
                else:
                    parameter_only.append(node)
        for node in reversed(parameter_only):
            users = [self.position[user] for user in node.users if user in self.position]
            first = min(users, default=0)
            self.position[node] = first - first % 2  # what a block reads is made just before it
        self._check_updates()

    def _check_updates(self) -> None:
        for node in self.graph.nodes:
            if (
                node.op == "get_attr"
                and node.meta.get("updated")
                and len({self.position[u] for u in node.users}) > 1
            ):
                raise TraceError(
                    str(node.target),
                    "a buffer that forward changes, used before and after a repeated block",
                    "such a buffer in one place",
                    "let one module both read and change it, and call that module once",
                )

    def _reads_batch(self, node: fx.Node) -> bool:
        return any(n in self.free for n in node.all_input_nodes)

    def _after(self, node: fx.Node, position: int) -> int:
        """An outer op that reads a block's result stands just behind it; the pick of one result belongs to it."""
        if position % 2 == 1 and not self._is_pick(node):
            return position + 1
        return position

    def _is_pick(self, node: fx.Node) -> bool:
        return node.target is operator.getitem and getattr(node.args[0], "target", None) is self.is_block

    def _name(self, node: fx.Node) -> str:
        if node.op == "placeholder":
            return f"batch.{node.target}"
        return f"free.{node.name}" if node in self.free else node.name

    def chain(self) -> Chain:
        (loss,) = next(n for n in self.graph.nodes if n.op == "output").args[0]  # type: ignore[misc]
        self._fix_positions(loss)
        links = []
        for position in sorted({*self.position.values()}):
            link = self._call_link(position) if position % 2 else self._outer_link(position, loss)
            if link is not None:
                links.append(link)
        wanted = {name for link in links for name in link.reads if name.startswith("free.")}
        nodes = [n for n in self.graph.nodes if n in self.free and self._name(n) in wanted]
        free = extract(self.graph, nodes, [], keep=self.free)
        return Chain(links, free, self._name(loss))

    def _fix_positions(self, loss: fx.Node) -> None:
        if loss not in self.position:  # a loss that no parameter touches: let it stand at the end
            self.position[loss] = 2 * len(self.calls)
            self.free.discard(loss)

    def _call_link(self, position: int) -> Link:
        node = self.calls[position // 2]
        reads = [self._name(n) for n in node.args[0]]  # type: ignore[union-attr]
        count = len(node.meta["val"])
        writes = [f"{node.name}.{index}" for index in range(count)]
        for user in node.users:
            writes[user.args[1]] = user.name  # type: ignore[index]
        return Link(position, node.args[1], reads, writes, None)  # type: ignore[arg-type]

    def _outer_link(self, position: int, loss: fx.Node) -> Link | None:
        own = {n for n, p in self.position.items() if p == position}
        # A parameter read at several positions (a tied embedding) appears in each of them.
        weights = {n for user in own for n in user.all_input_nodes if _belongs_to_a_unit(n)}
        body = [n for n in self.graph.nodes if n in own or n in weights]
        if not any(n.op == "call_function" for n in body):
            return None
        inside = set(body)
        inputs = []
        for node in body:
            for source in node.all_input_nodes:
                if source not in inside and source not in inputs:
                    inputs.append(source)
        outputs = [
            n
            for n in body
            if n.op == "call_function"
            and (n is loss or any(self.position.get(u, position) != position for u in n.users))
        ]
        updates = [n for n in body if n.op == "call_function" and n.meta.get("updated")]
        graph = extract(self.graph, outputs, inputs, keep=inside, effects=updates)
        return Link(position, None, [self._name(n) for n in inputs], [self._name(n) for n in outputs], graph)


def _belongs_to_a_unit(node: fx.Node) -> bool:
    """A parameter, or a buffer that forward changes: each stands in the units that read it."""
    return bool(node.meta.get("parameter")) or (node.op == "get_attr" and bool(node.meta.get("updated")))


def extract(
    source: fx.Graph,
    outputs: list[fx.Node],
    inputs: list[fx.Node],
    keep: set[fx.Node],
    effects: Sequence[fx.Node] = (),
) -> fx.Graph:
    """A new graph that computes ``outputs`` of ``source`` from ``inputs``, using nodes of ``keep`` only.

    ``effects`` are nodes that it runs for what they change. Node names stay as they are. Placeholders come in the order of ``inputs``, then those of ``keep``.
    """
    needed: set[fx.Node] = set()
    pending = [*outputs, *effects]
    while pending:
        node = pending.pop()
        if node in needed or node in inputs:
            continue
        needed.add(node)
        pending.extend(node.all_input_nodes)
    graph = fx.Graph()
    env: dict[fx.Node, fx.Node] = {}
    for node in inputs:
        target = str(node.target) if node.op == "placeholder" else node.name
        env[node] = graph.create_node("placeholder", target, name=node.name)
        env[node].meta.update(node.meta)
    for node in source.nodes:
        if node in needed and node in keep:
            env[node] = graph.node_copy(node, lambda n: env[n])
    output = graph.output(tuple(env[node] for node in outputs))
    output.meta["val"] = tuple(node.meta["val"] for node in outputs)
    return graph
