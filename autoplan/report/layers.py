"""How the units of a plan lie on its stages, in as few lines as say it."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from itertools import groupby

from autoplan.plan import Plan, StagePlan

__all__ = ["compress_names", "stage_lines"]

_MOST_LINES = 8
_MOST_GROUPS = 5


def compress_names(names: Sequence[str]) -> str:
    """Runs of consecutive numbers become ranges: ``prologue, model.layers.0-19``.

    >>> compress_names(["prologue", "layers.0", "layers.1", "layers.2", "norm"])
    'prologue, layers.0-2, norm'
    """
    runs: list[list[str]] = []
    for name in names:
        if runs and _follows(runs[-1][-1], name):
            runs[-1].append(name)
        else:
            runs.append([name])
    shown = [run[0] if len(run) == 1 else f"{run[0]}-{_number(run[-1])}" for run in runs]
    if len(shown) > _MOST_GROUPS:
        shown = [*shown[: _MOST_GROUPS - 2], "…", shown[-1]]
        return f"{', '.join(shown)} ({len(names)} units)"
    return ", ".join(shown)


def stage_lines(plan: Plan) -> list[str]:
    """One line for each stage; stages that look alike share one when there are many."""
    if plan.pp <= _MOST_LINES:
        return [_line(f"stage {index}", stage) for index, stage in enumerate(plan.stages)]
    lines = []
    for _, group in groupby(enumerate(plan.stages), key=lambda item: _shape(item[1])):
        alike = list(group)
        first, last = alike[0], alike[-1]
        if len(alike) == 1:
            lines.append(_line(f"stage {first[0]}", first[1]))
        else:
            units = [unit for _, stage in alike for unit in stage.units]
            each = f"{len(first[1].units)} units each{_recompute(first[1])}{_device(first[1])}"
            lines.append(f"stages {first[0]}-{last[0]}: {compress_names(units)}, {each}")
    if len(lines) <= _MOST_LINES:
        return lines
    hidden = len(lines) - _MOST_LINES + 1
    return [*lines[: _MOST_LINES - 2], f"… {hidden} more lines of stages", lines[-1]]


def _line(label: str, stage: StagePlan) -> str:
    return f"{label}: {compress_names(stage.units)}{_recompute(stage)}{_device(stage)}"


def _device(stage: StagePlan) -> str:
    return f" on {stage.device}" if stage.device else ""


def _recompute(stage: StagePlan) -> str:
    counts = Counter(stage.policies.values())
    said = [f"recompute {len(stage.recompute)}"] if stage.recompute else []
    said += [f"{policy} {count}" for policy, count in sorted(counts.items())]
    return f" ({', '.join(said)})" if said else ""


def _shape(stage: StagePlan) -> tuple[int, str, str]:
    return len(stage.units), _recompute(stage), stage.device


def _follows(before: str, after: str) -> bool:
    first, second = re.fullmatch(r"(.*?)(\d+)", before), re.fullmatch(r"(.*?)(\d+)", after)
    return bool(first and second and first[1] == second[1] and int(second[2]) == int(first[2]) + 1)


def _number(name: str) -> str:
    match = re.search(r"\d+$", name)
    return match[0] if match else name
