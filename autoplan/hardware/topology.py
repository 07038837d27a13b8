"""How the ranks that measure lie on the machine: which share an NVLink domain, which a node.

Every rank tells what it knows of itself (``here``), all of it is gathered, and ``nested_levels`` makes
levels of it. The launcher's word on what is a node counts first, since that is what divides local ranks;
host names stand in where the launcher says nothing, and are kept as a check. ``parse_levels`` reads what
a user says instead.
"""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import TYPE_CHECKING

from autoplan.errors import InputError
from autoplan.hardware.nvml import GpuFacts, read_gpu

if TYPE_CHECKING:
    import torch

__all__ = [
    "RankFacts",
    "Topology",
    "TopologyLevel",
    "discover",
    "launcher_node",
    "nested_levels",
    "parse_levels",
]

NODE_VARIABLES = ("GROUP_RANK", "NODE_RANK", "SLURM_NODEID")  # torchrun, hand-written launchers, srun


@dataclass(frozen=True, slots=True)
class TopologyLevel:
    """``size`` units of the level below, joined."""

    name: str
    size: int


@dataclass(frozen=True, slots=True)
class Topology:
    """The levels, innermost first; their sizes multiply to the number of ranks.

    Args:
        node_size: ranks that share a host's cores and memory.
        found: how the levels were found, for the profile's record.
    """

    levels: tuple[TopologyLevel, ...]
    node_size: int
    found: str = ""

    @property
    def world(self) -> int:
        return prod(level.size for level in self.levels)

    def unit(self, index: int) -> int:
        """Ranks of one unit that the level ``index`` joins."""
        return prod(level.size for level in self.levels[:index])


@dataclass(frozen=True, slots=True)
class RankFacts:
    """What one rank knows of where it runs.

    Args:
        node: the launcher's number of this rank's node, None where it gives none.
        node_size: ranks of this node by the launcher, 0 where it does not say.
        gpu: None on a CPU, or without NVML.
    """

    host: str
    node: int | None = None
    node_size: int = 0
    device: str = "cpu"
    gpu: GpuFacts | None = field(default=None)


def launcher_node(environment: Mapping[str, str] = os.environ) -> tuple[int | None, int]:
    """The node's number and its ranks, as the launcher's variables tell them; None and 0 where they do not."""
    numbers = (_number(environment, name) for name in NODE_VARIABLES)
    node = next((number for number in numbers if number is not None), None)
    size = _number(environment, "LOCAL_WORLD_SIZE") or _number(environment, "SLURM_NTASKS_PER_NODE") or 0
    return node, size


def _number(environment: Mapping[str, str], name: str) -> int | None:
    text = environment.get(name, "")
    return int(text) if re.fullmatch(r"\d{1,9}", text) else None


def here(device: torch.device) -> RankFacts:
    """The facts of this rank, which computes on ``device``."""
    node, size = launcher_node()
    gpu = None
    if device.type == "cuda":
        import torch

        uuid = str(getattr(torch.cuda.get_device_properties(device), "uuid", ""))
        gpu = read_gpu(uuid if uuid.startswith("GPU-") else f"GPU-{uuid}")
    return RankFacts(socket.gethostname(), node, size, device.type, gpu)


def discover(device: torch.device, levels: Sequence[TopologyLevel] = ()) -> Topology:
    """The topology of the default process group's ranks (or of this process); all ranks call it together.

    Args:
        levels: as the user gave them; they replace what would be found.

    Raises:
        InputError: ``levels`` do not multiply to the number of ranks, or the ranks lie so that there are
            no nested levels.
    """
    import torch.distributed as dist

    facts: list[RankFacts] = [here(device)]
    if dist.is_initialized():
        facts *= dist.get_world_size()
        dist.all_gather_object(facts, here(device))
    return nested_levels(facts, levels)


def nested_levels(ranks: Sequence[RankFacts], levels: Sequence[TopologyLevel] = ()) -> Topology:
    """Levels from the facts of all ranks, in the order of their numbers (see ``discover``)."""
    node_size, found = _node_size(ranks, strict=not levels)
    if levels:
        if prod(level.size for level in levels) != len(ranks):
            shape = " x ".join(str(level.size) for level in levels)
            raise InputError(
                "--levels",
                shape,
                f"sizes that multiply to {len(ranks)}, the number of ranks",
                "correct the sizes, or start another number of ranks",
            )
        return Topology(tuple(levels), node_size, "levels given by hand")
    world, gpus = len(ranks), ranks[0].device == "cuda"
    domain = _equal_runs(_nvlink_domains(ranks, node_size)) if gpus else 0
    sizes: list[TopologyLevel] = []
    if domain and domain > 1 and (node_size % domain == 0 or domain % node_size == 0):
        sizes.append(TopologyLevel("nvlink", domain))
        found += f"; NVML: NVLink joins {domain}"
        if node_size > domain:
            sizes.append(TopologyLevel("pcie", node_size // domain))
    else:
        sizes.append(TopologyLevel("node", node_size))
    inside = prod(level.size for level in sizes)
    if world > inside:
        sizes.append(TopologyLevel("network", world // inside))
    return Topology(tuple(sizes), node_size, found)


def _node_size(ranks: Sequence[RankFacts], *, strict: bool) -> tuple[int, str]:
    """Ranks of a node, and how that is known. Not ``strict``: 1 where the ranks lie otherwise."""
    world = len(ranks)
    hosts = len({rank.host for rank in ranks})
    spoken = {rank.node_size for rank in ranks}
    ways: list[tuple[str, Callable[[], int]]] = [
        ("launcher", lambda: _equal_runs([rank.node for rank in ranks])),
        ("launcher", lambda: next(iter(spoken)) if len(spoken) == 1 and 0 not in spoken else 0),
        ("host names", lambda: _equal_runs([rank.host for rank in ranks])),
    ]
    if any(rank.node is None for rank in ranks):
        ways.pop(0)
    for name, way in ways:
        size = way()
        if size and world % size == 0:
            return size, f"{name}: {world // size} nodes of {size} ranks, {hosts} host names"
    if not strict:
        return 1, ""
    raise InputError(
        "--levels",
        ", ".join(rank.host if rank.node is None else f"node {rank.node}" for rank in ranks[:8]),
        "ranks numbered node by node, as many on each node",
        "start the same number of ranks on every node, one node after the other, or give --levels",
    )


def _nvlink_domains(ranks: Sequence[RankFacts], node_size: int) -> list[Hashable]:
    """For each rank, its NVLink domain: the fabric's, the machine's switch, or those that links reach."""
    domains: list[Hashable] = []
    for index, rank in enumerate(ranks):
        node = index // node_size
        if rank.gpu is None or not (rank.gpu.fabric or rank.gpu.nvlinks):
            domains.append(("alone", index))
        elif rank.gpu.fabric:
            domains.append(rank.gpu.fabric)
        elif rank.gpu.switched:
            domains.append(("switch", node))
        else:
            domains.append(
                ("links", node, _reached(ranks[node * node_size : (node + 1) * node_size], rank.gpu))
            )
    return domains


def _reached(node: Sequence[RankFacts], gpu: GpuFacts) -> str:
    """The least bus id among the GPUs that NVLinks of this node join to ``gpu``, itself counted."""
    links = {rank.gpu.bus_id: set(rank.gpu.peers) for rank in node if rank.gpu is not None}
    reached, edge = {gpu.bus_id}, {gpu.bus_id}
    while edge:
        edge = {peer for bus_id in edge for peer in links.get(bus_id, ()) if peer in links} - reached
        reached |= edge
    return min(reached)


def _equal_runs(keys: Sequence[Hashable]) -> int:
    """The length of the runs of equal keys, if every key makes one run and all are as long; else 0.

    >>> _equal_runs("aabb"), _equal_runs("abab"), _equal_runs("aab")
    (2, 0, 0)
    """
    starts = [i for i, key in enumerate(keys) if i == 0 or key != keys[i - 1]]
    lengths = {end - start for start, end in zip(starts, [*starts[1:], len(keys)], strict=True)}
    return lengths.pop() if len(starts) == len(set(keys)) and len(lengths) == 1 else 0


def parse_levels(text: str) -> tuple[TopologyLevel, ...]:
    """``nvlink=8,node=4`` → levels, innermost first. Raises InputError."""
    levels = []
    for part in text.split(","):
        match = re.fullmatch(r"\s*([A-Za-z][A-Za-z0-9_-]{0,31})\s*=\s*([1-9]\d{0,6})\s*", part)
        if match is None:
            raise InputError(
                "--levels", text, "name=size, innermost level first, such as nvlink=8,node=4", "correct it"
            )
        levels.append(TopologyLevel(match[1], int(match[2])))
    names = [level.name for level in levels]
    if len(levels) > 8 or len(set(names)) < len(names):
        raise InputError("--levels", text, "at most 8 levels of different names", "correct it")
    return tuple(levels)
