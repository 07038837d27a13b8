"""``autoplan profile``: measure this machine, or look at the profiles that are known."""

from __future__ import annotations

import argparse
import json
import os
import re
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from autoplan.errors import InputError, ProfileError

if TYPE_CHECKING:
    from autoplan.hardware import Cluster

__all__ = ["add_parser", "run"]

LEAST_MESSAGE = 4096

_DESCRIPTION = """\
Measure this machine: matrix products, memory, attention and collectives, with all ranks at work at
once, and keep the figures as a profile that --cluster takes by name.

  autoplan profile --nproc 4               measure with 4 ranks of this machine
  torchrun ... -m autoplan profile         the same on ranks that are already running
  autoplan profile list                    the profiles that are known
  autoplan profile show h100-sxm           the figures of one, with their sources
"""


def add_parser(subparsers: Any) -> None:
    """Add the command and its options."""
    parser = subparsers.add_parser(
        "profile",
        help="measure this machine, or list and show hardware profiles",
        description=_DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("action", nargs="?", default="measure", choices=("measure", "list", "show"))
    parser.add_argument("profile", nargs="?", help="name or file of the profile to show")
    parser.add_argument("--nproc", type=int, metavar="N", help="ranks (default: the GPUs, else the cores)")
    parser.add_argument("--quick", action="store_true", help="fewer sizes and samples; under a minute")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write here (default: the user's cache)")
    parser.add_argument("--name", help="name of the profile (default: local-cpu-4 and the like)")
    parser.add_argument("--max-bytes", type=_bytes, metavar="SIZE", help="largest message, such as 16MiB")
    parser.add_argument("--json", action="store_true", help="print JSON instead of tables")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Do what ``args`` ask for; returns the exit status. Raises AutoplanError."""
    if args.action != "show" and args.profile is not None:
        raise InputError("profile", args.profile, "nothing more", f"did you mean `show {args.profile}`?")
    if args.action == "list":
        return _list(args.json)
    if args.action == "show":
        return _show(args.profile, args.json)
    return _measure(args)


def _list(as_json: bool) -> int:
    from autoplan.hardware import Cluster, known_profiles

    rows = [(name, path, Cluster.load(path).description) for name, path in sorted(known_profiles().items())]
    if as_json:
        keys = ("name", "path", "description")
        print(json.dumps([dict(zip(keys, map(str, row), strict=True)) for row in rows]))
        return 0
    width = max((len(name) for name, _, _ in rows), default=0)
    for name, _, description in rows:
        print(f"{name:{width}}  {description}")
    return 0


def _show(name: str | None, as_json: bool) -> int:
    from autoplan.hardware import Cluster

    if name is None:
        raise InputError("profile", None, "the name of a profile", "see `autoplan profile list`")
    cluster = Cluster.load(name)
    if as_json:
        print(json.dumps(_as_json(cluster)))
        return 0
    _print_tables(cluster)
    for key, source in cluster.sources.items():
        print(f"{key}: {source}")
    return 0


def _measure(args: argparse.Namespace) -> int:
    from autoplan.hardware.launch import process_group, spawn, under_torchrun

    _check(args)
    if under_torchrun():
        with process_group() as rank:
            return _measure_here(args, rank)
    nproc = args.nproc or _default_ranks()
    if nproc == 1:
        return _measure_here(args, 0)
    spawn(nproc, _arguments(args))
    return 0


def _check(args: argparse.Namespace) -> None:
    """What can be known to be wrong before anything is measured."""
    if args.nproc is not None and not 1 <= args.nproc <= 1024:
        raise InputError("--nproc", args.nproc, "1 to 1024 ranks", "give the number of ranks on this machine")
    if args.name is not None and not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", args.name):
        raise InputError("--name", args.name, "letters, digits, dots and hyphens", "choose such a name")
    if args.out is not None:
        _check_out(args.out)


def _check_out(out: Path) -> None:
    """A file in a place that can be written: better known before minutes of measuring than after."""
    if out.is_dir():
        raise ProfileError("--out", str(out), "a file, not a folder", f"try {out / 'profile.toml'}")
    folder = next(parent for parent in out.absolute().parents if parent.exists())
    if not (folder.is_dir() and os.access(folder, os.W_OK)):
        raise ProfileError(
            "--out", str(out), f"a place that can be written, unlike {folder}", "choose another"
        )


def _measure_here(args: argparse.Namespace, rank: int) -> int:
    """This rank's part of the measurement; rank 0 writes and prints."""
    from autoplan.hardware.local import local_name
    from autoplan.hardware.measure import World, measure_cluster
    from autoplan.hardware.profile_file import write_profile
    from autoplan.hardware.profile_path import cache_dir

    world = World.here()
    stem = args.out.stem if args.out is not None else None
    name = args.name or stem or local_name(world.device.type, world.size)
    start_s = time.monotonic()
    cluster = measure_cluster(name, quick=args.quick, max_bytes=args.max_bytes)
    seconds = round(time.monotonic() - start_s, 1)
    if rank != 0:
        return 0
    path = args.out or cache_dir() / f"{name}.toml"
    write_profile(cluster, path)
    if args.json:
        print(json.dumps({"path": str(path), "seconds": seconds, **_as_json(cluster)}), flush=True)
        return 0
    _print_tables(cluster)
    print(f"measured in {seconds} s, written to {path}; use it with --cluster {args.out or name}", flush=True)
    return 0


def _print_tables(cluster: Cluster) -> None:
    from rich.console import Console

    from autoplan.hardware.measure_profile import datasheet_for
    from autoplan.hardware.profile_table import profile_tables

    sheet = datasheet_for(cluster.device.name)
    other = sheet.device if sheet is not None and sheet.name != cluster.name else None
    console = Console()
    for table in profile_tables(cluster, other):
        console.print(table)


def _as_json(cluster: Cluster) -> dict[str, Any]:
    import msgspec

    return {
        "name": cluster.name,
        "world_size": cluster.world_size,
        "node_size": cluster.node_size,
        "profile": msgspec.to_builtins(cluster),
    }


def _default_ranks() -> int:
    import torch

    from autoplan.hardware.machine import cores

    return torch.cuda.device_count() or cores()


def _arguments(args: argparse.Namespace) -> list[str]:
    """The options of ``args`` as words, for the ranks."""
    words = ["--quick"] if args.quick else []
    words += ["--json"] if args.json else []
    for option, value in (("--out", args.out), ("--name", args.name), ("--max-bytes", args.max_bytes)):
        words += [option, str(value)] if value is not None else []
    return words


def _bytes(text: str) -> int:
    """``65536``, ``64KiB``, ``16MiB``, ``1GiB`` → bytes."""
    match = re.fullmatch(r"(\d{1,15}) ?(KiB|MiB|GiB|B)?", text)
    scale = {"KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30}
    value = int(match[1]) * scale.get(match[2] or "B", 1) if match else 0
    if not LEAST_MESSAGE <= value <= 1 << 40:
        raise InputError("--max-bytes", text, "a size from 4KiB to 1TiB, such as 16MiB", "give such a size")
    return value
