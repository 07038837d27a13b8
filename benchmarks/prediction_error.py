"""How far predictions are from published runs: time by study, fitted and held back, choices, and memory.

    python benchmarks/prediction_error.py            report, to benchmarks/results/prediction_error.{json,md}
    python benchmarks/prediction_error.py --fit      print the figures that the shipped profiles hold
    python benchmarks/prediction_error.py --speed    also time a hundred thousand configurations of one model

Every row is priced from its own columns with the shipped profile of its GPU. Errors are
predicted / measured - 1. Tau is Kendall's, over pairs of runs of one group (the same model, GPUs, batch);
regret is what the run predicted fastest loses to the fastest of its group.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
from prediction_cross import cross_validated
from prediction_fit import KINDS, fit_kind, fitted_rows
from prediction_rows import Run, read_runs

import autoplan
from autoplan.cost.transformer.configuration import Configuration
from autoplan.cost.transformer.price import price_configurations
from autoplan.cost.transformer.price_rows import PricedRow, price_rows
from autoplan.cost.transformer.row_model import shape_of_size
from autoplan.graph.sources.sizes import SIZES
from autoplan.hardware import Cluster

MISSING = """\
How clean the held rows are: the figures of the profiles were fitted on the fitted rows alone. Constants of the
code (how host and device time combine, the ops of a mixture layer, narrow experts, older attention kernels) and
assumptions about programs were chosen while looking at all rows, held ones too, and the way to split the rows was
changed twice before this one. Errors on runs that nobody here has seen may therefore be larger. Memory of
bigscience_bloom is compared with the device's total, and that of megatron_lm_golden with the last stage's, because
the rows' notes say what was read; golden rows without a GPU count are left out.

Where the errors are largest, and what we think is missing (explanations, not measurements):

- bigscience_bloom: 10 to 20 % too slow at tp 1 and 2, as much too fast at tp 8 with one sample a micro-batch. Adding
  the host's time to the device's, as if every op waited for the one before it, explains a tenth of that. Rows of
  14,400 hidden values without a number of heads: those of that width that state it have unaligned heads, which is
  not assumed here.
- bigscience_v100: a network shared with other jobs (the source warns of 40 % either way); tp 2 took twice as long as
  tp 1 on the same GPUs.
- DeepSpeed's ZeRO-3 of 2021 (sc21_zero3, bigscience_v100): one share of the bandwidth stands for its gathering tensor
  by tensor; what it loses still rises with the ranks.
- vtrain_a100_multi, gpt-39.1b at tp 2 and 4 with pp 8 and 16: 15 to 38 % slower than runs at tp 8 of the same
  work; nothing in the columns tells them apart, and more micro-batches do not order them. They are the study's regret.
- vtrain_a100_single: errors are those of 28 shapes of a layer (hidden, tp, micro-batch), alike within 1 to 3 % for
  all depths, dp and pp. With the mean of each shape known the regret would be 0.5 %. They follow no size that we
  know: at tp 4 a layer of 2048 took 3.0 ms with one sample, 2.7 ms with two, one of 1024 3.4 and 3.3 ms; at tp 2
  3.4 and 4.5 ms against 3.3 and 3.6 ms. The host issues the same ops in all of them.
- megatron_bridge_h100, qwen3-30b-a3b: the same configuration took 28.9 s with one release and 51.3 s with another;
  the median of the held rows is that of five configurations.
- gpt-oss-120b: releases differ by half on the same configuration; attention sinks are not priced.
- deepseek-v3 on GB200, NeMo 25.04: the source calls the recipe untuned.
- Paxml and MaxText on H100: older XLA releases, and what they park on the host.
- hybrid models: the rate of their scans is one constant (SCAN_RATE) for all devices.
- recompute where it is blank: the least that fits, which is not always what ran.

Exceptions to "fits", each looked at:

- bigscience_v100, HF Trainer with ZeRO-3 at ten samples: a tenth of a gigabyte above 32 GB.
- bigscience_v100, 52B with 22 samples out of memory: said to fit with all activations on the host, as 20 did run;
  what was still on the device is not stated.
- llama3-70b nvfp4 on GB300 with tp 1, pp 1 and ZeRO-1: parameters and gradients alone are 282 GB; the columns of
  this release are at odds with its recipes (FSDP).
- gpt-30b with tp 32 out of memory: the batch is not stated.
- gpt-206b said to fit: runs with more layers on as many GPUs did.
"""

RESULTS = Path(__file__).resolve().parent / "results"
Pair = tuple[Run, PricedRow]


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--fit", action="store_true", help="fit and print the figures of every kind of cluster"
    )
    parser.add_argument("--speed", action="store_true", help="also measure configurations priced a second")
    parser.add_argument("--rows", action="store_true", help="also print every row's residual")
    args = parser.parse_args(argv)
    runs = read_runs()
    if args.fit:
        for kind in KINDS:
            figures = {name: float(f"{value:.3g}") for name, value in fit_kind(kind, runs).items()}
            print(json.dumps({"profile": kind.profile, **figures, "rows": fitted_rows(kind, runs)}))
        return 0
    began = time.perf_counter()
    priced = price_rows([run.row for run in runs])
    seconds = time.perf_counter() - began
    pairs = list(zip(runs, priced, strict=True))
    report = {
        "date": date.today().isoformat(),
        "machine": {
            "system": platform.system(),
            "python": platform.python_version(),
            "numpy": np.__version__,
            "autoplan": autoplan.__version__,
        },
        "rows": len(runs),
        "rows_per_s": round(len(runs) / seconds),
        "time": time_errors(pairs),
        "left_out": left_out_errors(runs),
        "choices": choices(pairs),
        "memory": memory_errors(pairs),
        "fits": confusion(pairs),
        "unpriced": unpriced(pairs),
    }
    if args.speed:
        report["configurations_per_s"] = speed()
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "prediction_error.json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    text = markdown(report)
    (RESULTS / "prediction_error.md").write_text(text, encoding="utf-8")
    print(text)
    if args.rows:
        for run, row in pairs:
            if run.step_s and row.step_s:
                print(f"{run.part}:{run.line} {run.row['model']} {row.step_s / run.step_s - 1:+.3f}")
    return 0


def time_errors(pairs: Sequence[Pair]) -> dict[str, dict[str, Any]]:
    """Errors of the step time by study, of the fitted and of the held rows."""
    errors: dict[tuple[str, str], list[float]] = defaultdict(list)
    for run, row in pairs:
        if run.step_s is not None and row.step_s is not None:
            error = row.step_s / run.step_s - 1
            errors[run.part, "held" if run.held else "fitted"].append(error)
            errors[run.part, "all"].append(error)
    report: dict[str, dict[str, Any]] = {}
    for (part, which), found in sorted(errors.items()):
        report.setdefault(part, {})[which] = statistics(found)
    return report


def left_out_errors(runs: Sequence[Run]) -> dict[str, dict[str, float]]:
    """Errors of the step time by study, with figures fitted without the study's table."""
    errors: dict[str, list[float]] = defaultdict(list)
    for run, step_s in cross_validated(runs):
        errors[run.part].append(step_s / (run.step_s or step_s) - 1)
    return {part: statistics(found) for part, found in sorted(errors.items())}


def statistics(errors: Sequence[float]) -> dict[str, float]:
    signed = np.asarray(errors)
    size = np.abs(signed)
    return {
        "n": len(signed),
        "median": round(float(np.median(size)), 4),
        "mean": round(float(size.mean()), 4),
        "p95": round(float(np.quantile(size, 0.95)), 4),
        "bias": round(float(signed.mean()), 4),
    }


def choices(pairs: Sequence[Pair]) -> dict[str, dict[str, float]]:
    """Kendall's tau and the regret within groups of at least three runs that differ in time."""
    groups: dict[tuple[str, ...], list[tuple[str, float, float]]] = defaultdict(list)
    for run, row in pairs:
        if run.step_s is not None and row.step_s is not None:
            groups[run.group].append((run.part, run.step_s, row.step_s))
    taus: dict[str, list[float]] = defaultdict(list)
    regrets: dict[str, list[float]] = defaultdict(list)
    for members in groups.values():
        if len(members) < 3:
            continue
        part = members[0][0]
        measured = np.array([m for _, m, _ in members])
        predicted = np.array([p for _, _, p in members])
        if len(set(predicted.round(9))) > 1:
            taus[part].append(kendall_tau(measured, predicted))
            regrets[part].append(float(measured[predicted.argmin()] / measured.min() - 1))
    return {
        part: {
            "groups": len(found),
            "tau": round(float(np.mean(found)), 3),
            "regret": round(float(np.mean(regrets[part])), 4),
        }
        for part, found in sorted(taus.items())
    }


def kendall_tau(a: np.ndarray, b: np.ndarray) -> float:
    """Kendall's tau-b (1945)."""
    above = np.triu_indices(len(a), 1)
    x, y = np.sign(a[above[0]] - a[above[1]]), np.sign(b[above[0]] - b[above[1]])
    scale = float(np.sqrt(np.count_nonzero(x) * np.count_nonzero(y)))
    return float((x * y).sum()) / scale if scale else 0.0


def memory_errors(pairs: Sequence[Pair]) -> dict[str, dict[str, float]]:
    errors: dict[str, list[float]] = defaultdict(list)
    for run, row in pairs:
        if run.mem_gb is not None and row.memory_bytes is not None:
            errors[run.part].append(row.memory_bytes / 1e9 / run.mem_gb - 1)
    return {part: statistics(found) for part, found in sorted(errors.items())}


def confusion(pairs: Sequence[Pair]) -> dict[str, Any]:
    """Whether runs that finished are said to fit, and runs out of memory not to."""
    counts = {"ran_fits": 0, "ran_does_not_fit": 0, "out_of_memory_fits": 0, "out_of_memory_does_not_fit": 0}
    wrong = []
    for run, row in pairs:
        if row.fits is None or (run.step_s is None and not run.out_of_memory):
            continue
        name = ("out_of_memory_" if run.out_of_memory else "ran_") + ("fits" if row.fits else "does_not_fit")
        counts[name] += 1
        if run.out_of_memory == row.fits:
            wrong.append(
                f"{run.table}.csv:{run.line} {run.row['model']} on {run.row['gpus']} {run.row['gpu']}"
            )
    return {**counts, "exceptions": wrong}


def unpriced(pairs: Sequence[Pair]) -> dict[str, int]:
    counts: dict[str, int] = defaultdict(int)
    for run, row in pairs:
        if row.error:
            counts[f"{run.table}: {row.error.split(';')[0]}"] += 1
    return dict(sorted(counts.items()))


def speed(count: int = 200_000) -> dict[str, float]:
    """Configurations of one model priced in a second of one core's time: step and memory."""
    draw = np.random.default_rng(0)
    tp, pp, cp = (
        2 ** draw.integers(0, 4, count),
        2 ** draw.integers(0, 5, count),
        2 ** draw.integers(0, 2, count),
    )
    dp = 1024 // (tp * pp * cp)
    configuration = Configuration(
        seq=8192,
        micro_batch=2 ** draw.integers(0, 3, count),
        micro_batches=2 ** draw.integers(3, 8, count),
        tp=tp,
        sp=tp > 1,
        pp=pp,
        vpp=np.where(pp > 1, draw.integers(1, 4, count), 1),
        cp=cp,
        ep=np.minimum(8, dp * cp),
        dp=dp,
        zero=draw.integers(0, 4, count),
        recompute=draw.integers(0, 3, count),
    )
    cluster = Cluster.of("h100-sxm", nodes=128)

    def rate(name: str) -> float:
        began = time.process_time()
        price_configurations(shape_of_size(SIZES[name]), configuration, cluster)
        return round(count / (time.process_time() - began), -3)

    return {name: max(rate(name) for _ in range(6)) for name in ("llama3-70b", "mixtral-8x7b")}


def markdown(report: dict[str, Any]) -> str:
    def percent(value: float) -> str:
        return f"{100 * value:.1f} %"

    def cells(found: dict[str, float] | None) -> str:
        if not found:
            return " | | | | "
        return (
            f"{found['n']} | {percent(found['median'])} | {percent(found['mean'])} | "
            f"{percent(found['p95'])} | {100 * found['bias']:+.1f} %"
        )

    lines = [
        f"Errors of predicted step times against published runs ({report['date']}, autoplan "
        f"{report['machine']['autoplan']}): fitted rows, and rows that nothing was fitted on.",
        "",
        "| study | n fitted | median | mean | p95 | bias | n held | median | mean | p95 | bias |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for part, found in report["time"].items():
        lines.append(f"| {part} | {cells(found.get('fitted'))} | {cells(found.get('held'))} |")
    left_out: dict[str, dict[str, float]] = report["left_out"]
    middle = float(np.median([found["median"] for found in left_out.values()]))
    lines += [
        "",
        "Each table left out in turn: priced with figures fitted on the other tables alone (and on those of its "
        f"nearest relative where no other table has its kind of cluster). Median of the medians {percent(middle)}.",
        "",
        "| study | n | median | mean | p95 | bias |",
        "|---|---|---|---|---|---|",
        *(f"| {part} | {cells(found)} |" for part, found in left_out.items()),
    ]
    lines += ["", "| study | groups | Kendall tau | regret |", "|---|---|---|---|"]
    for part, found in report["choices"].items():
        lines.append(f"| {part} | {found['groups']} | {found['tau']:.2f} | {percent(found['regret'])} |")
    lines += ["", "| memory | n | median | mean | p95 | bias |", "|---|---|---|---|---|---|"]
    lines += [f"| {part} | {cells(found)} |" for part, found in report["memory"].items()]
    fits: dict[str, Any] = report["fits"]
    lines += [
        "",
        f"Runs that finished: {fits['ran_fits']} said to fit, {fits['ran_does_not_fit']} not. Runs out of "
        f"memory: {fits['out_of_memory_does_not_fit']} said not to fit, {fits['out_of_memory_fits']} to fit.",
        *(f"- {line}" for line in fits["exceptions"]),
        "",
        MISSING,
        f"{report['rows']} rows priced, {report['rows_per_s']} a second on one core.",
    ]
    for model, rate in report.get("configurations_per_s", {}).items():
        lines.append(f"{model}: {rate:,.0f} configurations in a second of one core's time.")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    run: Callable[[], int] = main
    sys.exit(run())
