"""Which ops of a block are worth running again: the exact frontier between bytes kept and seconds spent.

Let x_o be 1 if step o runs again, y_s if storage s is needed in the backward pass (``cost.storages``). With b_s the
bytes of a storage, i_o those that only o's backward reads, t_o the seconds of a step and a price λ of a byte,

    minimise   Σ_s λ b_s [y_s = 1 and its maker does not run again] + Σ_o (t_o x_o + λ i_o (1 - x_o))
    such that  y_s = 1 where some backward reads s,  y_s ≥ x_o where o reads s

is a minimum cut: of the source, the storages and the steps that are 1. Each λ gives a policy that none beats; the
breakpoints between two policies are found by asking with the λ at which both cost the same (Eisner and Severance, 1976).
A few of them are offered, as the integer program of the stages mixes them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from autoplan.cost.keep import attention_core, needed, on_or_above

if TYPE_CHECKING:
    from autoplan.cost.storages import Storages
    from autoplan.cost.times import Times
    from autoplan.graph.ir import Block
    from autoplan.hardware import Cluster

__all__ = ["POLICIES", "frontier", "policies"]

POLICIES = ("selective", "ops1", "ops2", "offload")
"""The policies that there may be: the attention core alone; two points of the exact frontier; and what can be copied to
the host's memory and back while the unit computes, which is taken only where it is asked for."""

_ROUNDS = 3  # of splitting the frontier: up to 2 ** 3 - 1 points between its ends
_UNIT = 1 << 40  # capacities are integers


def policies(block: Block, found: Storages, times: Times, cluster: Cluster) -> dict[str, dict[str, str]]:
    """The policies of ``POLICIES`` that make something of ``block`` worth making again; none for what never repeats."""
    if not block.path:
        return {}
    chosen: dict[str, dict[str, str]] = {}
    if core := attention_core(found):
        chosen["selective"] = core
    points = frontier(found)[1:]
    whole_s = times.forward_s + times.forward_comm_s
    points = [point for point in points if point[1] < whole_s]
    for name, steps in zip(("ops1", "ops2"), _most_useful(found.kept_bytes, points), strict=False):
        chosen[name] = dict.fromkeys(steps, "recompute")
    if parked := _parked(found, times, cluster):
        chosen["offload"] = dict.fromkeys(parked, "offload")
    return chosen


def _parked(found: Storages, times: Times, cluster: Cluster) -> list[str]:
    """The largest storages, one after another, while their copies take no longer than the passes beside them."""
    host = cluster.device.host
    if host is None:
        return []
    sizes = {s.maker: s.nbytes for s in found.storages if s.needed and s.maker and s.nbytes}
    chosen: list[str] = []
    total = 0.0
    for name in sorted(sizes, key=lambda name: (-sizes[name], name)):
        nbytes = total + sizes[name] + found.steps[name].inside_bytes
        if (
            host.time_s(nbytes, "to_host") <= times.forward_s
            and host.time_s(nbytes, "from_host") <= times.backward_s
        ):
            chosen.append(name)
            total = nbytes
    return [name for name in found.steps if name in chosen]


def frontier(found: Storages) -> list[tuple[float, float, tuple[str, ...]]]:
    """Bytes kept, seconds spent and steps that run again, from nothing again to the fewest bytes: the lower hull."""
    first = _priced(found, ())
    last = _priced(found, _cut(found, 1e6))
    if last[0] >= first[0]:
        return [first]
    points = {first[:2]: first, last[:2]: last}
    pairs = [(first, last)]
    for _ in range(_ROUNDS):
        halves = []
        for a, b in pairs:
            middle = _priced(found, _cut(found, (b[1] - a[1]) / (a[0] - b[0])))
            if not on_or_above(a[:2], middle[:2], b[:2]):  # a cut of the same cost may lie on their line
                points[middle[:2]] = middle
                halves += [(a, middle), (middle, b)]
        pairs = halves
    return sorted(points.values(), key=lambda point: -point[0])


def _priced(found: Storages, again: Sequence[str]) -> tuple[float, float, tuple[str, ...]]:
    runs, held = needed(found, again)
    kept = sum(found.storages[index].nbytes for index in held)
    kept += sum(step.inside_bytes for step in found.steps.values() if step.name not in runs)
    names = tuple(name for name in found.steps if name in runs)  # in this order sums are the same every time
    return kept, sum(found.steps[name].forward_s + found.steps[name].comm_s for name in names), names


def _cut(found: Storages, byte_s: float) -> tuple[str, ...]:
    """The steps that run again where a byte kept costs ``byte_s`` seconds."""
    from ortools.graph.python import max_flow

    steps = [step for step in found.steps.values() if step.again]
    node = {step.name: 2 + index for index, step in enumerate(steps)}
    kept = [byte_s * storage.nbytes for storage in found.storages]
    total = sum(kept) + sum(step.forward_s + step.comm_s + byte_s * step.inside_bytes for step in steps)
    scale = _UNIT / (total or 1.0)
    flow, source, sink, never = max_flow.SimpleMaxFlow(), 0, 1, 4 * _UNIT
    at = 2 + len(steps)

    def edge(a: int, b: int, seconds: float) -> None:
        flow.add_arc_with_capacity(a, b, round(seconds * scale))

    for index, storage in enumerate(found.storages):
        edge(at + index, node.get(storage.maker, sink), kept[index])
        if storage.needed:
            flow.add_arc_with_capacity(source, at + index, never)
    for step in steps:
        edge(node[step.name], sink, step.forward_s + step.comm_s)
        if step.inside_bytes:
            edge(source, node[step.name], byte_s * step.inside_bytes)
        for index in step.reads:
            flow.add_arc_with_capacity(node[step.name], at + index, never)
    flow.solve(source, sink)
    reached = set(flow.get_source_side_min_cut())
    return tuple(step.name for step in steps if node[step.name] in reached)


def _most_useful(
    whole: float, points: Sequence[tuple[float, float, tuple[str, ...]]]
) -> list[tuple[str, ...]]:
    """Two of ``points``: the one that frees the most bytes for its seconds among those that free a good part, and the
    one with the fewest bytes."""
    if not points:
        return []
    last = points[-1]
    span = whole - last[0]
    good = [point for point in points[:-1] if whole - point[0] >= span / 3]
    first = max(good, key=lambda point: (whole - point[0]) / point[1], default=None)
    return [last[2]] if first is None else [first[2], last[2]]
