"""A hardware profile as one page that needs nothing else: tables, and curves drawn as SVG."""

from __future__ import annotations

import html
import math
from collections.abc import Iterable, Sequence

from autoplan.hardware.cluster import Cluster
from autoplan.hardware.figures import figures_of
from autoplan.report.profile_text import Line, lines_of, quantity, shape, sources_summary

__all__ = ["profile_html"]

WIDTH, HEIGHT = 460, 260
LEFT, RIGHT, TOP, BOTTOM = 78, 14, 12, 34
COLOURS = ("#3366cc", "#dc3912", "#109618", "#ff9900", "#990099", "#0099c6", "#66aa00", "#b82e2e")
STYLE = """\
body{font:15px/1.45 system-ui,sans-serif;margin:2em auto;max-width:1000px;padding:0 1em;color:#222}
table{border-collapse:collapse;margin:.6em 0}td,th{padding:.15em .8em .15em 0;text-align:left;vertical-align:top}
th{border-bottom:1px solid #888}td.n{text-align:right;font-variant-numeric:tabular-nums}
.charts{display:flex;flex-wrap:wrap;gap:1.2em}figure{margin:0}figcaption{font-weight:600;margin-bottom:.2em}
.measured{color:#0a6b2b}.assumed{color:#a33}.noisy{color:#a33;font-weight:600}svg text{font:11px system-ui,sans-serif;fill:#444}
ul.key{list-style:none;padding:0;margin:.2em 0;font-size:12px;columns:2}
@media (prefers-color-scheme:dark){body{background:#16181c;color:#ddd}svg text{fill:#aaa}}"""


def profile_html(cluster: Cluster) -> str:
    """The page. Every text of the profile is escaped."""
    title = html.escape(cluster.name)
    charts = "\n".join(_chart(name, lines) for name, lines in _groups(lines_of(cluster)).items())
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>{title}: hardware profile</title><style>
{STYLE}
</style></head><body>
<h1>{title}</h1>
<p>{html.escape(cluster.description)}</p>
<p>{html.escape(str(cluster))}; {html.escape(shape(cluster))}. Figures: {sources_summary(cluster)}.</p>
<h2>Curves</h2><div class="charts">
{charts}
</div>
{_failed(cluster)}
<h2>Figures</h2>
{_figures(cluster)}
<h2>Sources</h2>
{_sources(cluster)}
</body></html>
"""


def _groups(lines: Iterable[Line]) -> dict[str, list[Line]]:
    """Charts by what they show: the products, attention, memory, and each level."""
    groups: dict[str, list[Line]] = {}
    for line in lines:
        name = line.name.partition(":")[0] if line.name.startswith("level ") else line.name.split(" ")[0]
        words = {"gemm": "matrix products", "batched": "batched products", "memory-bound": "memory-bound ops"}
        words |= {"to": "host link", "from": "host link"}
        groups.setdefault(f"{words.get(name, name)} over {line.axis}", []).append(line)
    return groups


def _chart(title: str, lines: Sequence[Line]) -> str:
    """Rates over sizes, both in logarithms."""
    sizes = [size for line in lines for size in line.sizes]
    rates = [rate for line in lines for rate in line.rates if rate > 0]
    x_span, y_span = _span(sizes), _span(rates)
    drawn, key = [], []
    for index, line in enumerate(lines):
        colour = COLOURS[index % len(COLOURS)]
        dash = ' stroke-dasharray="5 3"' if line.what == "by formula" else ""
        points = [
            (_x(size, x_span), _y(rate, y_span))
            for size, rate in zip(line.sizes, line.rates, strict=True)
            if rate > 0
        ]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        drawn.append(f'<polyline fill="none" stroke="{colour}" stroke-width="1.6"{dash} points="{path}"/>')
        for (x, y), size, rate in zip(points, line.sizes, line.rates, strict=False):
            tip = html.escape(f"{line.name}: {size:,} → {quantity(rate, line.unit)}")
            drawn.append(
                f'<circle cx="{x:.1f}" cy="{y:.1f}" r="2.4" fill="{colour}"><title>{tip}</title></circle>'
            )
        label = html.escape(f"{line.name} ({line.what})")
        key.append(f'<li><span style="color:{colour}">■</span> {label}</li>')
    axes = _axes(x_span, y_span, lines[0])
    return (
        f'<figure><figcaption>{html.escape(title)}</figcaption><svg width="{WIDTH}" height="{HEIGHT}" role="img" '
        f'aria-label="{html.escape(title)}">{axes}{"".join(drawn)}</svg><ul class="key">{"".join(key)}</ul></figure>'
    )


def _span(values: Sequence[float]) -> tuple[float, float]:
    low, high = math.log10(min(values)), math.log10(max(values))
    return (low, high) if high - low > 0.1 else (low - 0.5, high + 0.5)


def _x(size: float, span: tuple[float, float]) -> float:
    return LEFT + (math.log10(size) - span[0]) / (span[1] - span[0]) * (WIDTH - LEFT - RIGHT)


def _y(rate: float, span: tuple[float, float]) -> float:
    return HEIGHT - BOTTOM - (math.log10(rate) - span[0]) / (span[1] - span[0]) * (HEIGHT - TOP - BOTTOM)


def _axes(x_span: tuple[float, float], y_span: tuple[float, float], line: Line) -> str:
    """Grid lines at powers of ten, and the ends where there are none."""
    parts = []
    for value in _ticks(x_span):
        x, text = _x(value, x_span), quantity(value, "B") if line.axis == "bytes" else f"{value:,.0f}"
        parts.append(f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{TOP}" y2="{HEIGHT - BOTTOM}" stroke="#8884"/>')
        parts.append(f'<text x="{x:.1f}" y="{HEIGHT - BOTTOM + 16}" text-anchor="middle">{text}</text>')
    for value in _ticks(y_span):
        y, text = _y(value, y_span), quantity(value, line.unit)
        parts.append(f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}" stroke="#8884"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{text}</text>')
    return "".join(parts)


def _ticks(span: tuple[float, float]) -> list[float]:
    powers = [10.0**power for power in range(math.ceil(span[0]), math.floor(span[1]) + 1)]
    step = max(1, math.ceil(len(powers) / 5))
    return powers[::step] if len(powers) > 1 else [10 ** span[0], 10 ** span[1]]


def _figures(cluster: Cluster) -> str:
    rows = []
    for figure in figures_of(cluster):
        source = cluster.sources.get(figure.source)
        kind = str(source.kind) if source is not None else ""
        spread = f"± {figure.spread / 2:.1%}" if figure.spread else ""
        noisy = ' <span class="noisy">noisy</span>' if figure.noisy else ""
        value = html.escape(quantity(figure.value, figure.unit))
        rows.append(
            f'<tr><td>{html.escape(figure.path)}</td><td class="n">{value}</td><td>{spread}{noisy}</td>'
            f'<td class="{kind}">{kind}</td><td>{html.escape(figure.source)}</td></tr>'
        )
    head = "<tr><th>figure</th><th>value</th><th>spread</th><th>kind</th><th>source</th></tr>"
    return f"<table>{head}{''.join(rows)}</table>"


def _failed(cluster: Cluster) -> str:
    """What could not be measured."""
    rows = "".join(f"<li>{html.escape(f'{f.what}: {f.reason}')}</li>" for f in cluster.failed)
    return f"<p>Not measured:</p><ul>{rows}</ul>" if rows else ""


def _sources(cluster: Cluster) -> str:
    rows = "".join(
        f"<tr><td>{html.escape(key)}</td><td>{html.escape(str(source))}</td><td>{html.escape(source.date)}</td></tr>"
        for key, source in cluster.sources.items()
    )
    return f"<table><tr><th>key</th><th>what</th><th>date</th></tr>{rows}</table>"
