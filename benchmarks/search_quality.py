"""How good the plans are that a search returns: against all plans, where all can be priced, and against experts' choices.

    python benchmarks/search_quality.py published [--table NAME] [--rows FROM:TO]
    python benchmarks/search_quality.py brute [--instances N] [--seed N]

``published``: for each run of dense models in the tables, the plan that the search finds for the same model, GPUs and
batch, against the configuration that was published (its degrees, state sharding, micro-batch, schedule, stages a rank,
recomputation and sequence parallelism), both priced by the cost model that the search uses, in bf16. What a row does not
say is chosen for it as well as can be, so are its layouts and its stages; selective recomputation of attention is taken
as none, since fused attention keeps no scores, and as granted whatever memory that needs: the published configuration
is not asked to fit, and ``published_fits`` says whether it does by our count. ``gain`` is its step time over ours, less 1.

``brute``: random small instances of which every plan is priced (``brute_force``); the search must find the best.

Either adds to results/search_quality.json what it found, and writes the summary of all to results/search_quality.md.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any

from prediction_rows import PUBLISHED, Run, read_runs

from autoplan.cost.transformer.row_cluster import row_cluster_name
from autoplan.cost.transformer.row_fields import Fields
from autoplan.errors import AutoplanError
from autoplan.graph.sources.sizes import DecoderConfig
from autoplan.hardware import Cluster
from autoplan.plan import Job

RESULTS = Path(__file__).parent / "results" / "search_quality.json"
TABLES = ("megatron_lm_readme", "korthikanti2022", "megatron_bridge", "llm_foundry_mpt")
GAP = 0.01
Row = dict[str, Any]


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("part", choices=("published", "brute"))
    parser.add_argument("--table", choices=TABLES, help="only this one")
    parser.add_argument("--rows", default=":", help="of the table, FROM:TO (default: all)")
    parser.add_argument(
        "--instances", type=int, default=1000, help="of random small questions (default: 1000)"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the first of them (default: 0)")
    args = parser.parse_args()
    from surroundings import surroundings, write_results

    known = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    result = surroundings() | {"published": known.get("published", {}), "brute": known.get("brute", {})}
    if args.part == "published":
        for table in TABLES if args.table is None else (args.table,):
            result["published"].setdefault(table, {}).update(published(table, args.rows))
    else:
        result["brute"][str(args.seed)] = brute(args.seed, args.instances)
    write_results(RESULTS, result)
    RESULTS.with_suffix(".md").write_text(summary(result), encoding="utf-8")
    return 0


# --- against experts


def published(table: str, rows: str) -> dict[str, Row]:
    """By line of the table, what came of its row."""
    first, _, last = rows.partition(":")
    runs = [run for run in read_runs(PUBLISHED) if run.table == table]
    found: dict[str, Row] = {}
    workloads = Workloads()
    for run in runs[int(first or 0) : int(last) if last else None]:
        row = {name: run.row[name] for name in ("model", "gpu", "gpus", "global_batch", "seq_len")}
        try:
            row |= compared(run, workloads)
        except (AutoplanError, Left) as error:
            row["left_out"] = str(error)
        found[str(run.line)] = row
        print(
            table,
            run.line,
            row["model"],
            row["gpus"],
            row.get("left_out") or f"gain {row['gain']:+.1%}",
            flush=True,
        )
    return found


class Left(Exception):
    """Why a row cannot be compared."""


class Workloads:
    """Traces by model and length, and searches by question, each done once."""

    def __init__(self) -> None:
        self._graphs: dict[Any, Any] = {}
        self._found: dict[Any, Any] = {}

    def search(
        self,
        run: Run,
        cluster: Cluster,
        job: Job,
        pin: dict[str, Any],
        forbid: tuple[tuple[str, Any], ...] = (),
    ) -> Any:
        from autoplan.search import search

        key = (run.row["model"], *_size(run), cluster.name, cluster.world_size, job, tuple(pin.items()))
        key = (*key, cluster.device.usable_bytes, forbid)
        if key not in self._found:
            self._found[key] = search(
                self._graphs_of(run, job), job, cluster, pin=pin, forbid=forbid, gap=GAP, top=1, cures=False
            )
        return self._found[key]

    def _graphs_of(self, run: Run, job: Job) -> Any:
        from autoplan.search.graphs import Graphs

        key = (*_size(run), job.tokens_per_sample, run.row["vocab"], run.row["model"])
        if key not in self._graphs:
            self._graphs = {key: Graphs(_tracer(run, job))}  # of one model at a time, as rows come
        return self._graphs[key]


def compared(run: Run, workloads: Workloads) -> Row:
    """Our plan for the row's question and the row's own, both priced."""
    cluster, job = question(run)
    pin = pins(run.row)
    started = time.monotonic()
    ours = workloads.search(run, cluster, job, {})
    seconds = time.monotonic() - started
    if ours.estimate is None:
        raise Left(f"by our count nothing fits: {ours.conflict}")
    roomy = with_endless_memory(cluster)
    if "recompute" not in pin:
        pin |= {"recompute": "full"} if workloads.search(run, cluster, job, pin).estimate is None else {}
    theirs = workloads.search(run, roomy, job, pin)
    if theirs.estimate is None or theirs.plan is None or ours.plan is None:
        raise Left(f"the published configuration has no plan: {theirs.conflict}")
    limit = ours.estimate.memory_limit_bytes
    return {
        "pin": pin,
        "ours": short(ours.plan),
        "published_s": theirs.estimate.step_time_s,
        "ours_s": ours.estimate.step_time_s,
        "measured_s": run.step_s,
        "gain": theirs.estimate.step_time_s / ours.estimate.step_time_s - 1,
        "published_fits": theirs.estimate.peak_memory_bytes <= limit,
        "gap": ours.gap,
        "search_s": seconds,
    }


def question(run: Run) -> tuple[Cluster, Job]:
    """What the row's authors had to plan for. Raises Left."""
    row = run.row
    if row.get("task", "pretrain") not in ("", "pretrain"):
        raise Left(f"task {row['task']}: a part of the model trains, or samples are packed")
    if int(row["experts"] or 0) > 1 or "nemotron-h" in row["model"] or "nemotron3" in row["model"]:
        raise Left("a mixture or hybrid model, of which the table does not give every dimension")
    cluster = Cluster.of(row_cluster_name(Fields(row)), gpus=int(row["gpus"]))
    return cluster, Job(global_batch=int(row["global_batch"]), tokens_per_sample=int(row["seq_len"]))


def with_endless_memory(cluster: Cluster) -> Cluster:
    """The same, where everything fits."""
    from msgspec.structs import replace

    endless = int(1e16)
    return replace(cluster, device=replace(cluster.device, memory_bytes=endless, usable_bytes=endless))


def pins(row: dict[str, str]) -> dict[str, Any]:
    """The published configuration as decisions of a plan; what the row leaves blank is left out."""
    tp, pp, cp = (int(row[name] or 1) for name in ("tp", "pp", "cp"))
    data = int(row["gpus"]) // (tp * pp * cp)
    zero = {"": None, "fsdp": 3}.get(row["zero_stage"], row["zero_stage"])
    zero = int(str(zero).strip("fsdp()")) if zero is not None else None
    pin: dict[str, Any] = {"tp": tp, "pp": pp, "cp": cp}
    if data == 1 and cp == 1:
        zero = 0
    if zero == 0:
        pin |= {"dp": data, "fsdp": 1, "zero": 0}
    elif zero is not None:
        pin |= {"dp": 1, "fsdp": data, "zero": zero}
    if row["micro_batch"]:
        pin["micro_batch"] = int(row["micro_batch"])
    vpp = int(row["vpp"] or 1)
    if pp > 1:
        pin |= {"schedule": "interleaved", "vpp": vpp} if vpp > 1 else {"schedule": "1f1b"}
    if row["recompute"]:
        pin["recompute"] = "full" if row["recompute"] == "full" else "none"
    if tp > 1 and row["sp"]:
        pin["boundary"] = "S(1)" if row["sp"] == "1" else "R"
    return pin


def _size(run: Run) -> tuple[str, ...]:
    return tuple(run.row[name] for name in ("layers", "hidden", "ffn_hidden", "heads", "kv_heads", "vocab"))


def decoder(run: Run) -> DecoderConfig:
    """The row's model."""
    row = run.row
    heads, hidden = int(row["heads"]), int(row["hidden"])
    gated = row["gated_mlp"] == "1"
    return DecoderConfig(
        "rotary" if gated else "gpt",
        int(row["vocab"]), hidden, int(row["layers"]), heads, int(row["kv_heads"] or heads) if gated else heads,
        int(row["head_dim"] or hidden // heads), int(row["ffn_hidden"] or 4 * hidden), int(row["seq_len"]),
        "a published run", tied=not gated,
    )  # fmt: skip


def _tracer(run: Run, job: Job) -> Any:
    """From a micro-batch size to the row's model, traced."""
    import torch

    from autoplan.graph.sources.builtin import build_decoder
    from autoplan.graph.trace import trace

    row, tokens, size = run.row, job.tokens_per_sample, decoder(run)

    def graph_at(samples: int) -> Any:
        with torch.device("meta"):
            model = build_decoder(size)
            ids = torch.empty((samples, tokens), dtype=torch.long)
        return trace(model, {"input_ids": ids, "labels": ids}, None, job.precision, row["model"])

    return graph_at


def short(plan: Any) -> str:
    parts = [
        f"{name} {value}" for name in ("pp", "dp", "fsdp", "cp", "tp") if (value := getattr(plan, name)) > 1
    ]
    schedule = f"{plan.schedule} × {plan.vpp}" if plan.vpp > 1 else str(plan.schedule)
    return ", ".join(
        [*parts, f"ZeRO-{plan.zero}", f"micro-batch {plan.micro_batch}", *([schedule] if plan.pp > 1 else []),
         f"recompute {plan.recompute}"]
    )  # fmt: skip


# --- against all plans


def brute(seed: int, instances: int) -> Row:
    """``instances`` random questions, several of each random model and cluster."""
    from brute_force import best_layouts_s, compare, families, layout_questions

    from autoplan.search.layout_elimination import eliminate, price_s
    from autoplan.search.layout_ilp import solve_layouts

    outcomes, layouts, started = [], [], time.monotonic()
    for family in families(seed * 1_000_000):
        for question in layout_questions(family):
            if (best_s := best_layouts_s(question)) is not None:
                found = eliminate(question) or solve_layouts(question)
                layouts.append(abs(price_s(question, found) - best_s) <= 1e-9 + 1e-6 * best_s)
        outcomes += list(compare(family, min(10, instances - len(outcomes))))
        if len(outcomes) >= instances:
            break
    return {
        "instances": len(outcomes),
        "equal": sum(outcome.equal for outcome in outcomes),
        "infeasible": sum(outcome.best_s is None for outcome in outcomes),
        "plans_priced": sum({outcome.seed: outcome.plans for outcome in outcomes}.values()),
        "layout_questions": len(layouts),
        "layouts_equal": sum(layouts),
        "unequal": [vars_of(outcome) for outcome in outcomes if not outcome.equal],
        "seconds": time.monotonic() - started,
    }


def vars_of(outcome: Any) -> Row:
    return {name: getattr(outcome, name) for name in ("seed", "plans", "best_s", "found_s", "bound_s")}


# --- the report


def summary(result: Row) -> str:
    lines = ["# How good the plans are", "", f"{result['date']}, {result['machine']['cpu']}", ""]
    lines += [
        "## Against published configurations",
        "",
        (__doc__ or "").split("\n\n")[2].replace("\n", " "),
        "",
    ]
    lines += ["| table | rows | compared | slower than published | median gain | least | most |"]
    lines += ["|---|---|---|---|---|---|---|"]
    every: list[float] = []
    for table, rows in result["published"].items():
        gains = [row["gain"] for row in rows.values() if "gain" in row]
        every += gains
        lines.append(f"| {table} | {len(rows)} | {_gains(gains)} |")
    lines += [f"| all | {sum(map(len, result['published'].values()))} | {_gains(every)} |", ""]
    lines += ["Slower (by more than the search's own gap), and those that by our count do not fit:", ""]
    for table, rows in result["published"].items():
        for line, row in rows.items():
            if row.get("gain", 0) < -GAP:
                fits = "" if row["published_fits"] else ", which does not fit by our count"
                lines.append(f"- {table}:{line} {row['model']} on {row['gpus']}: {row['gain']:+.1%}{fits}")
    lines += ["", "Left out:", ""]
    reasons: dict[str, int] = {}
    for rows in result["published"].values():
        for row in rows.values():
            if "left_out" in row:
                reasons[row["left_out"]] = reasons.get(row["left_out"], 0) + 1
    lines += [f"- {count}: {reason}" for reason, count in sorted(reasons.items(), key=lambda item: -item[1])]
    lines += ["", "## Against all plans", ""]
    parts = list(result["brute"].values())
    if parts:
        total = {key: sum(part[key] for part in parts) for key in ("instances", "equal", "infeasible", "plans_priced",
                 "layout_questions", "layouts_equal", "seconds")}  # fmt: skip
        lines += [
            f"{total['instances']:,} random small instances, {total['plans_priced']:,} plans priced for them: the search found "
            f"the best of all (within 1e-4, and its bound is below it) in {total['equal']:,}, of which nothing fits in "
            f"{total['infeasible']:,}. Of {total['layout_questions']:,} layout questions it found the best of all "
            f"combinations in {total['layouts_equal']:,}. {total['seconds']:.0f} s."
        ]
    return "\n".join(lines) + "\n"


def _gains(gains: list[float]) -> str:
    if not gains:
        return "0 | | | |"
    slower = sum(gain < -GAP for gain in gains)
    return (
        f"{len(gains)} | {slower} | {statistics.median(gains):+.1%} | {min(gains):+.1%} | {max(gains):+.1%}"
    )


if __name__ == "__main__":
    sys.exit(main())
