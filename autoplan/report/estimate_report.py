"""One screen for a configuration priced by hand: what it is, its step and parts, its memory by stage."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from autoplan.cost.transformer.one import HandEstimate, StageBytes
from autoplan.hardware import AnyCluster
from autoplan.units import bytes_binary, count, seconds

__all__ = ["estimate_report"]

_BAR = 30
_MOST_STAGES = 16
_SHORT = {
    "parameters": "params",
    "gradients": "grads",
    "optimizer": "optim",
    "activations": "activ",
    "workspace": "work",
}


def estimate_report(
    name: str, plan: Mapping[str, Any], estimate: HandEstimate, cluster: AnyCluster
) -> RenderableType:
    """A rich renderable of at most 100 columns."""
    return Group(*_sections(name, plan, estimate, cluster))


def _sections(
    name: str, plan: Mapping[str, Any], estimate: HandEstimate, cluster: AnyCluster
) -> Iterator[RenderableType]:
    yield Text.assemble(
        (name, "bold"),
        f" ({count(estimate.parameters)} parameters) on {cluster.devices_text}, "
        f"{plan['precision']}, batch {plan['global_batch']:,} × {plan['seq']:,} tokens",
    )
    yield Text(_degrees(plan))
    yield Text()
    yield Text.assemble(
        ("step ", "bold cyan"),
        (seconds(estimate.step_time_s), "bold"),
        f"  {count(estimate.tokens_per_s)} tokens/s, {count(estimate.tokens_per_s_per_gpu)} per GPU",
    )
    yield Text(
        f"  {estimate.model_tflops_per_gpu:.3g} TFLOP/s per GPU, MFU {estimate.mfu:.1%} with causal attention; "
        f"{estimate.model_tflops_per_gpu_full_attention:.3g}, {estimate.mfu_full_attention:.1%} with full"
    )
    yield _parts(estimate)
    yield Text()
    yield _fits(estimate)
    yield _stages(estimate.stages)


def _degrees(plan: Mapping[str, Any]) -> str:
    degrees = [f"{name} {plan[name]}" for name in ("tp", "cp", "pp", "vpp", "ep") if plan[name] > 1]
    degrees.append(f"dp {plan['dp'] * plan['fsdp']}")
    attention = "flash attention" if plan["flash_attention"] else "unfused attention"
    return (
        f"{' × '.join(degrees)}, ZeRO-{plan['zero']}, {plan['schedule']}, micro-batch {plan['micro_batch']} × "
        f"{plan['num_micro_batches']}, recompute {plan['recompute']}, {attention}, {plan['program']}"
    )


def _parts(estimate: HandEstimate) -> Table:
    table = Table.grid(padding=(0, 2, 0, 0))
    for style in ("", "", "", "green"):
        table.add_column(style=style, no_wrap=True, justify="right" if style == "" else "left")
    for name, part_s in sorted(estimate.parts.items(), key=lambda item: -item[1]):
        share = part_s / estimate.step_time_s
        if part_s > 0:
            label = name.replace("_comm", " communication")
            table.add_row(f"  {label:<22}", seconds(part_s), f"{share:.1%}", "█" * round(share * _BAR))
    return table


def _fits(estimate: HandEstimate) -> Text:
    style = "bold" if estimate.fits else "bold red"
    return Text.assemble(
        ("memory ", "bold cyan"),
        (f"fits: {'yes' if estimate.fits else 'no'}", style),
        f"  {bytes_binary(estimate.allocated_bytes)} of tensors, {bytes_binary(estimate.peak_memory_bytes)} with "
        f"context and slack, of {bytes_binary(estimate.memory_limit_bytes)}"
        + (f"\n  {estimate.reason}" if estimate.reason else ""),
    )


def _stages(stages: tuple[StageBytes, ...]) -> Table:
    owners = [name for name in stages[0].owners if any(stage.owners[name] > 0 for stage in stages)]
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1), pad_edge=False, show_edge=False)
    for name in ("stage", "layers", *owners, "total"):
        table.add_column(_SHORT.get(name, name), justify="right", no_wrap=True)
    for stage in stages[:_MOST_STAGES]:
        cells = (*(stage.owners[name] for name in owners), stage.total_bytes)
        table.add_row(str(stage.stage), f"{stage.layers:g}", *(f"{b / 2**30:.1f}" for b in cells))
    table.caption = "GiB" + (
        f"; {len(stages) - _MOST_STAGES} more stages in --json" if len(stages) > _MOST_STAGES else ""
    )
    return table
