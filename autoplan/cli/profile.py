"""``autoplan profile``: measure this machine, or look at the profiles that are known."""

from __future__ import annotations

import argparse
import json
from typing import TYPE_CHECKING, Any

from autoplan.cli.profile_measure import add_options, measure
from autoplan.errors import InputError

if TYPE_CHECKING:
    from autoplan.hardware import Cluster

__all__ = ["add_parser", "run"]

_DESCRIPTION = """\
Measure this machine: matrix products, memory, attention and collectives, with all ranks at work at
once, and keep the figures as a profile that --cluster takes by name. Interrupted, it goes on where it
stopped when it is run again.

  autoplan profile --nproc 4               measure with 4 ranks of this machine
  torchrun ... -m autoplan profile         the same on ranks that are already running, on any number of nodes
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
    add_options(parser)
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
    done = measure(args)
    if done is None:
        return 0
    if args.json:
        told = {"path": str(done.path), "seconds": done.seconds, **_as_json(done.cluster)}
        print(json.dumps(told), flush=True)
        return 0
    _print_tables(done.cluster)
    print(done.summary, flush=True)
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
