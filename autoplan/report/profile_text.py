"""A hardware profile for people: its figures with their sources, its curves as rows of blocks."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from autoplan import units
from autoplan.hardware.cluster import Cluster
from autoplan.hardware.figures import Curve, Figure, curves_of, figures_of, rate_at
from autoplan.hardware.mixed import MixedCluster
from autoplan.hardware.profile_diff import Difference, ProfileDiff

__all__ = [
    "Line",
    "diff_text",
    "lines_of",
    "mixed_text",
    "profile_text",
    "quantity",
    "shape",
    "sources_summary",
]

BLOCKS = "▁▂▃▄▅▆▇█"
MESSAGES = tuple(1 << power for power in range(10, 31, 2))
EDGES = (256, 512, 1024, 2048, 4096, 8192, 16384)
LENGTHS = (256, 512, 1024, 2048, 4096, 8192, 16384)
STREAMS = tuple(1 << power for power in range(14, 31, 2))
HEADS, HEAD_SIZE = 32, 128


@dataclass(frozen=True, slots=True)
class Line:
    """A rate over a size: measured points, or what the profile's formulas give.

    Args:
        what: measured by (points, source), or ``by formula``.
    """

    name: str
    axis: str
    unit: str
    sizes: tuple[int, ...]
    rates: tuple[float, ...]
    what: str


def quantity(value: float, unit: str) -> str:
    """A figure with its unit and prefix."""
    printers = {
        "B": units.bytes_binary,
        "B/s": units.bytes_rate,
        "FLOP/s": units.flops_rate,
        "s": units.seconds,
    }
    if unit in printers:
        return printers[unit](value)
    text = f"{value:,.4g}" if value != int(value) or abs(value) >= 1e15 else f"{int(value):,}"
    return {"W": f"{text} W", "$/h": f"${value:,.2f} an hour"}.get(unit, text)


def shape(cluster: Cluster) -> str:
    """``8 nvlink x 8 NICs of 50 GB/s``: the node and its way out."""
    parts = [f"{cluster.node_size} by {cluster.levels[0].name}"]
    for level in cluster.levels[1:]:
        rate = units.bytes_rate(level.bandwidth_bytes_per_s)
        parts.append(f"{level.nics} x {rate} {level.name}")
    return ", ".join(parts)


def sources_summary(cluster: Cluster) -> str:
    """``24 datasheet, 11 published, 9 assumed``: how many figures and tables rest on what."""
    counts: dict[str, int] = {}
    keys = [figure.source for figure in figures_of(cluster)] + [curve.source for curve in curves_of(cluster)]
    for key in keys:
        if key in cluster.sources:
            kind = str(cluster.sources[key].kind)
            counts[kind] = counts.get(kind, 0) + 1
    ordered = sorted(counts.items(), key=lambda item: -item[1])
    return ", ".join(f"{count} {kind}" for kind, count in ordered)


def profile_text(cluster: Cluster) -> str:
    """Everything that a profile says, on some screens."""
    figures = [
        (f.path, quantity(f.value, f.unit), _certainty(f), _origin(cluster, f.source))
        for f in figures_of(cluster)
    ]
    lines = [str(cluster), *([cluster.description] if cluster.description else []), ""]
    lines += [*_columns(figures), ""]
    lines += ["rates over sizes, each row up to its own best"]
    lines += list(_plots(lines_of(cluster)))
    lines += ["", "sources"]
    lines += [f"  {key}: {source}" for key, source in cluster.sources.items()]
    lines += [f"  not measured: {entry.what} ({entry.reason})" for entry in cluster.failed]
    return "\n".join(line.rstrip() for line in lines)


def mixed_text(cluster: MixedCluster) -> str:
    """The parts of a mixed cluster, one after the other."""
    parts = "\n\n".join(profile_text(part) for part in cluster.parts)
    return f"{cluster.name}: {cluster.world_size} devices of {len(cluster.parts)} parts\n\n{parts}"


def lines_of(cluster: Cluster) -> list[Line]:
    """Products, attention, memory and collectives over sizes; measured points where there are any."""
    measured = [_measured(curve) for curve in curves_of(cluster)]
    known = {(line.name, line.axis) for line in measured}
    by_formula = [*_products(cluster), *_collectives(cluster)]
    return measured + [line for line in by_formula if (line.name, line.axis) not in known]


def diff_text(diff: ProfileDiff, threshold: float) -> str:
    """The differences as two tables, and how much was compared."""
    lines = [f"{diff.a} → {diff.b}: figures that differ by more than {threshold:.0%}", ""]
    lines += list(_columns(map(_difference, diff.figures))) or ["  none"]
    lines += [f"{len(diff.figures)} of {diff.compared_figures} figures", ""]
    if diff.compared_points:
        lines += [f"points of curves that differ by more than {threshold:.0%}", ""]
        lines += list(_columns(map(_difference, diff.points))) or ["  none"]
        lines += [f"{len(diff.points)} of {diff.compared_points} points", ""]
    return "\n".join(line.rstrip() for line in lines).rstrip()


def _difference(difference: Difference) -> tuple[str, str, str, str]:
    values = ("-" if v is None else quantity(v, difference.unit) for v in (difference.a, difference.b))
    relative = difference.relative
    return (difference.path, *values, "" if relative is None else f"{relative:+.1%}")  # type: ignore[return-value]


def _certainty(figure: Figure) -> str:
    spread = f"± {figure.spread / 2:.1%}" if figure.spread else ""
    return f"{spread} noisy".strip() if figure.noisy else spread


def _origin(cluster: Cluster, key: str) -> str:
    source = cluster.sources.get(key)
    return f"{source.kind} ({key})" if source is not None else ""


def _columns(rows: Iterable[Sequence[str]]) -> Iterator[str]:
    """Rows with their columns under each other; a column that is empty throughout is left out."""
    cells = [list(row) for row in rows]
    if not cells:
        return
    kept = [i for i in range(len(cells[0])) if any(row[i] for row in cells)]
    widths = {i: max(len(row[i]) for row in cells) for i in kept}
    for row in cells:
        yield "  " + "  ".join(f"{row[i]:{widths[i]}}" for i in kept)


def _plots(lines: Iterable[Line]) -> Iterator[str]:
    rows = []
    for line in lines:
        first, last = (_size(size, line.axis) for size in (line.sizes[0], line.sizes[-1]))
        rows.append(
            (line.name, first, _blocks(line.rates), last, quantity(max(line.rates), line.unit), line.what)
        )
    return _columns(rows)


def _blocks(rates: Sequence[float]) -> str:
    """A block for each rate, as high as its share of the best."""
    best = max(rates)
    return "".join(BLOCKS[min(7, max(0, math.ceil(8 * rate / best) - 1))] for rate in rates)


def _size(size: int, axis: str) -> str:
    return units.bytes_binary(size).replace(".00", "") if axis == "bytes" else f"{size:,}"


def _measured(curve: Curve) -> Line:
    """Points over bytes as they are; of products and attention the best rate for each amount of work."""
    if len(curve.sizes[0]) == 1:
        sizes, rates = tuple(size[0] for size in curve.sizes), curve.rates
        axis = "bytes"
    else:
        best: dict[int, float] = {}
        for size, rate in zip(curve.sizes, curve.rates, strict=True):
            edge = round(math.prod(size[-3:]) ** (1 / 3))
            best[edge] = max(rate, best.get(edge, 0.0))
        sizes, rates = tuple(sorted(best)), tuple(best[edge] for edge in sorted(best))
        axis = "edge"
    noisy = sum(curve.noisy)
    what = f"{len(curve.sizes)} points ({curve.source})" + (f", {noisy} noisy" if noisy else "")
    return Line(curve.path, axis, curve.unit, sizes, rates, what)


def _products(cluster: Cluster) -> Iterator[Line]:
    device = cluster.device
    measured = {table.dtype for table in device.gemm}
    for dtype in device.peak_flops:
        if dtype not in measured:
            rates = [rate_at(cluster, "gemm", (dtype,), (edge, edge, edge)) or 0.0 for edge in EDGES]
            yield Line(f"gemm {dtype}", "edge", "FLOP/s", EDGES, tuple(rates), "by formula")
    if device.memory is None:
        rates = [rate_at(cluster, "memory", (), (nbytes,)) or 0.0 for nbytes in STREAMS]
        yield Line("memory-bound ops", "bytes", "B/s", STREAMS, tuple(rates), "by formula")
    dtype = next(
        (d for d in ("bfloat16", "float16") if d in device.peak_flops), next(iter(device.peak_flops))
    )
    if not any(table.dtype == dtype for table in device.attention):
        for kind, name in (("attention", "forward"), ("attention_backward", "backward")):
            sizes = [(HEADS, length, length, HEAD_SIZE) for length in LENGTHS]
            rates = [rate_at(cluster, kind, (dtype, True), size) or 0.0 for size in sizes]
            yield Line(
                f"attention {dtype} causal {name}", "length", "FLOP/s", LENGTHS, tuple(rates), "by formula"
            )


def _collectives(cluster: Cluster) -> Iterator[Line]:
    from autoplan.hardware.level import COLLECTIVES

    for level in cluster.levels:
        measured = {table.collective for table in level.curves}
        for kind in COLLECTIVES:
            if kind in measured:
                continue
            group = 2 if kind == "send_recv" else max(2, level.size)
            key = (level.name, kind, group, "all")
            rates = [rate_at(cluster, "communication", key, (nbytes,)) or 0.0 for nbytes in MESSAGES]
            name = f"level {level.name}: {kind} of {group}"
            yield Line(name, "bytes", "B/s", MESSAGES, tuple(rates), "by formula")
