"""The published runs as evidence: which rows count, which are fitted and which are held back."""

from __future__ import annotations

import csv
import math
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path

__all__ = ["PUBLISHED", "Run", "read_runs"]

PUBLISHED = Path(__file__).resolve().parent / "published"

NO_TIME = ("memory", "OOM", "no time", "not checkable", "derived; low", "time derived", "outlier", "tp*pp")
"""Beginnings of ``check`` that say a row's time is no evidence: derived, missing or at odds with itself."""

UNFITTED = {
    "megatron_lm_golden",
    "maxtext",
    "misc_frameworks",
    "sc21_zero3",
    "dgxc_benchmarking_h100_hybrid",
    "megatron_bridge_b200_hybrid",
    "megatron_bridge_b300_hybrid",
    "megatron_bridge_gb200_hybrid",
    "megatron_bridge_gb300_hybrid",
}
"""Studies that nothing is fitted on: tiny tests, few rows, noise of 40 %, models that are no plain transformers."""


@dataclass(frozen=True, slots=True)
class Run:
    """One row.

    Args:
        table: the file, without its ending; ``part`` of it where one file holds several studies.
        step_s: measured, where it is evidence.
        mem_gb: measured, where it is evidence.
        out_of_memory: the run failed so.
        held: not fitted on: every second model of a study, those with most rows first.
    """

    table: str
    part: str
    line: int
    row: dict[str, str]
    step_s: float | None
    mem_gb: float | None
    out_of_memory: bool
    held: bool

    @property
    def evidence(self) -> bool:
        """Whether figures may be fitted on it at all: not where the shape of attention's products is unknown, nor
        where DeepSpeed's ZeRO-3 waits for its own bookkeeping, which the model does not price."""
        deepspeed = "DeepSpeed" in self.row.get("framework", "") and self.row.get("zero_stage") == "3"
        usual = self.part not in UNFITTED and "untuned" not in self.row.get("notes", "")
        return usual and bool(self.row.get("heads")) and not deepspeed

    @property
    def group(self) -> tuple[str, ...]:
        """Runs that a planner would choose among: the same model, GPUs, batch and length."""
        names = ("model", "gpu", "gpus", "precision", "seq_len", "global_batch", "task")
        return (self.table, *(self.row.get(name, "") for name in names))


def read_runs(folder: Path = PUBLISHED) -> list[Run]:
    """Every row of every table that is no recollection."""
    runs = [
        _run(path, line, row)
        for path in sorted(folder.glob("*.csv"))
        for line, row in enumerate(csv.DictReader(path.open(encoding="utf-8", newline="")), start=2)
        if row.get("from_memory", "0") != "1"
    ]
    models: dict[str, Counter[str]] = {}
    for run in runs:
        models.setdefault(run.part, Counter())[run.row["model"]] += 1
    fitted = {
        (part, model)
        for part, rows in models.items()
        for model in sorted(rows, key=lambda name: (-rows[name], name))[::2]
    }
    return [
        replace(
            run,
            held=not run.evidence or (run.part, run.row["model"]) not in fitted,
        )
        for run in runs
    ]


def _run(path: Path, line: int, row: dict[str, str]) -> Run:
    check = row.get("check", "")
    conflicting = "CHECK:" in row.get("notes", "") and "TFLOP/s" not in check
    step_s = _number(row.get("step_time_s", ""))
    part = _part(path.name, row)
    uncounted = check.startswith("not checkable") and part.endswith("_hybrid")  # only their FLOPs are unknown
    if (check.startswith(NO_TIME) and not uncounted) or conflicting:
        step_s = None
    measured = "analytic" not in row.get("notes", "") and row.get("gpus", "") != ""
    return Run(
        table=path.stem,
        part=part,
        line=line,
        row=row,
        step_s=step_s,
        mem_gb=_number(row.get("mem_gb", "")) if measured else None,
        out_of_memory=check.startswith("OOM") or row.get("notes", "").startswith("OOM"),
        held=False,
    )


def _part(name: str, row: dict[str, str]) -> str:
    """``megatron_lm_readme`` holds four studies; JAX and NeMo share one table."""
    model, check = row.get("model", ""), row.get("check", "")
    if name == "megatron_lm_readme.csv":
        if check.startswith("params and gbs"):
            return "sc21_weak_scaling"
        if "ZeRO-3" in row.get("framework", ""):
            return "sc21_zero3"
        return f"megatron_lm_readme_{'a100' if 'A100' in row['gpu'] else 'v100' if 'V100' in row['gpu'] else 'h100'}"
    if name in ("dgxc_benchmarking.csv", "megatron_bridge.csv"):
        jax = "JAX" in row.get("framework", "")
        hybrid = "nemotron-h" in model or "nemotron3" in model
        kind = "_hybrid" if hybrid else "_jax" if jax else ""
        return f"{name.removesuffix('.csv')}_{row['gpu'].split('-')[0].lower()}{kind}"
    if name == "llm_foundry_mpt.csv":
        return f"llm_foundry_mpt_{row['gpu'].split('-')[0].lower()}"
    return name.removesuffix(".csv")


def _number(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) and value > 0 else None
