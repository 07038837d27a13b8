"""The measuring part of ``autoplan profile``: its options, and who measures what."""

from __future__ import annotations

import argparse
import math
import os
import re
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from autoplan.errors import InputError, ProfileError

if TYPE_CHECKING:
    from autoplan.hardware import Cluster

__all__ = ["Measurement", "add_options", "measure"]

LEAST_MESSAGE = 4096
LEAST_OF_LIST = 256


@dataclass(frozen=True, slots=True)
class Measurement:
    """A profile that was measured here, where it was written, and how long that took."""

    cluster: Cluster
    path: Path
    seconds: float
    name: str

    @property
    def summary(self) -> str:
        """What to tell a person below the tables."""
        lines = []
        noisy, total = _noisy(self.cluster)
        if noisy:
            lines.append(f"{noisy} of {total} figures are noisy: measure again when the machine is at rest")
        lines += [f"not measured: {failure.what}: {failure.reason}" for failure in self.cluster.failed]
        lines.append(
            f"measured in {self.seconds} s, written to {self.path}; use it with --cluster {self.name}"
        )
        return "\n".join(lines)


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of a measurement."""
    parser.add_argument("--nproc", type=int, metavar="N", help="ranks (default: the GPUs, else the cores)")
    parser.add_argument("--quick", action="store_true", help="fewer sizes and samples; about a minute")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write here (default: the user's cache)")
    parser.add_argument("--name", help="name of the profile (default: local-cpu-4 and the like)")
    parser.add_argument("--max-bytes", type=_max_bytes, metavar="SIZE", help="largest message, such as 16MiB")
    parser.add_argument(
        "--sizes", type=_sizes, metavar="SIZES", help="all messages, such as 64KiB,1MiB,16MiB"
    )
    parser.add_argument(
        "--levels",
        type=_levels,
        metavar="LEVELS",
        help="topology, innermost level first, such as nvlink=8,node=4 (default: what is found)",
    )
    parser.add_argument(
        "--fresh", action="store_true", help="do not go on from a measurement that was interrupted"
    )


def measure(args: argparse.Namespace) -> Measurement | None:
    """Measure as ``args`` ask; None where other processes did, or are to tell of it. Raises AutoplanError."""
    from autoplan.hardware.launch import process_group, spawn, under_torchrun

    _check(args)
    if under_torchrun():
        with process_group() as rank:
            return _measure_here(args, rank)
    nproc = args.nproc or _default_ranks()
    _check_levels(args.levels, nproc)
    if nproc == 1:
        return _measure_here(args, 0)
    spawn(nproc, _arguments(args))
    return None


def _measure_here(args: argparse.Namespace, rank: int) -> Measurement | None:
    """This rank's part of the measurement; rank 0 writes the profile."""
    from autoplan.hardware.local import local_name
    from autoplan.hardware.measure import World, measure_cluster
    from autoplan.hardware.measure_journal import journal_path
    from autoplan.hardware.profile_file import write_profile
    from autoplan.hardware.profile_path import cache_dir

    world = World.here()
    stem = args.out.stem if args.out is not None else None
    name = args.name or stem or local_name(world.device.type, world.size)
    path = args.out or cache_dir() / f"{name}.toml"
    start_s = time.monotonic()
    cluster = measure_cluster(
        name,
        quick=args.quick,
        max_bytes=args.max_bytes,
        messages=args.sizes or (),
        levels=args.levels or (),
        journal=journal_path(path),
        fresh=args.fresh,
    )
    seconds = round(time.monotonic() - start_s, 1)
    if rank != 0:
        return None
    write_profile(cluster, path)
    journal_path(path).unlink(missing_ok=True)
    return Measurement(cluster, path, seconds, str(args.out or name))


def _check(args: argparse.Namespace) -> None:
    """What can be known to be wrong before anything is measured."""
    if args.nproc is not None and not 1 <= args.nproc <= 1024:
        raise InputError("--nproc", args.nproc, "1 to 1024 ranks", "give the number of ranks on this machine")
    if args.name is not None and not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", args.name):
        raise InputError("--name", args.name, "letters, digits, dots and hyphens", "choose such a name")
    if args.sizes and args.max_bytes is not None:
        raise InputError("--max-bytes", args.max_bytes, "no --sizes beside it", "give one of the two")
    if args.out is not None:
        _check_out(args.out)


def _check_levels(levels: Any, ranks: int) -> None:
    if levels and math.prod(level.size for level in levels) != ranks:
        shape = " x ".join(str(level.size) for level in levels)
        expected = f"sizes that multiply to {ranks}, the number of ranks"
        raise InputError("--levels", shape, expected, "correct the sizes, or give --nproc")


def _check_out(out: Path) -> None:
    """A file in a place that can be written: better known before minutes of measuring than after."""
    if out.is_dir():
        raise ProfileError("--out", str(out), "a file, not a folder", f"try {out / 'profile.toml'}")
    folder = next(parent for parent in out.absolute().parents if parent.exists())
    if not (folder.is_dir() and os.access(folder, os.W_OK)):
        raise ProfileError(
            "--out", str(out), f"a place that can be written, unlike {folder}", "choose another"
        )


def _default_ranks() -> int:
    import torch

    from autoplan.hardware.machine import cores

    return torch.cuda.device_count() or cores()


def _arguments(args: argparse.Namespace) -> list[str]:
    """The options of ``args`` as words, for the ranks."""
    words = [f"--{name}" for name in ("quick", "json", "fresh") if getattr(args, name)]
    texts = {
        "--out": args.out,
        "--name": args.name,
        "--max-bytes": args.max_bytes,
        "--sizes": ",".join(map(str, args.sizes)) if args.sizes else None,
        "--levels": ",".join(f"{level.name}={level.size}" for level in args.levels) if args.levels else None,
    }
    for option, value in texts.items():
        words += [option, str(value)] if value is not None else []
    return words


def _levels(text: str) -> Any:
    from autoplan.hardware.topology import parse_levels

    return parse_levels(text)


def _max_bytes(text: str) -> int:
    return _bytes("--max-bytes", text, LEAST_MESSAGE)


def _sizes(text: str) -> tuple[int, ...]:
    return tuple(sorted({_bytes("--sizes", part.strip(), LEAST_OF_LIST) for part in text.split(",")}))


def _bytes(option: str, text: str, least: int) -> int:
    """``65536``, ``64KiB``, ``16MiB``, ``1GiB`` → bytes."""
    match = re.fullmatch(r"(\d{1,15}) ?(KiB|MiB|GiB|B)?", text, re.ASCII)
    scale = {"KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30}
    value = int(match[1]) * scale.get(match[2] or "B", 1) if match else 0
    if not least <= value <= 1 << 40:
        from autoplan.units import bytes_binary

        shown = bytes_binary(least).replace(".00 ", "")
        raise InputError(option, text, f"a size from {shown} to 1TiB, such as 16MiB", "give such a size")
    return value


def _noisy(cluster: Cluster) -> tuple[int, int]:
    """How many points of the tables are noisy, of how many."""
    device = cluster.device
    tables: list[Any] = [*device.gemm, *device.batched_gemm, *device.attention]
    tables += [table for level in cluster.levels for table in level.curves]
    tables += [device.memory] if device.memory is not None else []
    points = [point for table in tables for point in table.points]
    return sum(point.noisy for point in points), len(points)
