"""A trace as figures of a profile: rates of matrix products, and what overlapping costs."""

from __future__ import annotations

import bisect
import datetime
import statistics
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from msgspec.structs import replace

import autoplan
from autoplan.errors import ProfileError
from autoplan.hardware.cluster import Cluster
from autoplan.hardware.import_curve import NOISY, free_key
from autoplan.hardware.kineto import Gemm, Kernel, Trace
from autoplan.hardware.overlap import Slowdown
from autoplan.hardware.source import Source, SourceKind
from autoplan.hardware.tables import BatchedGemmPoint, BatchedGemmTable, GemmPoint, GemmTable

__all__ = ["TraceFigures", "trace_figures", "with_trace"]

_Figures = dict[Gemm, tuple[float, float, int]]  # seconds, spread, samples

ALONE = 0.05  # a kernel that overlaps others for less of its time ran alone
BESIDE = 0.5  # one that overlaps for more of it tells how much it is slowed


@dataclass(frozen=True, slots=True)
class TraceFigures:
    """What a trace tells: seconds of products by their sizes, and slowdowns (their source still empty)."""

    gemms: _Figures
    slowdowns: tuple[Slowdown, ...]


def trace_figures(trace: Trace, level: str = "") -> TraceFigures:
    """Median seconds, spread and samples of each product that ran alone; slowdown of each overlap.

    A kernel that takes d, of which t beside the other kind, and a when it is alone, did ``a - (d - t)``
    of its work in t: it was slowed by ``t / (a - (d - t))``. The median over kernels counts, and for
    compute those kernels are of one class (products, attention, the rest). A collective's kernel also
    waits for its peers: its factor is a bound from above.

    Args:
        level: that the collectives of the trace cross.
    """
    compute = [kernel for kernel in trace.kernels if not kernel.collective]
    sent = [kernel for kernel in trace.kernels if kernel.collective]
    beside_sent, beside_compute = _Busy(sent), _Busy(compute)
    gemms: dict[Gemm, list[float]] = defaultdict(list)
    for gemm, parts in trace.products:
        if all(beside_sent.share(kernel) < ALONE for kernel in parts):
            gemms[gemm].append(sum(kernel.time_us for kernel in parts) * 1e-6)
    return TraceFigures(
        gemms={gemm: _median(times) for gemm, times in gemms.items()},
        slowdowns=tuple(_slowdowns(compute, sent, beside_sent, beside_compute, level)),
    )


def with_trace(cluster: Cluster, figures: TraceFigures, file: Path) -> Cluster:
    """``cluster`` with the products and slowdowns of a trace; points of the same sizes are replaced.

    Products of dtypes that the profile has no peak for are left out.

    Raises:
        ProfileError: the trace told nothing that the profile could hold.
    """
    known = {g: t for g, t in figures.gemms.items() if g.dtype in cluster.device.peak_flops}
    if not known and not figures.slowdowns:
        raise ProfileError(
            file.name,
            None,
            "matrix products that ran alone, or compute beside collectives",
            "record some steps with record_shapes=True",
        )
    key = free_key(cluster, "kineto")
    device = replace(
        cluster.device,
        gemm=_gemm_tables(cluster, known, key),
        batched_gemm=_batched_tables(cluster, known, key),
    )
    new = tuple(replace(slowdown, source=key) for slowdown in figures.slowdowns)
    places = {(s.communication, s.compute, s.level) for s in new}
    kept = tuple(s for s in cluster.slowdown if (s.communication, s.compute, s.level) not in places)
    source = Source(
        kind=SourceKind.MEASURED,
        document=f"{file.name}: medians over the kernels of the trace",
        date=datetime.date.fromtimestamp(file.stat().st_mtime).isoformat(),
        tool=f"torch.profiler, read by autoplan {autoplan.__version__}",
    )
    return replace(cluster, device=device, slowdown=(*kept, *new), sources=cluster.sources | {key: source})


def _median(times: Sequence[float]) -> tuple[float, float, int]:
    """(median, spread, samples)."""
    middle = statistics.median(times)
    quarters = statistics.quantiles(times, n=4) if len(times) > 1 else [middle] * 3
    return middle, max(0.0, quarters[2] - quarters[0]) / middle, len(times)


class _Busy:
    """When kernels of a kind run, on each device, as disjoint intervals."""

    def __init__(self, kernels: Iterable[Kernel]) -> None:
        self._spans: dict[str, list[tuple[float, float]]] = defaultdict(list)
        for kernel in sorted(kernels, key=lambda kernel: kernel.start_us):
            spans = self._spans[kernel.device]
            if spans and kernel.start_us <= spans[-1][1]:
                spans[-1] = (spans[-1][0], max(spans[-1][1], kernel.end_us))
            else:
                spans.append((kernel.start_us, kernel.end_us))
        self._starts = {device: [start for start, _ in spans] for device, spans in self._spans.items()}

    def overlap_us(self, kernel: Kernel) -> float:
        spans, starts = self._spans.get(kernel.device, []), self._starts.get(kernel.device, [])
        total, index = 0.0, max(0, bisect.bisect_right(starts, kernel.start_us) - 1)
        while index < len(spans) and spans[index][0] < kernel.end_us:
            total += max(0.0, min(spans[index][1], kernel.end_us) - max(spans[index][0], kernel.start_us))
            index += 1
        return total

    def share(self, kernel: Kernel) -> float:
        return self.overlap_us(kernel) / kernel.time_us


def _slowdowns(
    compute: Sequence[Kernel], sent: Sequence[Kernel], beside_sent: _Busy, beside_compute: _Busy, level: str
) -> Iterable[Slowdown]:
    """One for each collective and class of compute that were seen together and alone."""
    alone_s = _alone(compute, beside_sent)
    sent_alone_s = _alone(sent, beside_compute)
    for collective in sorted({kernel.collective for kernel in sent} - {"other"}):
        same = _Busy(kernel for kernel in sent if kernel.collective == collective)
        slowed_sent = _factors([k for k in sent if k.collective == collective], beside_compute, sent_alone_s)
        for kind in ("gemm", "attention", "memory"):
            slowed = _factors([k for k in compute if _class(k) == kind], same, alone_s)
            if not slowed or not slowed_sent:
                continue
            factor, spread, samples = _median(slowed)
            yield Slowdown(
                communication=collective,
                compute=kind,
                level=level,
                compute_factor=_rounded(factor),
                communication_factor=_rounded(statistics.median(slowed_sent)),
                source="",
                spread=float(f"{spread:.3g}"),
                samples=samples,
                noisy=spread > NOISY,
            )


def _rounded(factor: float) -> float:
    return min(1000.0, max(1.0, float(f"{factor:.4g}")))


def _alone(kernels: Iterable[Kernel], other: _Busy) -> dict[tuple[object, ...], float]:
    times: dict[tuple[object, ...], list[float]] = defaultdict(list)
    for kernel in kernels:
        if other.share(kernel) < ALONE:
            times[kernel.key].append(kernel.time_us)
    return {key: statistics.median(values) for key, values in times.items()}


def _factors(
    kernels: Iterable[Kernel], other: _Busy, alone_us: dict[tuple[object, ...], float]
) -> list[float]:
    """By how much each kernel that ran mostly beside the other kind was slowed."""
    found = []
    for kernel in kernels:
        together_us = other.overlap_us(kernel)
        if kernel.key not in alone_us or together_us < BESIDE * kernel.time_us:
            continue
        work_us = alone_us[kernel.key] - (kernel.time_us - together_us)
        if work_us > 0:
            found.append(together_us / work_us)
    return found


def _class(kernel: Kernel) -> str:
    if kernel.gemm is not None:
        return "gemm"
    name = f"{kernel.op} {kernel.name}".lower()
    words = ("attention", "flash", "fmha", "sdpa")
    return "attention" if any(word in name for word in words) else "memory"


def _gemm_tables(cluster: Cluster, gemms: _Figures, source: str) -> tuple[GemmTable, ...]:
    """The tables there are without the points that are replaced, then the new ones."""
    new = {(g.dtype, g.m, g.n, g.k): _rate(g, *figure) for g, figure in gemms.items() if g.batch == 1}
    kept = []
    for table in cluster.device.gemm:
        points = tuple(p for p in table.points if (table.dtype, p.m, p.n, p.k) not in new)
        kept += [replace(table, points=points)] if points else []
    added = [
        GemmTable(dtype=dtype, source=source, points=tuple(GemmPoint(*[*k[1:], *new[k]]) for k in keys))
        for dtype, keys in _by_dtype(new).items()
    ]
    return (*kept, *added)


def _batched_tables(cluster: Cluster, gemms: _Figures, source: str) -> tuple[BatchedGemmTable, ...]:
    """As ``_gemm_tables``, of several products at once."""
    new = {(g.dtype, g.batch, g.m, g.n, g.k): _rate(g, *figure) for g, figure in gemms.items() if g.batch > 1}
    kept = []
    for table in cluster.device.batched_gemm:
        points = tuple(p for p in table.points if (table.dtype, p.batch, p.m, p.n, p.k) not in new)
        kept += [replace(table, points=points)] if points else []
    added = [
        BatchedGemmTable(
            dtype=dtype, source=source, points=tuple(BatchedGemmPoint(*[*k[1:], *new[k]]) for k in keys)
        )
        for dtype, keys in _by_dtype(new).items()
    ]
    return (*kept, *added)


def _by_dtype(points: Iterable[tuple[Any, ...]]) -> dict[str, list[tuple[Any, ...]]]:
    """The keys of points, whose first part is the dtype, in order."""
    found: dict[str, list[tuple[Any, ...]]] = defaultdict(list)
    for key in sorted(points):
        found[key[0]].append(key)
    return found


def _rate(gemm: Gemm, time_s: float, spread: float, samples: int) -> tuple[float, float, int, bool]:
    flops = 2 * gemm.batch * gemm.m * gemm.n * gemm.k / time_s
    return float(f"{flops:.5g}"), float(f"{spread:.3g}"), samples, spread > NOISY
