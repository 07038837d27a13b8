"""A measurement as text: what was measured beside what was predicted."""

from __future__ import annotations

from collections.abc import Sequence

from autoplan.hardware.measurement import Measurement, StageParts
from autoplan.units import bytes_binary, seconds

__all__ = ["measurement_text"]


def measurement_text(measured: Measurement) -> str:
    """Tables of the step's parts on its busiest stage, of units, of collectives, and of memory."""
    m = measured
    head = (
        f"{m.model} on {m.world_size} × {m.device}: {m.steps} steps beside the prediction of {m.profile}\n"
        f"step {seconds(m.step_s)} (± {m.step_spread / 2:.0%}), predicted {seconds(m.predicted_step_s)}: "
        f"{_ratio(m.step_s, m.predicted_step_s)}"
    )
    busiest = max(m.stages, key=_work)
    where = f" on pipeline rank {busiest.pp_rank}" if len(m.stages) > 1 else ""
    parts = [
        (p.name, seconds(p.measured_s), seconds(p.predicted_s), _ratio(p.measured_s, p.predicted_s))
        for p in busiest.parts
        if p.measured_s or p.predicted_s
    ]
    text = [
        head,
        _table((f"seconds a step{where}", "measured", "predicted", "ratio"), parts),
    ]
    computed = [
        (
            f"{c.name} {c.phase}",
            f"{c.count:g}",
            seconds(c.measured_s),
            seconds(total := sum(c.predicted_s.values())),
            _ratio(c.measured_s, total),
        )
        for c in m.computed
    ]
    if computed:
        text.append(
            _table(("one pass of a micro-batch", "a step", "measured", "predicted", "ratio"), computed)
        )
    sent = [
        (
            f"{s.axis} {s.kind} of {s.size}, {bytes_binary(s.nbytes)}",
            f"{s.count:g}",
            seconds(s.measured_s),
            seconds(s.predicted_s),
            _ratio(s.measured_s, s.predicted_s),
        )
        for s in m.sent
    ]
    if sent:
        text.append(_table(("one collective", "a step", "measured", "predicted", "ratio"), sent))
    memory = [
        (
            f"pipeline rank {s.pp_rank}",
            bytes_binary(s.memory_bytes),
            bytes_binary(s.predicted_memory_bytes),
            _ratio(s.memory_bytes, s.predicted_memory_bytes),
        )
        for s in m.stages
    ]
    text.append(_table(("most memory of tensors", "measured", "predicted", "ratio"), memory))
    return "\n\n".join(text)


def _work(stage: StageParts) -> float:
    return sum(p.measured_s for p in stage.parts if p.name not in ("waiting", "other"))


def _ratio(measured: float, predicted: float) -> str:
    return f"× {measured / predicted:.2f}" if predicted > 0 else "–"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    widths = [max(len(row[i]) for row in (head, *rows)) for i in range(len(head))]
    lines = [
        "   ".join(
            cell.ljust(w) if i == 0 else cell.rjust(w)
            for i, (cell, w) in enumerate(zip(row, widths, strict=True))
        )
        for row in (head, *rows)
    ]
    lines.insert(1, "─" * len(lines[0]))
    return "\n".join(line.rstrip() for line in lines)
