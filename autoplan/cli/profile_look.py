"""``autoplan profile list``, ``show``, ``diff`` and ``schema``: look at profiles."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from autoplan.errors import AutoplanError, InputError, ProfileError

if TYPE_CHECKING:
    from autoplan.hardware import Cluster, MixedCluster

__all__ = ["add_options", "as_json", "diff", "list_profiles", "schema", "show"]


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of looking."""
    parser.add_argument("--html", type=Path, metavar="FILE", help="show: write one page with plots there")
    parser.add_argument(
        "--threshold",
        type=_threshold,
        default=0.05,
        metavar="PERCENT",
        help="diff: pass over differences up to this (default: 5%%)",
    )


def list_profiles(as_json: bool) -> int:
    """Every known profile: its device, the shape of its nodes, and what its figures rest on."""
    from autoplan.hardware import Cluster, known_profiles, read_any
    from autoplan.report.profile_text import shape, sources_summary

    rows = []
    for name, path in sorted(known_profiles().items()):
        row = {"name": name, "path": str(path)}
        try:
            cluster = read_any(path)
        except AutoplanError as error:
            rows.append(
                row | {"device": "cannot be read", "nodes": "", "sources": str(error), "description": ""}
            )
            continue
        parts = [cluster] if isinstance(cluster, Cluster) else list(cluster.parts)
        row["device"] = " + ".join(part.device.name for part in parts)
        row["nodes"] = " + ".join(shape(part) for part in parts)
        row["sources"] = sources_summary(parts[0]) if len(parts) == 1 else "of its parts"
        rows.append(row | {"description": parts[0].description if len(parts) == 1 else cluster.name})
    if as_json:
        print(json.dumps(rows))
        return 0
    for row in rows:
        print(f"{row['name']}\n  {row['device']}: {row['nodes']}\n  {row['sources']}")
    return 0


def show(name: str, as_json_text: bool, html: Path | None) -> int:
    """All figures of a profile with their sources, and its curves."""
    from autoplan.hardware import MixedCluster, read_any
    from autoplan.hardware.profile_path import find_profile
    from autoplan.report.profile_html import profile_html
    from autoplan.report.profile_text import mixed_text, profile_text

    cluster = read_any(find_profile(name))
    if html is not None:
        if isinstance(cluster, MixedCluster):
            raise ProfileError("profile", name, "one type of device", "write a page for each of its parts")
        _write(html, profile_html(cluster))
        print(f"written to {html}")
        return 0
    if as_json_text:
        print(json.dumps(as_json(cluster)))
        return 0
    print(mixed_text(cluster) if isinstance(cluster, MixedCluster) else profile_text(cluster))
    return 0


def diff(a: str, b: str, threshold: float, as_json_text: bool) -> int:
    """What two profiles say differently."""
    from autoplan.hardware import Cluster
    from autoplan.hardware.profile_diff import diff_profiles
    from autoplan.report.profile_text import diff_text

    found = diff_profiles(Cluster.load(a), Cluster.load(b), threshold)
    if not as_json_text:
        print(diff_text(found, threshold))
        return 0
    data = asdict(found)
    for kind, differences in (("figures", found.figures), ("points", found.points)):
        data[kind] = [asdict(d) | {"relative": d.relative} for d in differences]
    print(json.dumps(data))
    return 0


def schema() -> int:
    """The JSON Schema of profile files."""
    from autoplan.hardware.schema import profile_schema

    print(json.dumps(profile_schema(), indent=2))
    return 0


def as_json(cluster: Cluster | MixedCluster) -> dict[str, Any]:
    """A profile for machines."""
    import msgspec

    from autoplan.hardware import Cluster

    if not isinstance(cluster, Cluster):
        parts = [as_json(part) for part in cluster.parts]
        return {"name": cluster.name, "world_size": cluster.world_size, "parts": parts}
    return {
        "name": cluster.name,
        "world_size": cluster.world_size,
        "node_size": cluster.node_size,
        "profile": msgspec.to_builtins(cluster),
    }


def _write(path: Path, text: str) -> None:
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise ProfileError("--html", str(path), f"a writable place ({error})", "choose another") from error


def _threshold(text: str) -> float:
    """``5%`` or ``5`` → 0.05."""
    try:
        value = float(text.removesuffix("%")) / 100
    except ValueError:
        value = -1.0
    if not 0 <= value <= 1e6:
        raise InputError("--threshold", text, "a percentage of at least 0, such as 5%", "give such a one")
    return value
