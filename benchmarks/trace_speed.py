"""How long and how much memory it takes to capture a model, by depth, beside torch.export; write what came out.

    python benchmarks/trace_speed.py

Every case runs in a process of its own, after all imports (whose objects the garbage collector is told to pass
over: going through them takes 0.1 s, when and if it is their turn), on one thread: the model is built on the meta
device and captured (``autoplan.graph.trace``) in bf16 on one sample. ``export`` is what
``torch.export.export`` alone takes on the same model, whole and under fake tensors, and gives less: no
FLOPs, bytes or kept tensors. Rounds are interleaved; figures are medians over them. Wall time depends on what
else the machine does (its load is recorded); CPU time hardly does.
"""

from __future__ import annotations

import argparse
import gc
import json
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from surroundings import surroundings, write_results

Build = Callable[[], Any]
RESULTS = Path(__file__).parent / "results" / "trace_speed.json"
DEPTHS = (8, 32, 126)
EXPORT_DEPTHS = (8, 32)
SPREAD_TARGET = 1.3
"""Largest over smallest of the depths, in wall time and in memory."""
LIMITS = {"llama-405b at 126 layers": (4.0, 1.5e9), "deepseek-v3": (8.0, None)}
"""Seconds, and bytes at the peak, that these may take."""


def llama(layers: int) -> tuple[Build, int]:
    """Llama 3 405B with so many layers, and its tokens per sample."""
    from autoplan.graph.sources.builtin import build_decoder
    from autoplan.graph.sources.sizes import SIZES

    return lambda: build_decoder(replace(SIZES["llama3-405b"], layers=layers)), 8192


def built_in(name: str) -> tuple[Build, int]:
    from autoplan.graph.sources.builtin import build_decoder
    from autoplan.graph.sources.sizes import SIZES

    return lambda: build_decoder(SIZES[name]), 8192


def hugging_face(name: str) -> tuple[Build, int]:
    """A decoder of the zoo at its published size."""
    from zoo.mixtures import MIXTURES

    example = next(entry for entry in MIXTURES if entry.name == name).full()
    return example.build, 4096


CASES: dict[str, Callable[[], tuple[Build, int]]] = {
    **{f"llama-405b at {depth} layers": (lambda depth=depth: llama(depth)) for depth in DEPTHS},
    "llama3-8b": lambda: built_in("llama3-8b"),
    "llama3-70b": lambda: built_in("llama3-70b"),
    "deepseek-v3": lambda: hugging_face("deepseek-v3"),
    **{f"export of {depth} layers": (lambda depth=depth: llama(depth)) for depth in EXPORT_DEPTHS},
}


def main() -> int:
    args = arguments()
    if args.case:
        print(json.dumps(measure(args.case)))
        return 0
    runs: dict[str, list[dict[str, float]]] = {case: [] for case in CASES}
    result = surroundings()
    for turn in range(args.rounds):
        for case in CASES:
            runs[case].append(in_a_process(case))
            last = runs[case][-1]
            print(
                f"round {turn + 1}: {case:<26} {last['wall_s']:6.2f} s  {last['peak_bytes'] / 1e9:5.2f} GB",
                flush=True,
            )
    result["rounds"] = args.rounds
    result["cases"] = {case: summary(taken) for case, taken in runs.items()}
    result["depth"] = depths(result["cases"])
    result["targets"] = targets(result)
    for case, figures in result["cases"].items():
        wall, cpu, peak = (figures[key]["median"] for key in ("wall_s", "cpu_s", "peak_bytes"))
        print(f"{case:<26} {wall:6.2f} s wall  {cpu:6.2f} s CPU  {peak / 1e9:5.2f} GB")
    print(json.dumps(result["targets"], indent=1))
    write_results(args.out, result)
    return 0


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5, help="times that each case runs (default: 5)")
    parser.add_argument("--case", choices=CASES, help="measure one case in this process and print JSON")
    parser.add_argument("--out", type=Path, default=RESULTS, help="result file (default: %(default)s)")
    return parser.parse_args()


def in_a_process(case: str) -> dict[str, float]:
    command = [sys.executable, __file__, "--case", case]
    out = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parent)
    return json.loads(out.stdout.splitlines()[-1])


def measure(case: str) -> dict[str, float]:
    """Seconds and bytes of one case, in this process."""
    import torch

    torch.set_num_threads(1)
    build, seq = CASES[case]()
    run = exported if case.startswith("export") else captured
    warm_imports()
    gc.collect()
    gc.freeze()
    before = peak_bytes()
    figures: dict[str, float] = {}
    with timed(figures, "build_s"), torch.device("meta"):
        model = build()
    with torch.device("meta"):
        batch = {name: torch.empty((1, seq), dtype=torch.int64) for name in ("input_ids", "labels")}
    with timed(figures, "capture_s"):
        run(model, batch)
    figures["wall_s"] = figures["build_s"] + figures["capture_s"]
    figures["cpu_s"] = figures.pop("build_s_cpu") + figures.pop("capture_s_cpu")
    return figures | {"imported_bytes": before, "peak_bytes": peak_bytes()}


def warm_imports() -> None:
    """Import what a first capture imports, by capturing a model of another kind."""
    import torch
    from torch import nn

    from autoplan.graph.trace import trace

    class Layer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear, self.norm = nn.Linear(4, 4), nn.LayerNorm(4)

        def forward(self, x: Any) -> Any:
            return self.linear(self.norm(x))

    trace(nn.Sequential(Layer(), Layer()), torch.empty(2, 4), lambda out, batch: out.square().mean())


def captured(model: Any, batch: dict[str, Any]) -> None:
    from autoplan.graph.trace import trace
    from autoplan.precision import Precision

    trace(model, batch, precision=Precision.BF16)


def exported(model: Any, batch: dict[str, Any]) -> None:
    """torch.export of the whole model, in bf16 under fake tensors as ``trace`` has it."""
    import torch
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode(allow_non_fake_inputs=True):
        for module in model.modules():
            for name, parameter in module._parameters.items():
                if parameter is not None:
                    empty = torch.empty(parameter.shape, dtype=torch.bfloat16, device="cpu")
                    module._parameters[name] = torch.nn.Parameter(empty)
        inputs = {name: torch.empty(t.shape, dtype=t.dtype, device="cpu") for name, t in batch.items()}
        torch.export.export(model, (), inputs, strict=False)


@contextmanager
def timed(into: dict[str, float], name: str) -> Iterator[None]:
    wall, cpu = time.perf_counter(), time.process_time()
    yield
    into[name] = time.perf_counter() - wall
    into[f"{name}_cpu"] = time.process_time() - cpu


def peak_bytes() -> int:
    """The most memory that this process has held."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def summary(taken: list[dict[str, float]]) -> dict[str, dict[str, float]]:
    return {
        key: {
            "median": statistics.median(run[key] for run in taken),
            "min": min(run[key] for run in taken),
            "max": max(run[key] for run in taken),
        }
        for key in taken[0]
    }


def depths(cases: dict[str, Any]) -> dict[str, float]:
    """The largest over the smallest median of the depths."""
    found = {}
    for key in ("wall_s", "cpu_s", "peak_bytes"):
        medians = [cases[f"llama-405b at {depth} layers"][key]["median"] for depth in DEPTHS]
        found[f"{key}_ratio"] = max(medians) / min(medians)
    return found


def targets(result: dict[str, Any]) -> dict[str, bool]:
    met = {f"{key} within {SPREAD_TARGET}": ratio <= SPREAD_TARGET for key, ratio in result["depth"].items()}
    for case, (limit_s, limit_bytes) in LIMITS.items():
        met[f"{case} in {limit_s} s"] = result["cases"][case]["wall_s"]["median"] <= limit_s
        if limit_bytes is not None:
            met[f"{case} in {limit_bytes / 1e9} GB"] = (
                result["cases"][case]["peak_bytes"]["median"] <= limit_bytes
            )
    return met


if __name__ == "__main__":
    raise SystemExit(main())
