"""``autoplan calibrate``: what a program measured of itself, into the profile that predicted it."""

from __future__ import annotations

import argparse
import json
import re
from pathlib import Path

__all__ = ["add_parser", "run"]


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """Add ``calibrate`` to the command line."""
    parser = subparsers.add_parser(
        "calibrate",
        help="fold what program.measure found into a hardware profile",
        description="Fold what program.measure found into a hardware profile: rates of compute, and curves of "
        "collectives. A measurement of another device, another number of ranks or another profile is refused.",
    )
    parser.add_argument(
        "measured", nargs="+", metavar="MEASURED", help="files that program.measure(…).save(…) wrote"
    )
    parser.add_argument(
        "--profile", required=True, help="name or file of the profile that they compared with"
    )
    parser.add_argument("--out", required=True, type=Path, metavar="FILE", help="the profile to write (TOML)")
    parser.add_argument("--json", action="store_true", help="print what changed as JSON")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Write the profile, and print what changed.

    Raises:
        ProfileError: a file is no measurement or no profile, or they do not belong together.
    """
    from msgspec.structs import replace

    from autoplan.hardware import Cluster, write_profile
    from autoplan.hardware.calibrate import calibrated
    from autoplan.hardware.measurement import read_measurement

    found = calibrated(Cluster.load(args.profile), [read_measurement(path) for path in args.measured])
    after = found.cluster
    if re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", args.out.stem):
        after = replace(after, name=args.out.stem, aliases=())
    write_profile(after, args.out)
    if args.json:
        curves = [
            {"level": level, "collective": kind, "ranks": group, "ratio": ratio}
            for (level, kind, group), ratio in found.curves.items()
        ]
        print(json.dumps({"path": str(args.out), "factors": dict(found.factors), "curves": curves}))
        return 0
    for bound, factor in found.factors.items():
        print(f"seconds of compute bound by {bound}: × {factor:.3g}")
    for (level, kind, group), ratio in found.curves.items():
        print(f"seconds of {kind} of {group} over {level}: × {ratio:.3g}")
    print(f"written to {args.out}")
    return 0
