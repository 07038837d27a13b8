"""One screen for the result of a search: the plan and why, its time, its memory, its proof, its rivals."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from rich import box
from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from autoplan.cost.estimate import Estimate, MemoryEstimate
from autoplan.cost.memory import HEADROOM
from autoplan.hardware import AnyCluster
from autoplan.plan import Job, Plan
from autoplan.report.layers import stage_lines
from autoplan.report.reasons import decision_reasons, percent, signed_percent
from autoplan.search.result import Candidate, SearchResult, Status
from autoplan.units import bytes_binary, count, seconds

if TYPE_CHECKING:
    from autoplan.graph.unruled import UnruledOp
    from autoplan.search.objective import Run

__all__ = ["search_report"]

_BAR = 30
_WIDTH = 96
_GLUE = "\N{NO-BREAK SPACE}"  # between a number and its unit while lines are filled
_MOST_RUNNERS_UP = 8
_MOST_UNRULED = 4


def search_report(
    result: SearchResult, job: Job, cluster: AnyCluster, ran: Run | None = None
) -> RenderableType:
    """A rich renderable of at most 100 columns. The result must hold a plan; ``ran`` is what a run under it takes."""
    if result.best is None:
        raise ValueError("an infeasible result has no plan to report; see search_conflict")
    return Group(*_sections(result, result.best, job, cluster, ran))


def _sections(
    result: SearchResult, best: Candidate, job: Job, cluster: AnyCluster, ran: Run | None
) -> Iterator[RenderableType]:
    yield _title(best.plan, job, cluster)
    yield Text()
    yield _decisions(best, result.runners_up, cluster)
    yield Text()
    yield _speed(best.estimate, "tokens" if job.tokens_per_sample else "samples")
    yield _parts(best.estimate)
    if ran is not None:
        yield _run(ran, "tokens" if job.tokens_per_sample else "samples")
    yield Text()
    yield from _memory(best.estimate)
    yield Text()
    yield from _proof(result)
    if result.runners_up:
        yield Text()
        yield _runners_up(best, result.runners_up[:_MOST_RUNNERS_UP])
    yield Text()
    yield from (Text(line) for line in stage_lines(best.plan))
    for assumption in result.assumptions:
        yield Text()
        yield Text.assemble(("assumed: ", "bold cyan"), assumption)
    if result.unruled:
        yield Text()
        yield from _unruled(result.unruled)


def _title(plan: Plan, job: Job, cluster: AnyCluster) -> Text:
    samples = f"batch {job.global_batch:,}"
    if job.tokens_per_sample:
        samples += f" × {job.tokens_per_sample:,} tokens"
    gpus = cluster.devices_text
    return Text.assemble((plan.model, "bold"), f" on {gpus}, {plan.precision.value}, {samples}")


def _decisions(best: Candidate, runners_up: Sequence[Candidate], cluster: AnyCluster) -> Table:
    table = _grid()
    table.add_column(style="bold cyan", no_wrap=True)
    table.add_column(style="bold", no_wrap=True)
    table.add_column()
    table.add_column(style="dim", no_wrap=True)
    for reason in decision_reasons(best, runners_up, cluster):
        table.add_row(reason.name, reason.value, reason.text, reason.otherwise)
    return table


def _speed(estimate: Estimate, unit: str) -> Text:
    """``unit`` is what the estimate counts as tokens: samples, when these are not sequences."""
    shown = (
        f"{count(estimate.tokens_per_s)} {unit}/s, {count(estimate.tokens_per_s_per_gpu)} per GPU; "
        f"{_mfu(estimate)}, {estimate.model_tflops_per_gpu:.3g} TFLOP/s"
    )
    return Text.assemble(("step ", "bold cyan"), (seconds(estimate.step_time_s), "bold"), f"  {shown}")


def _run(ran: Run, unit: str) -> Text:
    said = [f"{ran.days:,.3g} days"]
    said += [f"${ran.cost:,.0f}"] if ran.cost is not None else []
    said += [f"{ran.energy_kwh / 1000:,.3g} MWh"] if ran.energy_kwh is not None else []
    return Text.assemble(("run ", "bold cyan"), f"{count(ran.tokens)} {unit} in ", (", ".join(said), "bold"))


def _mfu(estimate: Estimate) -> str:
    causal, full = percent(estimate.mfu), percent(estimate.mfu_full_attention)
    return f"MFU {causal}" if causal == full else f"MFU {causal} causal, {full} full attention"


def _parts(estimate: Estimate) -> Table:
    table = _grid()
    table.add_column(no_wrap=True)
    for _ in range(2):
        table.add_column(justify="right", no_wrap=True)
    table.add_column(style="green", no_wrap=True)
    for name, part_s in sorted(estimate.parts.items(), key=lambda item: -item[1]):
        if part_s <= 0:
            continue
        share = part_s / estimate.step_time_s
        label = "  " + name.replace("_comm", " communication")
        table.add_row(label, seconds(part_s), percent(share), "█" * round(share * _BAR))
    return table


def _memory(estimate: Estimate) -> Iterator[RenderableType]:
    worst = max(range(len(estimate.stages)), key=lambda index: estimate.stages[index].filled)
    used, limit = estimate.peak_memory_bytes, estimate.memory_limit_bytes
    where = f" (stage {worst})" if len(estimate.stages) > 1 else ""
    yield Text.assemble(
        ("memory ", "bold cyan"),
        (f"{bytes_binary(used)} of {bytes_binary(limit)}", "bold" if estimate.fits else "bold red"),
        f" ({percent(used / limit)}) on the worst rank{where}; {HEADROOM:.0%} kept free",
    )
    yield _indented(_owners(estimate.stages[worst].memory))


def _owners(memory: MemoryEstimate) -> str:
    owners = {name: getattr(memory, name) for name in memory.__struct_fields__}
    shown = sorted(((size, name) for name, size in owners.items() if size > 0), reverse=True)
    kept = ", ".join(f"{name} {bytes_binary(size)}".replace(" ", _GLUE) for size, name in shown)
    return textwrap.fill(kept, _WIDTH).replace(_GLUE, " ")


def _proof(result: SearchResult) -> Iterator[RenderableType]:
    bound = f"no plan of the space is below {seconds(result.bound_s)}"
    sentence = {
        Status.OPTIMAL: f"{bound} under the cost model",
        Status.WITHIN_GAP: f"{bound}, so none is better by more than {percent(result.gap)}",
        Status.LIMIT: f"{bound}; this one may be worse than the best by up to {percent(result.gap)}",
    }[result.status]
    if result.objective == "energy":
        more = "" if result.status is Status.OPTIMAL else f" by more than {percent(result.gap)}"
        sentence = f"no plan of the space takes less energy{more} under the cost model"
    yield Text.assemble((f"{result.status.value.replace('_', ' ')}: ", "bold cyan"), sentence)
    if result.checked:
        again = f"derived again by an independent check: {', '.join(result.checked)}"
        unknown = f"; not {', '.join(result.unchecked)}" if result.unchecked else ""
        yield _indented(again + unknown)
    effort = f"{result.candidates:,} candidates, {result.pruned:,} pruned, {seconds(result.seconds)}"
    yield _indented(effort, "dim")


def _runners_up(best: Candidate, runners_up: Sequence[Candidate]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1), pad_edge=False, show_edge=False)
    both = (best, *runners_up)
    rare = {name: any(getattr(one.plan, name) > 1 for one in both) for name in ("cp", "ep")}
    names = ("pp", "dp", "fsdp", "cp", "tp", "ep", "zero")
    degrees = [name for name in names if rare.get(name, True)]
    staged = any(one.plan.pp > 1 for one in both)
    order = ("schedule",) if staged else ()
    for name in (*degrees, *order, "micro-batch", "recompute", "step", "slower", "memory"):
        table.add_column(name, justify="right", no_wrap=True)
    for candidate in (best, *runners_up):
        plan, estimate = candidate.plan, candidate.estimate
        loss = estimate.step_time_s / best.estimate.step_time_s - 1
        table.add_row(
            *(str(getattr(plan, name)) for name in degrees),
            *(_order(plan) for _ in order),
            f"{plan.micro_batch} × {plan.num_micro_batches}",
            plan.recompute,
            seconds(estimate.step_time_s),
            "" if candidate is best else signed_percent(loss),
            bytes_binary(estimate.peak_memory_bytes),
            style="bold" if candidate is best else "",
        )
    return table


def _order(plan: Plan) -> str:
    """The schedule, and how many stages a rank has if several."""
    if plan.pp == 1:
        return ""
    return str(plan.schedule) if plan.vpp == 1 else f"{plan.schedule} × {plan.vpp}"


def _unruled(ops: Sequence[UnruledOp]) -> Iterator[RenderableType]:
    """What runs whole on every tp rank for want of a rule."""
    names = dict.fromkeys(op.op for op in ops)
    said = "1 op has no rule and runs" if len(names) == 1 else f"{len(names)} ops have no rule and run"
    yield Text.assemble(("without axes: ", "bold cyan"), f"{said} whole on every tp rank; see register_axes")
    for op in ops[:_MOST_UNRULED]:
        cost = f"{count(op.flops)}FLOP, {bytes_binary(op.bytes)}" if op.flops else bytes_binary(op.bytes)
        yield _indented(f"{op.op} in {op.module_path}: {op.count} × a micro-batch, {cost}")
    if len(ops) > _MOST_UNRULED:
        yield _indented(f"… and {len(ops) - _MOST_UNRULED} more; --json lists all", "dim")


def _grid() -> Table:
    return Table.grid(padding=(0, 2, 0, 0))


def _indented(text: str, style: str = "") -> Padding:
    return Padding(Text(text, style), (0, 0, 0, 2))
