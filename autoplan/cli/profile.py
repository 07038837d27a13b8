"""``autoplan profile``: measure this machine, import what other tools measured, look at profiles."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from autoplan.cli import profile_import, profile_look, profile_measure
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
  autoplan profile show h100-sxm           the figures of one, with their sources and curves
  autoplan profile diff a100-80-sxm mine   what two of them say differently
  autoplan profile schema                  the JSON Schema of a profile
  autoplan profile import nccl-tests all_reduce.txt --into mine --level nvlink
  autoplan profile import kineto trace.json --into mine
"""

_OPERANDS = {
    "measure": "",
    "list": "",
    "show": "NAME",
    "diff": "A B",
    "schema": "",
    "import": "TOOL FILE",
}


def add_parser(subparsers: Any) -> None:
    """Add the command and its options."""
    parser = subparsers.add_parser(
        "profile",
        help="measure this machine, import measurements, list, show and compare hardware profiles",
        description=_DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("action", nargs="?", default="measure", choices=tuple(_OPERANDS))
    parser.add_argument("operands", nargs="*", help="what to show, compare or import")
    profile_measure.add_options(parser)
    profile_look.add_options(parser)
    profile_import.add_options(parser)
    parser.add_argument("--json", action="store_true", help="print JSON instead of text")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Do what ``args`` ask for; returns the exit status. Raises AutoplanError."""
    words = _checked(args.action, args.operands)
    if args.action == "list":
        return profile_look.list_profiles(args.json)
    if args.action == "show":
        return profile_look.show(words[0], args.json, args.html)
    if args.action == "diff":
        return profile_look.diff(words[0], words[1], args.threshold, args.json)
    if args.action == "schema":
        return profile_look.schema()
    if args.action == "import":
        return profile_import.import_file(words[0], Path(words[1]), args)
    return _measure(args)


def _checked(action: str, words: list[str]) -> list[str]:
    """As many words as the action takes."""
    wanted = _OPERANDS[action].split()
    if len(words) == len(wanted):
        return words
    if not wanted:
        raise InputError("profile", " ".join(words), "nothing more", f"did you mean `show {words[0]}`?")
    usage = f"`autoplan profile {action} {_OPERANDS[action]}`"
    expected = {"show": "the name of a profile", "diff": "the names of two profiles"}
    raise InputError(
        "profile",
        " ".join(words) or None,
        expected.get(action, f"one of {', '.join(profile_import.TOOLS)}, and a file"),
        f"try {usage}; see `autoplan profile list`",
    )


def _measure(args: argparse.Namespace) -> int:
    done = profile_measure.measure(args)
    if done is None:
        return 0
    if args.json:
        told = {"path": str(done.path), "seconds": done.seconds, **profile_look.as_json(done.cluster)}
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
