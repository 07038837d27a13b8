"""How good our plans are by another's judgement: our plan and the experts' configuration, both priced by Calculon.

    git clone https://github.com/calculon-ai/calculon CHECKOUT
    python -m venv VENV && VENV/bin/pip install numpy pandas psutil
    python benchmarks/search_calculon.py --calculon CHECKOUT --python VENV/bin/python [--table NAME] [--rows FROM:TO]

For each run of dense GPT models in the published tables: the published configuration, and the best plan that our search
finds for the same model, GPUs and batch among those that Calculon can express (tensor, pipeline and data parallelism,
1F1B or interleaved, the optimizer's state sharded among all data ranks or none, every block recomputed or none). Our cost
model chooses; Calculon, told the same hardware, prices both. ``calculon_model`` says how they are translated, and what is
the same for either side. Plans that Calculon has no words for (ZeRO-2 and 3, HSDP, zero-bubble schedules, recomputation of
parts), which our search prefers in most rows, are not asked for here: the gain is that of the narrower choice.

What the row does not say is chosen for the published configuration as well as our model can. It ran, so where our count
says that it does not fit (``memory_granted`` above 1), our search may use as much memory as it would. ``gain`` is the published configuration's step over ours, less 1, under Calculon;
``own_gain`` is that of the same two plans under our model.

Writes results/search_calculon.json and a summary, results/search_calculon.md.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

from calculon_model import FORBID, Calculon, NotSaid, application_of, pins_of
from msgspec.structs import replace
from prediction_rows import PUBLISHED, Run, read_runs
from search_quality import TABLES, Left, Workloads, decoder, pins, question, short, with_endless_memory

from autoplan.cost.memory import limit_bytes
from autoplan.errors import AutoplanError, PlanError
from autoplan.hardware import Cluster

RESULTS = Path(__file__).parent / "results" / "search_calculon.json"
GAP = 0.01
SCHEDULES = ("1f1b", "interleaved")
Row = dict[str, Any]


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--calculon", type=Path, required=True, help="a checkout of Calculon")
    parser.add_argument(
        "--python", default=sys.executable, help="the Python that runs it (default: this one)"
    )
    parser.add_argument("--table", choices=TABLES, help="only this one")
    parser.add_argument("--rows", default=":", help="of the table, FROM:TO (default: all)")
    args = parser.parse_args()
    from surroundings import surroundings

    calculon = Calculon(args.calculon, args.python)
    result = json.loads(RESULTS.read_text()) if RESULTS.exists() else {"published": {}}
    result = surroundings() | {"calculon": revision(args.calculon), "published": result["published"]}
    for table in TABLES if args.table is None else (args.table,):
        rows = result["published"].setdefault(table, {})
        for line, row in published(table, args.rows, calculon):
            rows[line] = row
            RESULTS.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
        RESULTS.with_suffix(".md").write_text(summary(result), encoding="utf-8")
    return 0


def revision(checkout: Path) -> str:
    """Which commit it is, if git knows."""
    import subprocess

    command = ["git", "-C", str(checkout), "rev-parse", "--short", "HEAD"]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip() or "unknown"


def published(table: str, rows: str, calculon: Calculon) -> Iterator[tuple[str, Row]]:
    """By line of the table, what came of its row."""
    first, _, last = rows.partition(":")
    runs = [run for run in read_runs(PUBLISHED) if run.table == table]
    workloads = Workloads()
    for run in runs[int(first or 0) : int(last) if last else None]:
        row = {name: run.row[name] for name in ("model", "gpu", "gpus", "global_batch", "seq_len")}
        try:
            row |= compared(run, workloads, calculon)
        except (Left, NotSaid) as reason:
            row["left_out"] = str(reason)
        except AutoplanError as error:
            row["left_out"] = f"our model: {error}"
        outcome = row.get("left_out") or f"gain {row['gain']:+.1%} (by ours {row['own_gain']:+.1%})"
        print(table, run.line, row["model"], row["gpus"], outcome, flush=True)
        yield str(run.line), row


def compared(run: Run, workloads: Workloads, calculon: Calculon) -> Row:
    """Raises Left or NotSaid for a row that cannot be compared, with the reason."""
    cluster, job = question(run)
    pin, size = pins(run.row), decoder(run)
    application = application_of(size)
    if pin.get("zero", 0) > 1:
        raise NotSaid(f"ZeRO-{pin['zero']}, which Calculon has no words for")
    if pin["cp"] > 1:
        raise NotSaid("context parallel")

    def best(pinned: Row, on: Any) -> Any:
        """Of plans with all of the state sharded and those with none, under either schedule."""
        found = []
        for sharded, schedule in product((True, False), SCHEDULES):
            if schedule == "interleaved" and pinned.get("pp") == 1:
                continue
            ways = pins_of(size, sharded) | {"schedule": schedule}
            if any(pinned.get(name, value) != value for name, value in ways.items()):
                continue
            try:
                answer = workloads.search(run, on, job, pinned | ways, FORBID)
            except PlanError:  # no such candidates, as of stages where there is no pipeline
                continue
            found += [answer] if answer.plan is not None else []
        return min(found, key=lambda answer: answer.estimate.step_time_s, default=None)

    fitting = pin if "recompute" in pin or best(pin, cluster) is not None else pin | {"recompute": "full"}
    theirs = best(fitting, with_endless_memory(cluster))
    if theirs is None:
        raise NotSaid("the published configuration has no plan that Calculon can express")
    granted = max(1.0, theirs.estimate.peak_memory_bytes / limit_bytes(cluster.device))
    ours = best({}, with_memory(cluster, granted))
    if ours is None:
        raise NotSaid("by our count nothing fits of what Calculon can express")
    prices = [calculon.price(application, cluster, side.plan) for side in (theirs, ours)]
    return {
        "pin": fitting,
        "memory_granted": granted,
        "schedules": SCHEDULES,
        "published": short(theirs.plan),
        "ours": short(ours.plan),
        "published_calculon": prices[0],
        "ours_calculon": prices[1],
        "measured_s": run.step_s,
        "gain": prices[0]["step_s"] / prices[1]["step_s"] - 1,
        "flat_gain": prices[0]["flat_step_s"] / prices[1]["flat_step_s"] - 1,
        "own_gain": theirs.estimate.step_time_s / ours.estimate.step_time_s - 1,
        "published_s": theirs.estimate.step_time_s,
        "ours_s": ours.estimate.step_time_s,
    }


def with_memory(cluster: Cluster, times: float) -> Cluster:
    """The same with so many times the memory."""
    if times == 1:
        return cluster
    device = cluster.device
    usable, whole = (round(size * times * 1.0001) for size in (device.usable_bytes, device.memory_bytes))
    return replace(cluster, device=replace(device, usable_bytes=usable, memory_bytes=whole))


def summary(result: Row) -> str:
    """The method, the gains, and every row that is slower with the part of Calculon's price that makes it so."""
    machine = result["machine"]
    lines = ["# Our plans by Calculon's judgement", ""]
    lines += [f"{result['date']}, {machine['cpu']}, Calculon at {result['calculon']}", ""]
    lines += [part.replace("\n", " ") + "\n" for part in (__doc__ or "").split("\n\n")[2:4]]
    lines += [
        "| table | rows | compared | slower than published | median gain | least | most | median on flat networks | median by our model |"
    ]
    lines += ["|---|---|---|---|---|---|---|---|---|"]
    every: list[Row] = []
    for table, rows in result["published"].items():
        counted = [row for row in rows.values() if "gain" in row]
        every += counted
        lines.append(f"| {table} | {len(rows)} | {_gains(counted)} |")
    total = sum(map(len, result["published"].values()))
    lines += [f"| all | {total} | {_gains(every)} |"]
    fitting = [row for row in every if row["published_calculon"]["fits"] and row["ours_calculon"]["fits"]]
    lines += [f"| of these, both fit by Calculon's count | | {_gains(fitting)} |", ""]
    errors = [
        abs(row["published_calculon"]["step_s"] / row["measured_s"] - 1) for row in every if row["measured_s"]
    ]
    if errors:
        lines += [
            f"Calculon's price of the published configuration is off what was measured by {statistics.median(errors):.0%}"
            f" in the median of {len(errors)} rows; ours by "
            f"{statistics.median(abs(row['published_s'] / row['measured_s'] - 1) for row in every if row['measured_s']):.0%}.",
            "",
        ]
    lines += [
        "Slower under Calculon, with the parts of its price that differ most (ours less published, share of the step):"
    ]
    lines += [""]
    for table, rows in result["published"].items():
        for line, row in rows.items():
            if row.get("gain", 0) < -GAP:
                lines.append(
                    f"- {table}:{line} {row['model']} on {row['gpus']}: {row['gain']:+.1%} ({_why(row)}); published: "
                    f"{row['published']}; ours: {row['ours']}"
                )
    lines += ["", "Left out:", ""]
    reasons: dict[str, int] = {}
    for rows in result["published"].values():
        for row in rows.values():
            if "left_out" in row:
                reasons[row["left_out"]] = reasons.get(row["left_out"], 0) + 1
    lines += [f"- {count}: {reason}" for reason, count in sorted(reasons.items(), key=lambda item: -item[1])]
    return "\n".join(lines) + "\n"


def _why(row: Row) -> str:
    theirs, ours = row["published_calculon"], row["ours_calculon"]
    shares = {
        part: (ours["parts_s"][part] - seconds) / theirs["step_s"]
        for part, seconds in theirs["parts_s"].items()
    }
    largest = sorted(shares, key=lambda part: -abs(shares[part]))[:3]
    return ", ".join(f"{part} {shares[part]:+.1%}" for part in largest)


def _gains(rows: list[Row]) -> str:
    if not rows:
        return "0 | | | | | | "
    gains = [row["gain"] for row in rows]
    flat, own = (statistics.median(row[name] for row in rows) for name in ("flat_gain", "own_gain"))
    slower = sum(gain < -GAP for gain in gains)
    return f"{len(gains)} | {slower} | {statistics.median(gains):+.1%} | {min(gains):+.1%} | {max(gains):+.1%} | {flat:+.1%} | {own:+.1%}"


if __name__ == "__main__":
    sys.exit(main())
