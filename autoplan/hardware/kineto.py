"""A trace of the PyTorch profiler (Kineto's Chrome trace), read into matrix products and overlaps.

The trace must be recorded with ``record_shapes=True``. A kernel is tied to the op that launched it by
its correlation id: the call of the CUDA runtime with the same id lies, on its thread, inside the op.
"""

from __future__ import annotations

import bisect
import gzip
import math
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from autoplan.errors import ProfileError

__all__ = ["Gemm", "Kernel", "Trace", "read_kineto"]

LARGEST_SIZE = 2**40
DEEPEST = 10_000  # ops looked back upon for those that are still open

DTYPES = {
    "c10::BFloat16": "bfloat16",
    "c10::Half": "float16",
    "float": "float32",
    "double": "float64",
    "c10::Float8_e4m3fn": "fp8",
    "c10::Float8_e5m2": "fp8",
    "c10::Float8_e4m3fnuz": "fp8",
    "c10::Float8_e5m2fnuz": "fp8",
}
# Where the two factors stand among the inputs of an op.
PRODUCTS = {
    "aten::mm": (0, 1),
    "aten::bmm": (0, 1),
    "aten::addmm": (1, 2),
    "aten::baddbmm": (1, 2),
    "aten::linear": (0, 1),
    "aten::_scaled_mm": (0, 1),
}
COLLECTIVES = {
    "allreduce": "all_reduce",
    "allgather": "all_gather",
    "reducescatter": "reduce_scatter",
    "alltoall": "all_to_all",
    "sendrecv": "send_recv",
}


class _Event(msgspec.Struct, frozen=True):
    ph: str = ""
    cat: str = ""
    name: str = ""
    ts: float = 0.0
    dur: float = 0.0
    pid: int | str = 0
    tid: int | str = 0
    args: dict[str, Any] = {}


class _File(msgspec.Struct, frozen=True):
    events: list[_Event] = msgspec.field(name="traceEvents")


@dataclass(frozen=True, slots=True)
class Gemm:
    """The sizes of one product: ``batch`` times (m, k) by (k, n)."""

    dtype: str
    batch: int
    m: int
    n: int
    k: int


@dataclass(frozen=True, slots=True)
class Kernel:
    """A kernel that ran on a device, in microseconds.

    Args:
        device: it ran on; kernels of different devices never slow each other here.
        collective: that NCCL ran in it, if so.
        gemm: that it computed, if it was launched by a product.
        key: what makes two kernels alike: the name and what it worked on.
    """

    name: str
    start_us: float
    end_us: float
    device: str
    key: tuple[Any, ...]
    collective: str = ""
    gemm: Gemm | None = None
    op: str = ""

    @property
    def time_us(self) -> float:
        return self.end_us - self.start_us


@dataclass(frozen=True, slots=True)
class Trace:
    """The kernels of a trace, by their start, and products as the lists of their kernels."""

    kernels: tuple[Kernel, ...]
    products: tuple[tuple[Gemm, tuple[Kernel, ...]], ...]


def read_kineto(path: Path) -> Trace:
    """The trace in ``path`` (JSON, or that compressed by gzip).

    Raises:
        ProfileError: it cannot be read, is not such a trace, or holds no kernels.
    """
    file = _decoded(path)
    ops, launches, kernels = [], {}, []
    for index, event in enumerate(file.events):
        if event.ph != "X":
            continue
        place = f"{path.name}: traceEvents[{index}]"
        if not (math.isfinite(event.ts) and 0 <= event.dur < 1e15 and abs(event.ts) < 1e18):
            raise ProfileError(
                place, [event.ts, event.dur], "a time and a duration in us", "correct the trace"
            )
        if event.cat == "cpu_op":
            ops.append(event)
        elif event.cat in ("cuda_runtime", "cuda_driver", "hip_runtime"):
            launches[_correlation(event)] = event
        elif event.cat == "kernel" and event.dur > 0:
            kernels.append(event)
    if not kernels:
        raise ProfileError(path.name, 0, "kernels of a GPU", "profile with ProfilerActivity.CUDA")
    owners = _Owners(ops)
    found: list[Kernel] = []
    products: dict[tuple[int, int], tuple[Gemm, list[Kernel]]] = {}
    for event in sorted(kernels, key=lambda event: event.ts):
        launch = launches.get(_correlation(event))
        op = owners.of(launch) if launch is not None and _correlation(launch) is not None else None
        kernel = _kernel(event, op, path.name)
        found.append(kernel)
        if kernel.gemm is not None and op is not None:
            products.setdefault((id(op), 0), (kernel.gemm, []))[1].append(kernel)
    return Trace(tuple(found), tuple((gemm, tuple(parts)) for gemm, parts in products.values()))


def _decoded(path: Path) -> _File:
    try:
        data = path.read_bytes()
        if data[:2] == b"\x1f\x8b":
            data = gzip.decompress(data)
        return msgspec.json.decode(data, type=_File)
    except (OSError, EOFError, zlib.error) as error:
        raise ProfileError(
            str(path), str(error), "a readable trace", "correct the file or its path"
        ) from error
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError, ValueError) as error:
        raise ProfileError(
            path.name,
            str(error),
            "a trace as torch.profiler exports it",
            "export it with export_chrome_trace",
        ) from error


def _correlation(event: _Event) -> int | None:
    value = event.args.get("correlation")
    return value if isinstance(value, int) else None


class _Owners:
    """Which op of a thread was open at a time: the innermost that holds it, products before others."""

    def __init__(self, ops: Sequence[_Event]) -> None:
        self._threads: dict[tuple[Any, Any], list[_Event]] = {}
        for op in sorted(ops, key=lambda op: (op.ts, -op.dur)):
            self._threads.setdefault((op.pid, op.tid), []).append(op)
        self._starts = {thread: [op.ts for op in ops] for thread, ops in self._threads.items()}

    def of(self, launch: _Event) -> _Event | None:
        thread = (launch.pid, launch.tid)
        ops = self._threads.get(thread, [])
        last = bisect.bisect_right(self._starts.get(thread, []), launch.ts) - 1
        innermost = None
        for op in _enclosing(ops, last, launch.ts):
            innermost = innermost or op
            if op.name in PRODUCTS:
                return op
        return innermost


def _enclosing(ops: Sequence[_Event], last: int, time_us: float) -> Iterator[_Event]:
    """The ops that are open at a time, innermost first."""
    for index in range(last, max(-1, last - DEEPEST), -1):
        if ops[index].ts + ops[index].dur >= time_us:
            yield ops[index]


def _kernel(event: _Event, op: _Event | None, where: str) -> Kernel:
    collective = _collective(event)
    gemm = _gemm(op, where) if op is not None and not collective else None
    sizes = ("In msg nelems", "Group size", "dtype") if collective else ("grid", "block")
    key = (event.name, gemm, *(repr(event.args.get(size)) for size in sizes))
    return Kernel(
        name=event.name,
        start_us=event.ts,
        end_us=event.ts + event.dur,
        device=repr(event.args.get("device", event.pid)),
        key=key,
        collective=collective,
        gemm=gemm,
        op=op.name if op is not None else "",
    )


def _collective(event: _Event) -> str:
    """The collective of NCCL's (or RCCL's) kernel; what is not one of ours is ``other``."""
    name = event.name.lower()
    if not name.startswith(("nccl", "rccl")):
        return ""
    told = str(event.args.get("Collective name", "")).lower().replace("_", "")
    for text in (told, name.replace("_", "")):
        for word, collective in COLLECTIVES.items():
            if word in text:
                return collective
    return "other"


def _gemm(op: _Event, where: str) -> Gemm | None:
    """The sizes of a product op; None for other ops. Raises ProfileError where the trace has no shapes."""
    if op.name not in PRODUCTS:
        return None
    dims, types = op.args.get("Input Dims"), op.args.get("Input type")
    left, right = PRODUCTS[op.name]
    if not isinstance(dims, list) or not isinstance(types, list) or len(dims) <= right or len(types) <= left:
        raise ProfileError(
            f"{where}: {op.name}",
            dims,
            "Input Dims and Input type",
            "record the trace with record_shapes=True",
        )
    a, b = _shape(dims[left]), _shape(dims[right])
    dtype = DTYPES.get(types[left]) if isinstance(types[left], str) else None
    if dtype is None or a is None or b is None:
        return None
    return _product(op.name, dtype, a, b)


def _product(name: str, dtype: str, a: list[int], b: list[int]) -> Gemm | None:
    if name == "aten::linear":
        rows = math.prod(a[:-1])
        fits = len(a) >= 1 and len(b) == 2 and a[-1] == b[1] and rows <= LARGEST_SIZE
        return Gemm(dtype, 1, rows, b[0], b[1]) if fits else None
    if len(a) == len(b) == 2 and a[1] == b[0]:
        return Gemm(dtype, 1, a[0], b[1], a[1])
    if len(a) == len(b) == 3 and a[0] == b[0] and a[2] == b[1]:
        return Gemm(dtype, a[0], a[1], b[2], a[2])
    return None


def _shape(value: Any) -> list[int] | None:
    if not isinstance(value, list) or not value:
        return None
    if not all(isinstance(size, int) and 0 < size <= LARGEST_SIZE for size in value):
        return None
    return value
