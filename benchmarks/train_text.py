"""Train a byte-level GPT under the plan that autoplan chose, and again in one plain process; compare.

    python benchmarks/train_text.py                      4 ranks on this machine, 200 steps
    torchrun --nproc-per-node 2 benchmarks/train_text.py
    autoplan run plan.json benchmarks/train_text.py      under that plan

Both runs start from the same weights and see the same global batches in float32, so their losses may
differ by the order of additions alone. How far that carries was measured in one process: with the batch
summed in 8 parts in place of one, 200 steps at the default size differ by at most 2.7e-6 of the loss,
and the first ten by 1.6e-7 (``--control`` measures it again). The bounds below leave room for
other machines, plans and lengths, and a wrong gradient is orders of magnitude beyond them.

Exit status 1 if the curves differ by more.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import subprocess
import sys
import time
from datetime import date
from pathlib import Path
from typing import Any

import torch
from byte_gpt import ByteGPT, Text, next_byte_loss

import autoplan
from autoplan.errors import AutoplanError
from autoplan.plan import plan_json
from autoplan.report import plan_text

FIRST_STEPS = 10
BOUND_FIRST = 2e-6
"""Largest relative difference of the loss in the first ten steps: 17 units of float32 rounding."""
BOUND_ALL = 1e-4
"""Largest relative difference over all steps, in which rounding grows as training does."""
LEARNING_RATE = 3e-4
CONTROL_PARTS = 8


def main() -> int:
    args = arguments()
    if "RANK" not in os.environ:
        return launch(args.nproc)
    text = Text.of_standard_library()
    try:
        under_plan = train_under_plan(args, text)
    except AutoplanError as error:
        if is_first():
            print(f"train_text: error: {error}", file=sys.stderr)
        return error.exit_status
    if not is_first():
        return 0
    print("\nThe same steps in one process, without autoplan:", flush=True)
    alone = train_alone(args, text, parts=1)
    result = {
        "date": str(date.today()),
        "machine": machine(),
        "text_sha256": text.sha256,
        "model_parameters": sum(parameter.numel() for parameter in ByteGPT().parameters()),
        "steps": args.steps, "global_batch": args.global_batch, "seq": args.seq, "precision": "fp32",
        **under_plan,
        **{f"one_process_{key}": value for key, value in alone.items()},
        **difference(under_plan["losses"], alone["losses"]),
        "bounds": {"first_10_steps": BOUND_FIRST, "all_steps": BOUND_ALL},
    }  # fmt: skip
    if args.control:
        print(f"\nOne process again, each batch summed in {CONTROL_PARTS} parts:")
        control = train_alone(args, text, parts=CONTROL_PARTS)
        result["control"] = difference(control["losses"], alone["losses"])
    show(result)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(result, indent=1) + "\n")
    print(f"wrote {os.path.relpath(args.out)}")
    return 0 if result["equal"] else 1


def launch(ranks: int) -> int:
    """Run this command again under torchrun, the cores shared out among the ranks."""
    threads = str(max(1, (os.cpu_count() or 1) // ranks))
    torchrun = (
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        str(ranks),
        "--",
    )
    return subprocess.call([*torchrun, *sys.argv], env={"OMP_NUM_THREADS": threads, **os.environ})


def is_first() -> bool:
    return int(os.environ["RANK"]) == 0


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--nproc", type=int, default=4, help="ranks, when not already under torchrun (default: 4)"
    )
    parser.add_argument("--steps", type=int, default=200, help="optimizer steps (default: 200)")
    parser.add_argument("--global-batch", type=int, default=8, help="sequences in a step (default: 8)")
    parser.add_argument("--seq", type=int, default=64, help="bytes in a sequence (default: 64)")
    parser.add_argument("--cluster", help="profile to search with (default: measured on this machine)")
    parser.add_argument("--plan", help="train under this plan in place of a searched one")
    parser.add_argument(
        "--pin", action="append", default=[], metavar="KEY=N", help="hold a decision, e.g. tp=2"
    )
    parser.add_argument(
        "--control", action="store_true", help="also measure what the order of additions does alone"
    )
    default_out = Path(__file__).parent / "results" / "train_text.json"
    parser.add_argument("--out", type=Path, default=default_out, help="result file (default: %(default)s)")
    return parser.parse_args()


def train_under_plan(args: argparse.Namespace, text: Text) -> dict[str, Any]:
    """Every rank comes here. The losses are those of the global batch."""
    torch.manual_seed(0)
    program = autoplan.parallelize(
        ByteGPT(),
        text.batch(0, args.global_batch, args.seq),
        loss=next_byte_loss,
        optimizer=lambda parameters: torch.optim.AdamW(parameters, lr=LEARNING_RATE),
        cluster=args.cluster,
        plan=args.plan,
        pin={key: int(number) for key, number in (pin.split("=") for pin in args.pin)} or None,
        precision="fp32",
    )
    if is_first():
        print(plan_text(program.plan), flush=True)
    losses, seconds = [], time.perf_counter()
    for step in range(args.steps):
        batch = text.batch(step, args.global_batch, args.seq)
        losses.append(program.step(program.shard(batch)).item())
        progress(step, losses)
    seconds = time.perf_counter() - seconds
    decided = json.loads(plan_json(program.plan))
    program.close()
    return {"plan": decided, "losses": losses, "step_s": seconds / args.steps}


def train_alone(args: argparse.Namespace, text: Text, parts: int) -> dict[str, Any]:
    """The loop that a user has before autoplan, with as many threads as a rank; ``parts`` micro-batches a step."""
    torch.manual_seed(0)
    model = ByteGPT()
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE)
    losses, seconds = [], time.perf_counter()
    for step in range(args.steps):
        total = 0.0
        for part in text.batch(step, args.global_batch, args.seq).chunk(parts):
            loss = next_byte_loss(model(part), part) * (len(part) / args.global_batch)
            loss.backward()
            total += loss.item()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(total)
        progress(step, losses)
    return {"losses": losses, "step_s": (time.perf_counter() - seconds) / args.steps}


def progress(step: int, losses: list[float]) -> None:
    if is_first() and (step + 1) % 50 == 0:
        print(f"  step {step + 1:4d}  loss {losses[-1]:.4f}", flush=True)


def difference(losses: list[float], reference: list[float]) -> dict[str, Any]:
    """Largest relative differences, and whether both are within their bounds (a NaN is not)."""
    relative = [abs(a - b) / abs(b) for a, b in zip(losses, reference, strict=True)]
    worst = [
        math.nan if any(map(math.isnan, part)) else max(part) for part in (relative[:FIRST_STEPS], relative)
    ]
    return {
        "max_relative_difference_first_10_steps": worst[0],
        "max_relative_difference": worst[1],
        "equal": worst[0] <= BOUND_FIRST and worst[1] <= BOUND_ALL,
    }


def show(result: dict[str, Any]) -> None:
    curves = list(zip(result["losses"], result["one_process_losses"], strict=True))
    print("\n  step   under the plan      one process   relative difference")
    for step in sorted({1, *range(10, len(curves) + 1, 10), len(curves)}):
        a, b = curves[step - 1]
        print(f"{step:6d}   {a:14.6f}   {b:14.6f}   {abs(a - b) / abs(b):19.1e}")
    threads = result["machine"]["threads_per_rank"]
    print(
        f"\nseconds a step, {threads} thread(s) each: {result['step_s']:.3f} on {result['machine']['ranks']} ranks",
        end="",
    )
    print(f", {result['one_process_step_s']:.3f} in one process")
    told(f"first {FIRST_STEPS} steps", result["max_relative_difference_first_10_steps"], BOUND_FIRST)
    told(f"all {len(curves)} steps", result["max_relative_difference"], BOUND_ALL)
    if "control" in result:
        told("order of additions alone", result["control"]["max_relative_difference"], BOUND_ALL)
    print("the curves are equal to float32 rounding" if result["equal"] else "THE CURVES DIFFER")


def told(where: str, worst: float, bound: float) -> None:
    print(f"largest relative difference, {where}: {worst:.1e} (bound {bound:.0e})")


def machine() -> dict[str, Any]:
    model = ""
    if Path("/proc/cpuinfo").exists():
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        model = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
    return {
        "cpu": model or platform.processor(),
        "cores": os.cpu_count(),
        "system": platform.system(),
        "ranks": int(os.environ["WORLD_SIZE"]),
        "threads_per_rank": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "autoplan": autoplan.__version__,
    }


if __name__ == "__main__":
    raise SystemExit(main())
