"""A run of nccl-tests as a curve of one level of a profile."""

from __future__ import annotations

import datetime
import math
from pathlib import Path

from msgspec.structs import replace

import autoplan
from autoplan.errors import ProfileError
from autoplan.hardware.cluster import Cluster
from autoplan.hardware.collectives import group_spans, ring_share
from autoplan.hardware.level import Level, bus_factor
from autoplan.hardware.nccl_tests import NcclRun, Sample
from autoplan.hardware.source import Source, SourceKind
from autoplan.hardware.tables import CommunicationPoint, CommunicationTable

__all__ = ["NOISY", "free_key", "with_nccl_run"]

NOISY = 0.2  # a spread above this marks a point as noisy
LEAST_SHARE = 0.1  # of the time that a level keeps when the latency of the levels inside it is taken out


def with_nccl_run(
    cluster: Cluster, level_name: str, run: NcclRun, file: Path, ranks_per_unit: int | None = None
) -> tuple[Cluster, CommunicationTable]:
    """``cluster`` with ``run`` as a curve of the level of that name, and that curve.

    A group of n ranks, c in each unit of the level below, joins n/c units. By the model of
    ``autoplan.hardware.collectives`` each of the c carries 1/c of the whole group's ring at this level (all of
    the message in an all-to-all), and the latency of the levels inside comes on top: the curve holds what is left
    of the measured time without it, so that the whole comes out as it was measured. The curve is of
    all groups at once where all devices of a unit were at work, of one alone where one was.

    Args:
        file: where the run was read from, to be named in the source.
        ranks_per_unit: c; default: the ranks of a group on each host.

    Raises:
        ProfileError: there is no such level, or the run does not fit it.
    """
    index = _index(cluster, level_name)
    unit = 1
    for inner in cluster.levels[:index]:
        unit *= inner.size
    inside, group, at_once = _lie(cluster, index, unit, run, ranks_per_unit)
    level = cluster.levels[index]
    floor_s = _latency_inside_s(cluster, index, inside, run.collective)
    key = free_key(cluster, "nccl-tests")
    table = CommunicationTable(
        collective=run.collective,
        group=group,
        at_once=at_once,
        source=key,
        points=tuple(_point(sample, run.collective, group, inside, floor_s) for sample in run.samples),
    )
    same = (table.collective, table.group, table.at_once)
    kept = tuple(t for t in level.curves if (t.collective, t.group, t.at_once) != same)
    curves = tuple(sorted((*kept, table), key=lambda t: (t.at_once, t.group, t.collective)))
    levels = (*cluster.levels[:index], replace(level, curves=curves), *cluster.levels[index + 1 :])
    sources = cluster.sources | {key: _source(run, file)}
    return replace(cluster, levels=levels, sources=sources), table


def free_key(cluster: Cluster, stem: str) -> str:
    """``nccl-tests``, or with a number where that is taken."""
    key, number = stem, 1
    while key in cluster.sources:
        number += 1
        key = f"{stem}-{number}"
    return key


def _index(cluster: Cluster, name: str) -> int:
    names = [level.name for level in cluster.levels]
    if name not in names:
        raise ProfileError("--level", name, f"a level of {cluster.name} ({', '.join(names)})", "choose one")
    return names.index(name)


def _lie(
    cluster: Cluster, index: int, unit: int, run: NcclRun, ranks_per_unit: int | None
) -> tuple[int, int, str]:
    """(ranks of a group in each unit, units it joins, ``all`` or ``one`` at once)."""
    level = cluster.levels[index]
    inside = 1 if index == 0 else ranks_per_unit or run.ranks_per_host
    if not inside:
        raise ProfileError(
            "--ranks-per-unit", None, f"ranks of a group in each unit below {level.name!r}", "give it"
        )
    if run.ranks % inside or run.ranks == inside or inside > unit:
        wanted = f"groups of more than one unit of {unit} devices, as {level.name!r} joins"
        raise ProfileError(
            "--level",
            level.name,
            f"{wanted} (the run has {run.ranks} ranks, {inside} a unit)",
            "choose another",
        )
    group = run.ranks // inside
    if index == 0 and group * run.groups > level.size:
        whole = f"at most {level.size} ranks, as {level.name!r} joins"
        raise ProfileError(
            "--level", level.name, f"{whole} (the run has {group * run.groups})", "choose another"
        )
    if run.collective == "send_recv":
        return 1, 2, "one" if index and run.groups * inside < unit else "all"
    if index == 0:
        return 1, group, "all" if run.groups > 1 or group == level.size else "one"
    at_work = inside * run.groups
    if at_work not in (1, unit):
        raise ProfileError(
            "ranks", at_work, f"1 or all {unit} devices of a unit at work", "measure with one of these"
        )
    return inside, group, "all" if at_work == unit else "one"


def _latency_inside_s(cluster: Cluster, index: int, inside: int, kind: str) -> float:
    """The latency of the levels below, which a group with ``inside`` members in a unit also crosses."""
    total = 0.0
    sizes = tuple(level.size for level in cluster.levels[:index])
    for place, joined, _, unit in group_spans(sizes, inside, 1) if sizes else ():
        level: Level = cluster.levels[place]
        total += float(level.time_s(kind, 1.0, joined, share=level.nics / unit, tree=place > 0))
    return total


def _point(sample: Sample, kind: str, group: int, inside: int, floor_s: float) -> CommunicationPoint:
    part = 1.0 if kind == "all_to_all" else ring_share(group * inside, group) / inside
    nbytes = math.ceil(sample.nbytes * part)
    time_s = max(sample.time_s - floor_s, LEAST_SHARE * sample.time_s)
    bus = bus_factor(kind, group) * nbytes / time_s
    spread = float(f"{sample.spread:.3g}")
    return CommunicationPoint(nbytes, float(f"{bus:.5g}"), spread, sample.rows, spread > NOISY)


def _source(run: NcclRun, file: Path) -> Source:
    version = run.versions.get("nccl-tests", "")
    modified = datetime.date.fromtimestamp(file.stat().st_mtime).isoformat()
    return Source(
        kind=SourceKind.MEASURED,
        document=f"{file.name}, out-of-place times",
        date=_iso(run.date) or modified,
        tool=f"nccl-tests {version}".strip() + f", read by autoplan {autoplan.__version__}",
        versions={name: value for name, value in run.versions.items() if name != "nccl-tests"},
        settings={
            "ranks": run.ranks,
            "groups_at_once": run.groups,
            "ranks_per_host": run.ranks_per_host,
            **({"device": run.device} if run.device else {}),
        },
    )


def _iso(date: str) -> str:
    try:
        return datetime.date.fromisoformat(date).isoformat()
    except ValueError:
        return ""
