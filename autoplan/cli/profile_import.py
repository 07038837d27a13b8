"""``autoplan profile import``: what other tools measured, into a profile."""

from __future__ import annotations

import argparse
import json
import re
from pathlib import Path
from typing import TYPE_CHECKING

from autoplan.errors import InputError, ProfileError

if TYPE_CHECKING:
    from autoplan.hardware import Cluster

__all__ = ["TOOLS", "add_options", "import_file"]

TOOLS = ("nccl-tests", "kineto")
COLLECTIVES = ("all_reduce", "all_gather", "reduce_scatter", "all_to_all", "send_recv")


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of an import."""
    parser.add_argument("--into", metavar="PROFILE", help="import: name or file of the profile to change")
    parser.add_argument("--level", metavar="NAME", help="import: the level that the collectives cross")
    parser.add_argument(
        "--collective", choices=COLLECTIVES, help="import: which one, if the output does not say"
    )
    parser.add_argument(
        "--ranks", type=int, metavar="N", help="import: of a group, if the output does not list them"
    )
    parser.add_argument(
        "--ranks-per-unit", type=int, metavar="N", help="import: of a group in each unit below the level"
    )


def import_file(tool: str, file: Path, args: argparse.Namespace) -> int:
    """Read ``file`` into the profile ``args.into``; a shipped profile is kept, and its copy in the cache changed.
    With ``args.out`` that file is written instead, as a profile of its own name.

    Raises:
        AutoplanError: the file, the profile, or how they fit.
    """
    from msgspec.structs import replace

    from autoplan.hardware import Cluster, write_profile
    from autoplan.hardware.profile_path import cache_dir, find_profile, shipped_dir

    if tool not in TOOLS:
        raise InputError("import", tool, f"one of {', '.join(TOOLS)}", f"try `import {TOOLS[0]} FILE`")
    if args.into is None:
        raise InputError("--into", None, "a profile", "say which profile the figures belong to")
    _positive("--ranks", args.ranks)
    _positive("--ranks-per-unit", args.ranks_per_unit)
    if not file.is_file():
        raise ProfileError("import", str(file), "a file", "correct the path")
    place = find_profile(args.into)
    before = Cluster.load(place)
    after, told = _nccl_tests(before, file, args) if tool == "nccl-tests" else _kineto(before, file, args)
    shipped = place.resolve().parent == shipped_dir().resolve()
    out = args.out or (cache_dir() / place.name if shipped else place)
    if args.out is not None and re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", out.stem):
        after = replace(after, name=out.stem, aliases=())
    write_profile(after, out)
    if args.json:
        print(json.dumps({"path": str(out), "imported": told}))
        return 0
    print("\n".join([*told, f"written to {out}"]))
    return 0


def _nccl_tests(cluster: Cluster, file: Path, args: argparse.Namespace) -> tuple[Cluster, list[str]]:
    from autoplan import units
    from autoplan.hardware.import_curve import with_nccl_run
    from autoplan.hardware.nccl_tests import read_nccl_tests

    if args.level is None:
        names = ", ".join(level.name for level in cluster.levels)
        raise InputError("--level", None, f"a level of {cluster.name} ({names})", "say what was measured")
    run = read_nccl_tests(file, collective=args.collective, ranks=args.ranks)
    after, table = with_nccl_run(cluster, args.level, run, file, args.ranks_per_unit)
    best = max(point.bus_bytes_per_s for point in table.points)
    alone = "one group alone" if table.at_once == "one" else "all groups at once"
    told = (
        f"{table.collective} of {table.group} over {args.level}, {alone}: {len(table.points)} sizes, "
        f"{units.bytes_rate(best)} at best"
    )
    return after, [told]


def _kineto(cluster: Cluster, file: Path, args: argparse.Namespace) -> tuple[Cluster, list[str]]:
    from autoplan.hardware.import_trace import trace_figures, with_trace
    from autoplan.hardware.kineto import read_kineto

    if args.level is not None and args.level not in [level.name for level in cluster.levels]:
        names = ", ".join(level.name for level in cluster.levels)
        raise InputError("--level", args.level, f"a level of {cluster.name} ({names})", "choose one")
    figures = trace_figures(read_kineto(file), args.level or "")
    after = with_trace(cluster, figures, file)
    told = []
    if figures.gemms:
        dtypes = ", ".join(sorted({gemm.dtype for gemm in figures.gemms}))
        told.append(f"{len(figures.gemms)} matrix products ({dtypes})")
    told += [
        f"{s.compute} beside {s.communication}: compute x {s.compute_factor:g}, communication x {s.communication_factor:g}"
        for s in figures.slowdowns
    ]
    return after, told


def _positive(field: str, value: int | None) -> None:
    if value is not None and not 1 <= value <= 2**24:
        raise InputError(field, value, "a whole number of at least 1", f"give {field} a count")
