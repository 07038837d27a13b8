"""Fit the few physical figures of a kind of cluster to a part of the published runs.

Figures: the fraction of peak that large products reach, by format; that of attention; that of memory
bandwidth; the host's time for one eager op; the share of communication that hides.
Each starts from its usual value and is held near it by a weak prior, so that what the rows do not tell
stays as it was. Least squares of log(predicted / measured) with Huber's loss, by Levenberg and Marquardt.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from msgspec.structs import replace
from numpy.typing import NDArray
from prediction_rows import Run

from autoplan.cost.transformer.formats import FORMATS
from autoplan.cost.transformer.price_rows import ReadRow, row_groups, stacked
from autoplan.cost.transformer.row_cluster import sized_cluster
from autoplan.cost.transformer.step_times import step_times
from autoplan.hardware import Cluster

__all__ = ["KINDS", "Kind", "figures_of", "fit_kind", "fitted_rows", "has_rows", "priced_with"]

Floats = NDArray[np.float64]

USUAL = {
    "bfloat16": (0.72, 0.3),
    "fp8": (0.6, 0.3),
    "mxfp8": (0.58, 0.3),
    "nvfp4": (0.45, 0.4),
    "attention": (0.6, 0.3),
    "memory": (0.85, 0.1),
    "eager_op_s": (2.5e-5, 0.3),
    "launch_s": (3e-6, 1.0),
    "overlap": (0.85, 0.2),
}
"""Where each figure starts, and how far (in logarithms) its prior lets it go."""

BACKWARD = 0.8  # attention's backward rate over its forward; FlashAttention-2, figures 4 and 5
PRIOR_WEIGHT = 0.5
HUBER = 0.1


@dataclass(frozen=True, slots=True)
class Kind:
    """Clusters that share their figures: the profile that holds them, and the names under which rows find it.

    ``like``: the profile of the nearest relative, whose figures stand in where there are no rows.
    """

    profile: str
    clusters: tuple[str, ...]
    figures: tuple[str, ...]
    like: str = ""


KINDS: tuple[Kind, ...] = (
    Kind(
        "a100-80-sxm",
        ("A100-SXM-80GB",),
        ("bfloat16", "attention", "memory", "eager_op_s"),
    ),
    Kind(
        "a100-80-sxm-4x200",
        ("A100-SXM",),
        ("bfloat16", "memory", "eager_op_s", "launch_s"),
        like="a100-80-sxm",
    ),
    Kind("a100-80-sxm-4-opa", ("a100-80-sxm-4-opa",), ("bfloat16", "memory"), like="a100-80-sxm"),
    Kind("v100-32-sxm-4-opa", ("V100-SXM-32GB", "V100-SXM-16GB"), ("bfloat16", "memory")),
    Kind(
        "a100-40-sxm",
        ("A100-SXM-40GB",),
        ("bfloat16", "attention", "memory", "eager_op_s"),
        like="a100-80-sxm",
    ),
    Kind(
        "h100-sxm",
        ("H100-SXM-80GB",),
        ("bfloat16", "fp8", "attention", "memory", "eager_op_s", "overlap"),
    ),
    Kind(
        "b200-sxm",
        ("B200-SXM-180GB",),
        ("bfloat16", "fp8", "mxfp8", "attention", "memory", "eager_op_s"),
        like="gb200-nvl72",
    ),
    Kind(
        "gb200-nvl72",
        ("GB200-NVL72",),
        ("bfloat16", "fp8", "mxfp8", "nvfp4", "attention", "memory", "eager_op_s", "overlap"),
        like="b200-sxm",
    ),
    Kind(
        "gb300-nvl72",
        ("GB300-NVL72",),
        ("bfloat16", "fp8", "mxfp8", "nvfp4", "attention", "memory", "overlap"),
        like="gb200-nvl72",
    ),
)


@dataclass(frozen=True, slots=True)
class _Group:
    runs: list[Run]
    reads: list[ReadRow]
    log_measured: Floats
    weight: Floats


def fitted_rows(kind: Kind, runs: Sequence[Run]) -> list[str]:
    """``table.csv: model, model`` for each table that ``kind`` is fitted on."""
    chosen = _fitted(runs)
    groups, _ = row_groups([run.row for run in chosen])
    models: dict[str, set[str]] = {}
    for members in groups:
        if members[0][1].cluster in kind.clusters:
            for index, _ in members:
                models.setdefault(chosen[index].table, set()).add(chosen[index].row["model"])
    return [f"{table}.csv: {', '.join(sorted(found))}" for table, found in sorted(models.items())]


def _fitted(runs: Sequence[Run]) -> list[Run]:
    return [run for run in runs if run.step_s is not None and not run.held]


def fit_kind(kind: Kind, runs: Sequence[Run]) -> dict[str, float]:
    """The figures of ``kind`` from those ``runs`` that are not held back."""
    return figures_of(kind, _fitted(runs))


def has_rows(kind: Kind, runs: Sequence[Run]) -> bool:
    """Whether any of ``runs`` is on a cluster of ``kind``."""
    return bool(_groups(runs, kind))


def priced_with(kind: Kind, runs: Sequence[Run], figures: dict[str, float]) -> list[tuple[Run, float]]:
    """Those of ``runs`` that are on a cluster of ``kind``, and predicted seconds of each under ``figures``."""
    return [
        (run, float(step_s))
        for group in _groups(runs, kind)
        for run, step_s in zip(group.runs, np.exp(_log_predicted(group, figures)), strict=True)
    ]


def figures_of(kind: Kind, runs: Sequence[Run]) -> dict[str, float]:
    """The figures of ``kind`` from all ``runs`` on its clusters; usual values where there are none."""
    groups = _groups(runs, kind)
    if not groups:
        return {name: USUAL[name][0] for name in kind.figures}
    start = np.log([USUAL[name][0] for name in kind.figures])
    width = np.array([USUAL[name][1] for name in kind.figures])

    def residuals(x: Floats) -> Floats:
        figures = dict(zip(kind.figures, np.exp(x).tolist(), strict=True))
        return np.concatenate([_log_predicted(group, figures) - group.log_measured for group in groups])

    weight = np.concatenate([group.weight for group in groups])
    found = _least_squares(residuals, weight, start, width)
    return {name: float(v) for name, v in zip(kind.figures, np.exp(found), strict=True)}


def _groups(runs: Sequence[Run], kind: Kind) -> list[_Group]:
    """Each model of each study weighs as the square root of its rows: a sweep of 140 does not drown one of 2."""
    many = Counter((run.part, run.row["model"]) for run in runs)
    made, _ = row_groups([run.row for run in runs])
    return [
        _Group(
            runs=[runs[index] for index, _ in members],
            reads=[read for _, read in members],
            log_measured=np.log([runs[index].step_s or 1.0 for index, _ in members]),
            weight=np.array([many[runs[i].part, runs[i].row["model"]] ** -0.5 for i, _ in members]),
        )
        for members in made
        if members[0][1].cluster in kind.clusters
    ]


def _log_predicted(group: _Group, figures: dict[str, float]) -> Floats:
    first = group.reads[0]
    shape, configuration = stacked(group.reads)
    cluster = _with_figures(
        sized_cluster(first.cluster, max(read.setup.gpus for read in group.reads)), figures
    )
    times = step_times(shape, configuration, FORMATS[first.setup.precision], first.setup.software, cluster)
    return np.log(np.broadcast_to(times.step_s, group.log_measured.shape))


def _with_figures(cluster: Cluster, figures: dict[str, float]) -> Cluster:
    device = cluster.device
    gemm = {name: min(figures.get(name, value), 1.0) for name, value in device.gemm_efficiency.items()}
    if "bfloat16" in figures:
        gemm["float16"] = min(figures["bfloat16"], 1.0)
    attention = device.attention_efficiency
    if "attention" in figures:
        forward = min(figures["attention"], 1.0)
        attention = replace(attention, forward=forward, backward=BACKWARD * forward)
    device = replace(
        device,
        gemm_efficiency=gemm,
        attention_efficiency=attention,
        memory_efficiency=min(figures.get("memory", device.memory_efficiency), 1.0),
        eager_op_s=figures.get("eager_op_s", device.eager_op_s),
        launch_s=figures.get("launch_s", device.launch_s),
    )
    overlap = min(figures.get("overlap", cluster.overlap), 1.0)
    return replace(cluster, device=device, overlap=overlap)


def _least_squares(
    residuals: Callable[[Floats], Floats], weight: Floats, start: Floats, width: Floats
) -> Floats:
    """Levenberg-Marquardt on Huber's loss plus the priors ((x - start) / width)^2."""
    prior = PRIOR_WEIGHT / width**2
    x, damping = start.copy(), 1e-2

    def cost(r: Floats, x: Floats) -> float:
        size = np.abs(r)
        loss = np.where(size < HUBER, 0.5 * r**2, HUBER * (size - 0.5 * HUBER))
        return float(weight @ loss / HUBER**2 + 0.5 * prior @ (x - start) ** 2)

    r = residuals(x)
    for _ in range(30):
        slope = np.stack([(residuals(x + step) - r) / 1e-3 for step in np.eye(len(x)) * 1e-3], axis=1)
        scale = weight * np.where(np.abs(r) < HUBER, 1.0, HUBER / np.maximum(np.abs(r), 1e-12)) / HUBER**2
        normal = slope.T @ (slope * scale[:, None]) + np.diag(prior)
        gradient = slope.T @ (scale * r) + prior * (x - start)
        before = cost(r, x)
        for _ in range(8):
            step = np.linalg.solve(normal + damping * np.diag(np.diag(normal)), -gradient)
            tried = x + np.clip(step, -0.5, 0.5)
            after = residuals(tried)
            if cost(after, tried) < before:
                break
            damping *= 4
        else:
            return x
        gained, x, r, damping = before - cost(after, tried), tried, after, max(damping / 5, 1e-6)
        if gained < 1e-5 * before:
            break
    return x
