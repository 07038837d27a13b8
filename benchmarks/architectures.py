"""Trace every architecture of the zoo at its realistic size; write what came out.

    python benchmarks/architectures.py                    all of them
    python benchmarks/architectures.py llama-3-8b gpt2    these, printed, nothing written

For each: whether it is captured, its distinct blocks and their copies, ops, parameters (which must be
the module's), and seconds, at the realistic size on the meta device; and at the tiny size, with
weights, whether the graph's FLOPs are those that ``torch.utils.flop_counter`` counts when the model runs.
"""

from __future__ import annotations

import argparse
import itertools
import json
import logging
import multiprocessing
import os
import platform
import resource
import sys
import time
import traceback
import warnings
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, field
from datetime import date
from pathlib import Path
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count
from zoo.architecture import Architecture, Example
from zoo.registry import ARCHITECTURES

from autoplan.errors import AutoplanError
from autoplan.graph.ir import ModelGraph
from autoplan.graph.trace import trace
from autoplan.precision import Precision

RESULTS = Path(__file__).parent / "results"
_UNREAD = "the model computes what nothing reads, which the graph leaves out"
_OWN_INPUT = "the model asks for the gradient of its own input, which nothing reads"
FLOPS_DIFFER = (
    {"longcat-flash": "rows that the router sends to experts that do nothing count like others"}
    | dict.fromkeys(
        ("minimax-text-01", "kimi-linear-48b-a3b", "olmo-hybrid-7b", "qwen3-next-80b-a3b", "qwen3.5-9b"),
        f"{_UNREAD}: its last state",
    )
    | dict.fromkeys(("layoutlm-large", "fnet-large"), f"{_UNREAD}: a pooled output")
    | dict.fromkeys(("llava-1.5-7b", "paligemma-3b"), f"{_UNREAD}: a last layer or head of its vision tower")
    | dict.fromkeys(
        ("wav2vec2-classifier", "hubert-large", "wavlm-base", "unispeech-large", "sew-base"), _OWN_INPUT
    )
)
"""Architectures whose graph has other FLOPs than torch counts in a run, and why."""


@dataclass(slots=True)
class Row:
    """One line of the table. FLOPs are of the tiny model, forward and backward."""

    name: str
    family: str
    captured: bool = False
    reason: str = ""
    blocks: dict[str, int] = field(default_factory=dict)
    ops: int = 0
    parameters: int = 0
    module_parameters: int = 0
    forward_flops: int = 0
    tiny_flops: tuple[int, int] = (0, 0)
    torch_flops: tuple[int, int] = (0, 0)
    build_s: float = 0.0
    trace_s: float = 0.0
    trace_cpu_s: float = 0.0

    @property
    def flops_agree(self) -> bool:
        return self.tiny_flops == self.torch_flops != (0, 0)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help="architectures; all when none is given")
    parser.add_argument("--debug", action="store_true", help="print the traceback of what fails")
    parser.add_argument("--jobs", type=int, default=1, help="architectures at once (default: 1)")
    args = parser.parse_args()
    known = {architecture.name: architecture for architecture in ARCHITECTURES}
    if unknown := [name for name in args.names if name not in known]:
        print(f"architectures: error: no {', '.join(unknown)}; there are {', '.join(known)}", file=sys.stderr)
        return 2
    rows = []
    with ProcessPoolExecutor(args.jobs, multiprocessing.get_context("spawn")) as pool:
        for row in pool.map(measure_named, args.names or known, itertools.repeat(args.debug)):
            rows.append(row)
            print(line(row), flush=True)
    print(summary(rows))
    if not args.names:
        write(rows)
    return 0


def measure_named(name: str, debug: bool) -> Row:
    """``measure``, in a process of its own with one thread."""
    torch.set_num_threads(1)
    logging.getLogger("torch._subclasses.fake_tensor").disabled = True  # it prints what we tell in one line
    warnings.filterwarnings("ignore", category=FutureWarning)
    return measure(next(known for known in ARCHITECTURES if known.name == name), debug)


def measure(architecture: Architecture, debug: bool = False) -> Row:
    """Trace at both sizes; what fails is told in the row."""
    row = Row(architecture.name, architecture.family)
    try:
        example = architecture.full()
        graph = _traced(example, row)
        _describe(graph, row)
        _compare_flops(architecture.tiny(), row)
        row.captured = True
    except AutoplanError as error:
        row.reason = str(error)
        if debug:
            traceback.print_exc()
    except Exception as error:  # a traceback for the user is a failure of ours, so it is told as one
        row.reason = f"UNEXPECTED {type(error).__name__}: {' '.join(str(error).split())[:300]}"
        if debug:
            traceback.print_exc()
    return row


def _traced(example: Example, row: Row) -> ModelGraph:
    start = time.perf_counter()
    with torch.device("meta"):
        model = example.build()
        batch = example.batch(example.samples)
    row.module_parameters = sum(p.numel() for p in model.parameters())
    built, used = time.perf_counter(), time.process_time()
    graph = trace(model, batch, example.loss, Precision(example.precision))
    row.build_s, row.trace_s = built - start, time.perf_counter() - built
    row.trace_cpu_s = time.process_time() - used
    return graph


def _describe(graph: ModelGraph, row: Row) -> None:
    row.blocks = dict(Counter(unit.kind for unit in graph.units))
    row.ops = sum(len(block.ops) for block in graph.kinds.values()) + len(graph.free.ops)
    row.parameters = graph.parameter_count
    row.forward_flops = total_flops(graph)[0]
    if row.parameters != row.module_parameters:
        raise RuntimeError(f"{row.parameters} parameters in the graph, {row.module_parameters} in the module")


def total_flops(graph: ModelGraph) -> tuple[int, int]:
    """FLOPs of one micro-batch, forward and backward."""
    blocks = [graph.kinds[unit.kind] for unit in graph.units] + [graph.free]
    return sum(b.flops_forward for b in blocks), sum(b.flops_backward for b in blocks)


def _compare_flops(example: Example, row: Row) -> None:
    torch.manual_seed(0)
    model, batch = example.build(), example.batch(example.samples)
    row.tiny_flops = total_flops(trace(model, batch, example.loss, device="cpu"))
    row.torch_flops = counted_flops(model, batch, example)


def counted_flops(model: torch.nn.Module, batch: Any, example: Example) -> tuple[int, int]:
    """What torch counts, forward and backward, when the model really runs.

    Torch lacks formulas for the CPU's own attention kernels, which get those of the other flash kernels, and
    for products grouped by expert: rows by experts, (P, D)·(E, D, F), or contracted over rows, (D, P)·(P, F).
    """
    aten = torch.ops.aten

    def forward_formula(
        query: torch.Size, key: torch.Size, value: torch.Size, *_: object, **__: object
    ) -> int:
        return sdpa_flop_count(query, key, value)

    def backward_formula(
        grad: torch.Size, query: torch.Size, key: torch.Size, value: torch.Size, *_: object, **__: object
    ) -> int:
        return sdpa_backward_flop_count(grad, query, key, value)

    def grouped_formula(a: torch.Size, b: torch.Size, *_: object, out_shape: torch.Size, **__: object) -> int:
        return 2 * a[0] * a[1] * b[-1] if len(b) == 2 else 2 * out_shape.numel() * a[-1]

    formulas = {
        aten._grouped_mm: grouped_formula,
        aten._scaled_dot_product_flash_attention_for_cpu: forward_formula,
        aten._scaled_dot_product_flash_attention_for_cpu_backward: backward_formula,
    }
    with FlopCounterMode(display=False, custom_mapping=formulas) as counter:
        if isinstance(batch, dict):
            output = model(**batch)
        else:
            output = model(*batch) if isinstance(batch, tuple) else model(batch)
        loss = example.loss(output, batch) if example.loss is not None else _own_loss(output)
        forward = counter.get_total_flops()
        loss.backward()
    return forward, counter.get_total_flops() - forward


def _own_loss(output: Any) -> torch.Tensor:
    """The loss that a model returns: alone, in a dict, or as an attribute of its output."""
    if isinstance(output, torch.Tensor):
        return output
    return output["loss"] if isinstance(output, dict) else output.loss


def _why(row: Row) -> str:
    return FLOPS_DIFFER.get(row.name, "no reason known")


def line(row: Row) -> str:
    if not row.captured:
        return f"{row.name:28} FAILED  {row.reason}"
    parity = "equal" if row.flops_agree else f"{row.tiny_flops} against {row.torch_flops}: {_why(row)}"
    blocks = " + ".join(f"{count}×{kind}" for kind, count in row.blocks.items() if "_" in kind)
    return (
        f"{row.name:28} {row.parameters / 1e9:8.2f} B  {row.ops:5} ops  {row.trace_s:6.2f} s ({row.trace_cpu_s:.2f} of CPU)  "
        f"FLOPs {parity}  {blocks}"
    )


def summary(rows: list[Row]) -> str:
    captured = [row for row in rows if row.captured]
    agree = [row for row in captured if row.flops_agree]
    return f"{len(captured)} of {len(rows)} captured; FLOPs equal to torch's in {len(agree)}"


def write(rows: list[Row]) -> None:
    record = {
        "date": date.today().isoformat(),
        "machine": {
            "processor": platform.processor() or platform.machine(),
            "cores": os.cpu_count(),
            "threads": torch.get_num_threads(),
        },
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "transformers": _version(),
        },
        "peak_rss_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "summary": summary(rows),
        "architectures": [asdict(row) | {"flops_agree": row.flops_agree} for row in rows],
    }
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "architectures.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    (RESULTS / "architectures.md").write_text(_markdown(rows, record["date"]), encoding="utf-8")
    print(f"wrote {RESULTS}/architectures.json and .md")


def _version() -> str:
    import transformers

    return transformers.__version__


def _markdown(rows: list[Row], when: str) -> str:
    text = [
        "# Architectures traced",
        "",
        f"{summary(rows)}. {when}, torch {torch.__version__}, transformers {_version()}, {os.cpu_count()} cores.",
        "",
        "Blocks are distinct repeated blocks × copies; FLOPs are compared at the tiny size, forward and backward.",
        "",
        "| model | family | parameters | blocks × copies | ops | FLOPs forward | FLOPs as torch | seconds | of CPU |",
        "|---|---|--:|---|--:|--:|---|--:|--:|",
    ]
    for row in rows:
        if row.captured:
            blocks = ", ".join(f"{kind} × {n}" for kind, n in row.blocks.items() if "_" in kind)
            text.append(
                f"| {row.name} | {row.family} | {row.parameters / 1e9:.2f} B | {blocks} | {row.ops} | "
                f"{row.forward_flops:.2e} | {'equal' if row.flops_agree else f'differ: {_why(row)}'} | {row.trace_s:.1f} | {row.trace_cpu_s:.1f} |"
            )
        else:
            text.append(f"| {row.name} | {row.family} | | not captured: {row.reason} | | | | | |")
    return "\n".join(text) + "\n"


if __name__ == "__main__":
    sys.exit(main())
