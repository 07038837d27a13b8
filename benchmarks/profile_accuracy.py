"""Does a measured profile repeat, and does it predict what was not measured?

    python benchmarks/profile_accuracy.py                    2, 4 and 8 ranks of this machine (about ten minutes)
    python benchmarks/profile_accuracy.py --ranks 2 --small  a quick look

For each number of ranks the machine is measured twice, by processes of their own, on the grid of a full
`autoplan profile` in float32 with messages up to 16 MiB. Then

- every figure of the second measurement is compared with the first: is the difference within the spread that the
  second states for itself?
- the first profile predicts products and collectives of random sizes, none of them on the grid, and the second
  processes measure them, by the same clock.

Exit status 1 if fewer than 95 % of the figures lie within their spread, or a median error exceeds 15 %.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from surroundings import surroundings, write_results

from autoplan.hardware import Cluster
from autoplan.hardware.measure_points import Gemm, Memory, Message
from autoplan.hardware.measure_sizes import Sizes, sizes_for

GEMMS, COLLECTIVES = 30, 20
BOUND_ERROR = 0.15
BOUND_WITHIN = 0.95
MIB = 1 << 20
KINDS = ("all_reduce", "all_gather", "reduce_scatter", "all_to_all", "send_recv")
LIMIT_S = 1800


def sizes_of(small: bool) -> Sizes:
    """The grid that is measured: that of a full profile, of what is compared here."""
    full = sizes_for("cpu", quick=small, max_bytes=(1 if small else 16) * MIB)
    return replace(
        full,
        samples=2,
        window_s=0.02,
        gemm={"float32": full.gemm["float32"] if small else 3 * (full.gemm["float32"][1],)},
        batched_gemm={},
        attention={},
        beside_kinds=(),
    )


def unseen(world: int, small: bool) -> tuple[list[Gemm], list[Message]]:
    """Random products and collectives that are not on the grid, the same for every run.

    A collective's ``level`` is the distance between the ranks of its groups: on one machine all distances
    belong to one level, of which the profile measured the distance 1.
    """
    chance = random.Random(f"unseen by {world}")
    sizes = sizes_of(small)
    on_grid = {size for axes in sizes.gemm.values() for axis in axes for size in axis}
    largest = 512 if small else 1024

    def size() -> int:
        while (value := round(16 * (largest / 16) ** chance.random())) in on_grid:
            pass
        return value

    gemms = [Gemm("float32", 1, size(), size(), size()) for _ in range(GEMMS)]
    messages = []
    while len(messages) < COLLECTIVES:
        kind, group = chance.choice(KINDS), 2 ** chance.randint(1, world.bit_length() - 1)
        stride = 2 ** chance.randint(0, (world // group).bit_length() - 1)
        nbytes = round(2048 * (sizes.messages[-1] / 2048) ** chance.random())
        if nbytes not in sizes.messages and (kind != "send_recv" or group == 2):
            messages.append(Message(stride, kind, group, nbytes))
    return gemms, messages


def main() -> int:
    args = arguments()
    if "RANK" in os.environ:
        return rank(args)
    start_s = time.monotonic()
    result = surroundings()
    runs = [compared(world, args.small) for world in args.ranks]
    for run in runs:
        told(run)
    verdict = judged(runs)
    result |= {
        "small": args.small,
        "seconds": round(time.monotonic() - start_s),
        "verdict": verdict,
        "runs": runs,
    }
    write_results(args.out, result)
    return 0 if all(entry["passed"] for entry in verdict.values()) else 1


def compared(world: int, small: bool) -> dict[str, Any]:
    """Two measurements of the machine with ``world`` ranks, and what the first predicts."""
    with tempfile.TemporaryDirectory() as folder:
        first, second = (launched(world, small, Path(folder) / name) for name in ("first", "second"))
        cluster = Cluster.load(Path(folder) / "first.toml")
    figures = []
    for key, (value, spread, noisy) in second["figures"].items():
        before = first["figures"][key][0]
        off = abs(value - before) / value
        figures.append({"what": key, "off": round(off, 4), "spread": round(spread, 4), "noisy": noisy})
    gemms, messages = unseen(world, small)
    return {
        "ranks": world,
        "seconds": [first["seconds"], second["seconds"]],
        "figures": len(figures),
        "within": round(sum(f["off"] <= f["spread"] for f in figures) / len(figures), 4),
        "noisy": sum(f["noisy"] for f in figures),
        "median_off": round(statistics.median(f["off"] for f in figures), 4),
        "median_spread": round(statistics.median(f["spread"] for f in figures), 4),
        "outside": [f for f in figures if f["off"] > f["spread"]],
        "gemm": [predicted(point, cluster, second["unseen"]) for point in gemms],
        "collectives": [predicted(point, cluster, second["unseen"]) for point in messages],
    }


def predicted(point: Gemm | Message, cluster: Cluster, measured: dict[str, list[float]]) -> dict[str, Any]:
    """One time beside the other."""
    if isinstance(point, Gemm):
        predicted_s = cluster.device.gemm_time_s((point.batch, point.m, point.n, point.k), point.dtype)
    else:
        predicted_s = cluster.collective_time_s(point.kind, point.actual_bytes, point.group, point.level)
    measured_s = measured[point.key][0]
    return {
        "what": point.key,
        "predicted_s": float(f"{predicted_s:.4g}"),
        "measured_s": float(f"{measured_s:.4g}"),
        "error": round(abs(predicted_s / measured_s - 1), 4),
        "spread": round(measured[point.key][1], 4),
    }


def judged(runs: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """A verdict for each target and number of ranks, printed."""
    verdict = {}
    for run in runs:
        ranks = run["ranks"]
        verdict[f"repeats_{ranks}"] = {
            "within": run["within"],
            "bound": BOUND_WITHIN,
            "passed": run["within"] >= BOUND_WITHIN,
        }
        for what in ("gemm", "collectives"):
            error = statistics.median(entry["error"] for entry in run[what])
            verdict[f"{what}_{ranks}"] = {
                "median_error": round(error, 4),
                "bound": BOUND_ERROR,
                "passed": error <= BOUND_ERROR,
            }
    for name, entry in verdict.items():
        value = entry.get("median_error", entry.get("within"))
        sign = "at most" if "median_error" in entry else "at least"
        print(
            f"{'pass' if entry['passed'] else 'FAIL'}  {name:16} {value:6.1%}  ({sign} {entry['bound']:.0%})"
        )
    return verdict


def told(run: dict[str, Any]) -> None:
    print(f"{run['ranks']} ranks, measured in {run['seconds'][0]} s and {run['seconds'][1]} s")
    print(
        f"  {run['figures']} figures, {run['noisy']} noisy; median difference {run['median_off']:.1%}, "
        f"median spread stated {run['median_spread']:.1%}"
    )
    for what in ("gemm", "collectives"):
        errors = sorted(entry["error"] for entry in run[what])
        worst = max(run[what], key=lambda entry: entry["error"])
        print(
            f"  {what}: {len(errors)} unseen, median error {statistics.median(errors):.1%}, "
            f"worst {worst['error']:.0%} ({worst['what']})"
        )


def launched(world: int, small: bool, out: Path) -> dict[str, Any]:
    """One measurement in processes of its own."""
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(world)]
    command = [*torchrun, str(Path(__file__)), "--out", str(out), *(["--small"] if small else [])]
    subprocess.run(command, env=os.environ | {"OMP_NUM_THREADS": "1"}, check=True, timeout=LIMIT_S)
    return json.loads(out.with_suffix(".json").read_text())


def rank(args: argparse.Namespace) -> int:
    """One rank: the grid, the profile, then what is not on the grid."""
    from autoplan.hardware import write_profile
    from autoplan.hardware.launch import process_group
    from autoplan.hardware.machine import measured_source
    from autoplan.hardware.measure import Bench, find
    from autoplan.hardware.measure_clock import Clock
    from autoplan.hardware.measure_collectives import make_ring
    from autoplan.hardware.measure_journal import Journal
    from autoplan.hardware.measure_points import Launch
    from autoplan.hardware.measure_profile import assemble
    from autoplan.hardware.measure_run import run_points

    sizes = sizes_of(args.small)
    start_s = time.monotonic()
    with process_group() as number:
        found = find(sizes)
        seconds = round(time.monotonic() - start_s, 1)
        world = found.topology.world
        unseen_points = [*unseen(world, args.small)[0], *unseen(world, args.small)[1]]
        results = found.results
        if args.out.stem == "second":
            shapes = sorted({(p.level, p.group) for p in unseen_points if isinstance(p, Message)})
            rings = {(stride, size): make_ring(size, stride, world, world, number) for stride, size in shapes}
            clock = Clock(found.device, world, world, sizes.samples, sizes.window_s)
            results = run_points(
                unseen_points,
                sizes.visits,
                Bench(clock, rings).measure,
                Journal(None, {}),
                most_visits=sizes.most_visits,
            )
    if number != 0:
        return 0
    source = measured_source(
        found.device, found.topology, visits=sizes.visits, samples=sizes.samples, load=0.0
    )
    write_profile(assemble(args.out.stem, found, source), args.out.with_suffix(".toml"))
    compared_points = [p for p in found.points if isinstance(p, Launch | Gemm | Memory | Message)]
    figures = {p.key: found.results.figure(p) for p in compared_points}
    unseen_figures = {p.key: results.figure(p) for p in unseen_points}
    told = {
        "seconds": seconds,
        "figures": {key: [f.value, f.spread, f.noisy] for key, f in figures.items() if f is not None},
        "unseen": {key: [f.value, f.spread] for key, f in unseen_figures.items() if f is not None},
    }
    args.out.with_suffix(".json").write_text(json.dumps(told))
    return 0


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--ranks", type=int, nargs="+", default=[2, 4, 8], help="numbers of ranks, powers of two"
    )
    parser.add_argument(
        "--small", action="store_true", help="the grid of a quick profile, messages up to 1 MiB"
    )
    default = Path(__file__).parent / "results" / "profile_accuracy.json"
    parser.add_argument("--out", type=Path, default=default, help="where to write the figures")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
