"""Predicted against measured: the step time of many plans, run for real on ranks of this machine.

    python benchmarks/predicted_steps.py                                       2, 4 and 8 ranks, 12 plans each (half an hour)
    python benchmarks/predicted_steps.py --ranks 2 --plans 4 --rounds 1        a quick look

For each number of ranks the machine is measured (`autoplan profile`), a sample of the plans that the search
space holds is priced from that profile, and each is trained for some steps. All plans of one number of ranks are
run by the same processes, in several rounds, so that a slow minute touches all of them alike. A plan's measured
time is the median over its steps of the slowest rank's. Nothing of the predictions is fitted to these runs.

Written: predicted and measured seconds of each plan, Kendall's tau and the error's median and 95th percentile.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from datetime import date
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from byte_gpt import ByteGPT, Text, next_byte_loss
from train_text import machine

import autoplan
from autoplan.errors import AutoplanError

SEQ = 128
WIDTH, LAYERS, HEADS = 384, 6, 6
GLOBAL_BATCH = 16
WARM_UP = 2


def main() -> int:
    args = arguments()
    if args.worker:
        return work(args.worker, args.steps, args.rounds)
    began = time.perf_counter()
    result: dict[str, Any] = {"date": str(date.today()), "load_average": os.getloadavg()}
    result |= {"rounds": args.rounds, "steps": args.steps, "runs": {}}
    with tempfile.TemporaryDirectory() as folder:
        for ranks in args.ranks:
            result["runs"][str(ranks)] = run(ranks, args, Path(folder))
            result |= {"all": summary([row for r in result["runs"].values() for row in r["plans"]])}
    result["seconds"] = time.perf_counter() - began
    os.environ["WORLD_SIZE"] = str(max(args.ranks))
    result["machine"] = machine()
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(result, indent=1) + "\n")
    show(result)
    print(f"wrote {os.path.relpath(args.out)} in {result['seconds']:.0f} s")
    return 0


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--ranks", type=int, nargs="+", default=[2, 4, 8], help="numbers of ranks (default: 2 4 8)"
    )
    parser.add_argument("--plans", type=int, default=12, help="plans for each number of ranks (default: 12)")
    parser.add_argument(
        "--steps", type=int, default=3, help="timed steps of a plan in each round (default: 3)"
    )
    parser.add_argument("--rounds", type=int, default=3, help="rounds over all plans (default: 3)")
    parser.add_argument("--full-profile", action="store_true", help="measure the profile without --quick")
    default_out = Path(__file__).parent / "results" / "predicted_steps.json"
    parser.add_argument("--out", type=Path, default=default_out, help="result file (default: %(default)s)")
    parser.add_argument("--worker", metavar="FOLDER", help=argparse.SUPPRESS)
    return parser.parse_args()


def run(ranks: int, args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    place = folder / str(ranks)
    place.mkdir()
    profile = place / "profile.toml"
    quick = [] if args.full_profile else ["--quick"]
    say(f"{ranks} ranks: measuring the machine")
    command = [sys.executable, "-m", "autoplan", "profile", "--nproc", str(ranks), *quick, "--fresh"]
    subprocess.run([*command, "--out", str(profile)], check=True, stdout=subprocess.DEVNULL)
    plans = choose(list(priced(ranks, profile)), args.plans)
    for index, (plan, _) in enumerate(plans):
        autoplan.plan.write_plan(plan, place / f"{index}.json")
    say(f"{ranks} ranks: running {len(plans)} plans")
    threads = str(max(1, (os.cpu_count() or 1) // ranks))
    torchrun = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        str(ranks),
        "--",
    ]
    own = [
        str(Path(__file__)),
        "--worker",
        str(place),
        "--steps",
        str(args.steps),
        "--rounds",
        str(args.rounds),
    ]
    subprocess.run([*torchrun, *own], check=True, env={**os.environ, "OMP_NUM_THREADS": threads})
    measured = json.loads((place / "measured.json").read_text())
    rows = []
    for (plan, estimate), times in zip(plans, measured, strict=True):
        rows.append({
            "plan": describe(plan), "predicted_s": estimate.step_time_s, "measured_s": statistics.median(times),
            "spread_s": [min(times), max(times)], "parts_s": estimate.parts,
        })  # fmt: skip
    return {"plans": rows, **summary(rows)}


def priced(ranks: int, profile: Path) -> Iterator[tuple[Any, Any]]:
    """The best plan for each combination of the decisions below, with its price."""
    from autoplan.graph.trace import trace
    from autoplan.hardware import Cluster
    from autoplan.plan import Job, Precision
    from autoplan.search import search

    cluster = Cluster.load(profile)
    model = ByteGPT(WIDTH, LAYERS, HEADS, SEQ)
    job = Job(global_batch=GLOBAL_BATCH, tokens_per_sample=SEQ, precision=Precision.FP32)

    @functools.cache
    def graph_at(samples: int) -> Any:
        batch = torch.zeros(samples, SEQ, dtype=torch.long)
        return trace(model, batch, next_byte_loss, Precision.FP32)

    degrees = [1, 2, 4, 8]
    seen = set()
    for pp, tp, zero, micro_batch, recompute in itertools.product(
        degrees, (1, 2), (0, 1, 2, 3), (1, 2, 4, 8), ("none", "full")
    ):
        data = ranks // (pp * tp)
        if pp * tp * data != ranks or pp > LAYERS or (zero and data == 1):
            continue
        pin = {
            "pp": pp, "tp": tp, "micro_batch": micro_batch, "recompute": recompute,
            **({"dp": 1, "fsdp": data, "zero": zero} if zero else {"dp": data, "fsdp": 1}),
        }  # fmt: skip
        try:
            found = search(graph_at, job, cluster, pin=pin, top=1)
        except AutoplanError:
            continue  # a batch that does not divide so
        if found.best is not None and found.best.plan.hash() not in seen:
            seen.add(found.best.plan.hash())
            yield found.best.plan, found.best.estimate


def choose(plans: list[tuple[Any, Any]], number: int) -> list[tuple[Any, Any]]:
    """From the fastest to the slowest by prediction, at even distances."""
    ordered = sorted(plans, key=lambda item: item[1].step_time_s)
    if len(ordered) <= number:
        return ordered
    return [ordered[round(i * (len(ordered) - 1) / (number - 1))] for i in range(number)]


def work(place: str, steps: int, rounds: int) -> int:
    """One rank: every plan in turn, in rounds."""
    folder = Path(place)
    files = sorted(folder.glob("[0-9]*.json"), key=lambda path: int(path.stem))
    times: list[list[float]] = [[] for _ in files]
    text = Text.of_standard_library()
    dist.init_process_group("gloo")
    for _ in range(rounds):
        for index, path in enumerate(files):
            times[index] += timed(path, text, steps)
    if dist.get_rank() == 0:
        (folder / "measured.json").write_text(json.dumps(times))
    dist.destroy_process_group()
    return 0


def timed(path: Path, text: Text, steps: int) -> list[float]:
    torch.manual_seed(0)
    model = ByteGPT(WIDTH, LAYERS, HEADS, SEQ)
    batch = text.batch(0, GLOBAL_BATCH, SEQ)
    program = autoplan.parallelize(model, batch, loss=next_byte_loss, plan=path, precision="fp32")
    share = program.shard(batch)
    found = []
    for step in range(WARM_UP + steps):
        dist.barrier()
        began = time.perf_counter()
        program.step(share)
        slowest = torch.tensor(time.perf_counter() - began)
        dist.all_reduce(slowest, op=dist.ReduceOp.MAX)
        if step >= WARM_UP:
            found.append(slowest.item())
    program.close()
    return found


def describe(plan: Any) -> str:
    recompute = sum(len(stage.recompute) for stage in plan.stages)
    return (
        f"pp {plan.pp} dp {plan.dp} fsdp {plan.fsdp} tp {plan.tp} zero {plan.zero} "
        f"micro-batch {plan.micro_batch} x {plan.num_micro_batches} recompute {recompute}"
    )


def summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    errors = sorted(abs(row["predicted_s"] / row["measured_s"] - 1) for row in rows)
    return {
        "kendall_tau": kendall([row["predicted_s"] for row in rows], [row["measured_s"] for row in rows]),
        "median_error": statistics.median(errors),
        "p95_error": errors[min(len(errors) - 1, int(0.95 * len(errors)))],
    }


def kendall(a: list[float], b: list[float]) -> float:
    """Kendall's tau: pairs in the same order less pairs in the other, over all pairs."""
    pairs = list(itertools.combinations(range(len(a)), 2))
    same = sum(((a[i] - a[j]) * (b[i] - b[j]) > 0) - ((a[i] - a[j]) * (b[i] - b[j]) < 0) for i, j in pairs)
    return same / len(pairs) if pairs else float("nan")


def show(result: dict[str, Any]) -> None:
    for ranks, part in result["runs"].items():
        print(f"\n{ranks} ranks{'':54}  predicted   measured   error")
        for row in part["plans"]:
            error = row["predicted_s"] / row["measured_s"] - 1
            print(
                f"  {row['plan']:60}  {row['predicted_s']:8.3f} s {row['measured_s']:8.3f} s  {error:+6.1%}"
            )
        told(part)
    print("\nall")
    told(result["all"])


def told(part: dict[str, Any]) -> None:
    print(
        f"  Kendall tau {part['kendall_tau']:.2f}, error: median {part['median_error']:.1%}, "
        f"p95 {part['p95_error']:.1%}"
    )


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    raise SystemExit(main())
