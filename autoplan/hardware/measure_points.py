"""The points of a measurement: what is measured, under which name, and about how long it takes.

A point's ``key`` is its name in the journal; it holds all that the result depends on.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from autoplan.hardware.level import COLLECTIVES

if TYPE_CHECKING:
    from autoplan.hardware.measure_sizes import Sizes
    from autoplan.hardware.topology import Topology

__all__ = [
    "Attention",
    "Beside",
    "Copy",
    "Gemm",
    "Launch",
    "Memory",
    "Message",
    "Point",
    "group_sizes",
    "points_of",
]

ITEM_BYTES = {"float64": 8, "float32": 4, "bfloat16": 2, "float16": 2}


@dataclass(frozen=True, slots=True)
class Launch:
    """The least op. ``part``: ``queued`` (the device's own gap) or ``eager`` (the time to issue it)."""

    part: Literal["queued", "eager"]

    @property
    def key(self) -> str:
        return f"launch {self.part}"

    @property
    def nbytes(self) -> int:
        return 0

    @property
    def guess_ns(self) -> float:
        return 0.0


@dataclass(frozen=True, slots=True)
class Gemm:
    """``batch`` products of (m, k) by (k, n)."""

    dtype: str
    batch: int
    m: int
    n: int
    k: int

    @property
    def key(self) -> str:
        return f"gemm {self.dtype} {self.batch} x {self.m} x {self.n} x {self.k}"

    @property
    def nbytes(self) -> int:
        return ITEM_BYTES[self.dtype] * self.batch * (self.m * self.k + self.k * self.n + self.m * self.n)

    @property
    def guess_ns(self) -> float:
        return 2 * self.batch * self.m * self.n * self.k / 50


@dataclass(frozen=True, slots=True)
class Memory:
    """The sum of two float32 tensors of ``tensor_bytes``."""

    tensor_bytes: int

    @property
    def key(self) -> str:
        return f"memory {self.tensor_bytes}"

    @property
    def nbytes(self) -> int:
        return 3 * self.tensor_bytes

    @property
    def guess_ns(self) -> float:
        return self.nbytes / 5


@dataclass(frozen=True, slots=True)
class Attention:
    """Fused attention over ``batch`` sequences x heads of ``length``, head size ``head``."""

    dtype: str
    causal: bool
    batch: int
    length: int
    head: int
    backward: bool

    @property
    def key(self) -> str:
        form = "causal" if self.causal else "full"
        way = "backward" if self.backward else "forward"
        return f"attention {self.dtype} {form} {self.batch} x {self.length} x {self.head} {way}"

    @property
    def nbytes(self) -> int:
        return 8 * ITEM_BYTES[self.dtype] * self.batch * self.length * self.head

    @property
    def guess_ns(self) -> float:
        return (10 if self.backward else 4) * self.batch * self.length**2 * self.head / 30


@dataclass(frozen=True, slots=True)
class Copy:
    """A copy between a GPU and pinned memory of its host; ``both``: the other way at the same time."""

    direction: Literal["to_host", "from_host"]
    nbytes: int
    both: bool = False

    @property
    def key(self) -> str:
        return f"copy {self.direction}{' both' if self.both else ''} {self.nbytes}"

    @property
    def guess_ns(self) -> float:
        return self.nbytes / 5


@dataclass(frozen=True, slots=True)
class Message:
    """A collective over ``group`` units of ``level``; all groups of the level at once, or ``one`` alone."""

    level: int
    kind: str
    group: int
    message_bytes: int
    at_once: Literal["all", "one"] = "all"

    @property
    def key(self) -> str:
        return f"message {self.level} {self.kind} of {self.group} {self.at_once} {self.message_bytes}"

    @property
    def share(self) -> int:
        """Float32 elements of one member's share: the message is rounded up to whole shares."""
        return -(-self.message_bytes // (4 * self.group))

    @property
    def actual_bytes(self) -> int:
        return 4 * self.share * self.group

    @property
    def nbytes(self) -> int:
        return 2 * self.actual_bytes

    @property
    def guess_ns(self) -> float:
        return self.actual_bytes * self.group


@dataclass(frozen=True, slots=True)
class Beside:
    """``compute`` and a collective at once; ``part`` says whose slowdown is the result."""

    level: int
    kind: str
    group: int
    message_bytes: int
    compute: Literal["gemm", "memory"]
    part: Literal["compute", "communication"]

    @property
    def key(self) -> str:
        return (
            f"beside {self.level} {self.kind} of {self.group} {self.message_bytes} {self.compute} {self.part}"
        )

    @property
    def nbytes(self) -> int:
        return 3 * self.message_bytes

    @property
    def guess_ns(self) -> float:
        return 40.0 * self.message_bytes * self.group


Point = Launch | Gemm | Memory | Attention | Copy | Message | Beside


def group_sizes(level_size: int) -> list[int]:
    """The powers of two up to a level's size, and that size."""
    sizes = [2**i for i in range(1, level_size.bit_length()) if 2**i < level_size]
    return [*sizes, level_size] if level_size > 1 else []


def points_of(sizes: Sizes, topology: Topology, device_kind: str) -> list[Point]:
    """Every point of one measurement, in the order in which they are measured."""
    launches: list[Point] = [Launch("queued"), *([Launch("eager")] if device_kind == "cuda" else [])]
    copies: list[Point] = []
    if device_kind == "cuda":
        copies = [
            Copy(direction, nbytes, both)
            for both in (False, True)
            for direction in ("to_host", "from_host")
            for nbytes in (sizes.copies if not both else sizes.copies[-1:])
        ]
    return [*launches, *_compute(sizes), *copies, *_messages(sizes, topology), *_beside(sizes, topology)]


def _compute(sizes: Sizes) -> Iterator[Point]:
    for dtype, axes in sizes.gemm.items():
        for m, n, k in itertools.product(*axes):
            yield Gemm(dtype, 1, m, n, k)
    for dtype, axes in sizes.batched_gemm.items():
        for batch, m, n, k in itertools.product(*axes):
            yield Gemm(dtype, batch, m, n, k)
    for nbytes in sizes.memory:
        yield Memory(nbytes)
    for dtype, lengths in sizes.attention.items():
        for causal, head, length in itertools.product((False, True), sizes.head_sizes, lengths):
            for backward in (False, True):
                yield Attention(dtype, causal, sizes.attention_batch, length, head, backward)


def _messages(sizes: Sizes, topology: Topology) -> Iterator[Point]:
    for index, level in enumerate(topology.levels):
        for group in group_sizes(level.size):
            for kind in COLLECTIVES:
                if kind == "send_recv" and group > 2:
                    continue
                for nbytes in sizes.messages:
                    yield Message(index, kind, group, nbytes)
                    shared = topology.unit(index) > 1 and group in (2, level.size)
                    if shared:
                        yield Message(index, kind, group, nbytes, "one")


def _beside(sizes: Sizes, topology: Topology) -> Iterator[Point]:
    for index, level in enumerate(topology.levels):
        if level.size < 2:
            continue
        for kind in sizes.beside_kinds:
            for compute in ("gemm", "memory"):
                for part in ("compute", "communication"):
                    yield Beside(index, kind, level.size, sizes.beside_bytes, compute, part)
