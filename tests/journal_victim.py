"""Run a measurement again and again, each time in a process that is killed at a random moment.

    python tests/journal_victim.py made-up|real FOLDER KILLS SEED

Of made-up points, which take no time and have known results, or of a few real ones. After every kill the files
are examined; what is found is printed as JSON: the most measurements that any kill lost, how often the
whole came to its end, and the points that were given up.
"""

from __future__ import annotations

import importlib
import json
import os
import random
import signal
import sys
import traceback
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from autoplan.hardware import Cluster, write_profile
from autoplan.hardware.measure_journal import Journal, journal_path
from autoplan.hardware.measure_run import run_points

RUN = {"what": "made up"}
VISITS = 3


@dataclass(frozen=True)
class Point:
    """A point with a name."""

    key: str


POINTS = [Point(f"point {i}") for i in range(20)]


def expected(key: str, visit: int) -> list[float]:
    """What measuring ``key`` gives: always the same, and not quick to find."""
    value = zlib.crc32(f"{key} {visit}".encode())
    for _ in range(1000):
        value = zlib.crc32(str(value).encode())
    return [value / 2**32 + 1.0, visit + 1.0]


def made_up(profile: Path) -> Cluster:
    """Measure the made-up points; the profile is any."""
    journal = Journal(journal_path(profile), RUN)
    visit_of: dict[str, int] = {}
    for key, visit in journal.samples:
        visit_of[key] = max(visit_of.get(key, 0), visit + 1)

    def measure(point: Point) -> list[float]:
        visit = visit_of.get(point.key, 0)
        visit_of[point.key] = visit + 1
        return expected(point.key, visit)

    results = run_points(POINTS, VISITS, measure, journal)
    wanted = {point.key: [expected(point.key, visit) for visit in range(VISITS)] for point in POINTS}
    assert results.visits == wanted
    return msgspec.structs.replace(Cluster.load("h100-sxm"), name="victim")


def real(profile: Path) -> Cluster:
    """Measure this process alone, a little."""
    from autoplan.hardware.measure import measure_cluster
    from autoplan.hardware.measure_sizes import TINY

    return measure_cluster("victim", sizes=TINY, journal=journal_path(profile), progress=False)


def victim(kind: str, profile: Path) -> None:
    """What ``autoplan profile`` does: measure, write the profile, remove the journal."""
    write_profile({"made-up": made_up, "real": real}[kind](profile), profile)
    journal_path(profile).unlink()


def entries(profile: Path) -> list[dict[str, Any]]:
    """What the journal holds, by a reading of its own: every whole line must be JSON."""
    path = journal_path(profile)
    lines = path.read_bytes().split(b"\n")[:-1] if path.exists() else []
    return [json.loads(line) for line in lines]


def size_of(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def attempt(kind: str, profile: Path, chance: random.Random, whole: int) -> bool:
    """One process, killed when its journal has grown to a random size, unless it ended before."""
    at = size_of(journal_path(profile)) + chance.randrange(whole // 4)
    spins = chance.randrange(2000)
    child = os.fork()
    if child == 0:
        try:
            victim(kind, profile)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    ended, status = 0, 0
    while not ended and size_of(journal_path(profile)) < at:
        ended, status = os.waitpid(child, os.WNOHANG)
    if not ended:
        sum(range(spins))  # into the middle of whatever follows
        os.kill(child, signal.SIGKILL)
        ended, status = os.waitpid(child, 0)
    killed = os.WIFSIGNALED(status)
    assert killed or os.WEXITSTATUS(status) == 0
    return killed


def main(kind: str, folder: Path, kills: int, seed: int) -> None:
    if kind == "real":
        importlib.import_module("autoplan.hardware.measure")  # torch once, before the forks
    chance = random.Random(seed)
    profile = folder / "victim.toml"
    most_lost = dead = runs = 0
    given_up: set[str] = set()
    while dead < kills:
        before = entries(profile)
        dead += attempt(kind, profile, chance, whole=10_000)
        found = entries(profile)
        if profile.exists():  # whole, or not there at all; a run that was done starts over
            assert Cluster.load(profile).name == "victim"
            runs += 1
            profile.unlink()
            journal_path(profile).unlink(missing_ok=True)
            continue
        assert found[: len(before)] == before, "what was kept stays"
        new = found[len(before) :]
        most_lost = max(most_lost, sum("begin" in e for e in new) - sum("done" in e for e in new))
        given_up |= {e["fail"] for e in new if "fail" in e}
    print(json.dumps({"killed": dead, "most_lost": most_lost, "runs": runs, "given_up": sorted(given_up)}))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]))
