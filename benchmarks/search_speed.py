"""How long and how much memory a search takes, cold and warm, by model, nodes and depth; write what came out.

    python benchmarks/search_speed.py [--only NAME] [--repeats N]

Cold is the whole of a fresh process: imports, the model on the meta device, its traces, the search. Warm is the
same search asked again in that process, which keeps traces and layouts (``search.graphs.Graphs``). A case with a
limit stops there if its plan is not proven by then (``status`` says so). Figures are medians over processes; memory
is the peak of a process. Wall time depends on what else the machine does (its load is recorded); CPU time hardly
does.
"""

from __future__ import annotations

import argparse
import json
import math
import resource
import statistics
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results" / "search_speed.json"
CLUSTER = "h100-sxm"
TARGETS = {
    "llama3-405b, 2048 nodes": {"cold_s": 10.0, "warm_s": 1.0, "peak_bytes": 1.5e9, "gap": 0.01},
    "deepseek-v3, 256 nodes": {"cold_s": 20.0, "gap": 0.01},
}
GROWTH_NODES = (1, 8, 64, 512, 2048)
DEPTHS = (8, 32, 126)


def cases() -> dict[str, dict[str, Any]]:
    """What is asked: the model, its layers if not its own, nodes of eight, the batch, and seconds to stop after."""
    asked = {
        "llama3-405b, 2048 nodes": {"model": "llama3-405b", "nodes": 2048, "batch": 8192},
        "deepseek-v3, 256 nodes": {"model": "deepseek-v3", "nodes": 256, "batch": 8192, "limit_s": 60.0},
        "llama3-70b, 16 nodes": {"model": "llama3-70b", "nodes": 16, "batch": 1024},
    }
    for nodes in GROWTH_NODES:
        asked[f"llama3-8b, {nodes} nodes"] = {"model": "llama3-8b", "nodes": nodes, "batch": 8 * nodes * 8}
    for layers in DEPTHS:
        name = f"llama3-405b of {layers} layers, 64 nodes"
        asked[name] = {"model": "llama3-405b", "layers": layers, "nodes": 64, "batch": 1024}
    return asked


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--only", default="", help="cases whose name holds this text")
    parser.add_argument("--repeats", type=int, default=3, help="processes for each case (default: 3)")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one is not None:
        print(json.dumps(measure(json.loads(args.one))))
        return
    from surroundings import surroundings, write_results

    about = surroundings()
    measured = {}
    for name, asked in cases().items():
        if args.only in name:
            measured[name] = asked | summary([in_a_process(asked) for _ in range(args.repeats)])
            print(f"{name}: {json.dumps({k: v for k, v in measured[name].items() if k not in asked})}")
    if not args.only:
        write_results(RESULTS, about | {"targets": TARGETS, "growth": growth(measured), "cases": measured})


def in_a_process(asked: dict[str, Any]) -> dict[str, Any]:
    started = time.monotonic()
    done = subprocess.run(
        [sys.executable, __file__, "--one", json.dumps(asked)], capture_output=True, text=True, check=True
    )
    return {"process_s": time.monotonic() - started} | json.loads(done.stdout.splitlines()[-1])


def measure(asked: dict[str, Any]) -> dict[str, Any]:
    """One process: the first search after ``process`` began, and the same again."""
    import torch

    from autoplan.graph.trace import trace
    from autoplan.hardware import Cluster
    from autoplan.plan import Job
    from autoplan.search import search
    from autoplan.search.graphs import Graphs

    cluster = Cluster.of(CLUSTER, nodes=asked["nodes"])
    build, example, tokens = described(asked)
    with torch.device("meta"):
        model = build()
    job = Job(global_batch=asked["batch"], tokens_per_sample=tokens)
    graphs = Graphs(lambda samples: trace(model, example(samples), None, job.precision, asked["model"]))
    figures: dict[str, Any] = {}
    for name in ("search", "warm"):
        started = time.monotonic()
        result = search(graphs, job, cluster, time_limit_s=asked.get("limit_s"))
        figures[f"{name}_s"] = time.monotonic() - started
    assert result.plan is not None and result.estimate is not None
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return figures | {
        "cpu_s": time.process_time(),
        "peak_bytes": usage.ru_maxrss * 1024,
        "gap": result.gap,
        "status": result.status.value,
        "candidates": result.candidates,
        "step_s": result.estimate.step_time_s,
    }


def described(asked: dict[str, Any]) -> tuple[Any, Any, int]:
    """How to build the model, an example batch of so many samples, and tokens per sample."""
    import torch

    tokens = 8192
    if asked["model"] == "deepseek-v3":
        from zoo.mixtures import MIXTURES

        tokens = 4096
        build = next(entry for entry in MIXTURES if entry.name == "deepseek-v3").full().build

        def example(samples: int) -> Any:
            ids = torch.empty((samples, tokens), dtype=torch.long, device="meta")
            return {"input_ids": ids, "labels": ids}

        return build, example, tokens
    from autoplan.graph.sources.builtin import build_decoder
    from autoplan.graph.sources.load import load_source
    from autoplan.graph.sources.sizes import SIZES

    size = SIZES[asked["model"]]
    size = replace(size, layers=asked.get("layers", size.layers))
    return lambda: build_decoder(size), load_source(asked["model"], tokens).example_batch, tokens


def summary(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Medians; ``cold_s`` is a process without its warm search."""
    cold = statistics.median(run["process_s"] - run["warm_s"] for run in runs)
    figures = {
        name: statistics.median(run[name] for run in runs)
        for name in ("search_s", "warm_s", "cpu_s", "peak_bytes", "gap", "step_s")
    }
    return {"cold_s": cold, **figures, "status": runs[0]["status"], "candidates": runs[0]["candidates"]}


def growth(measured: dict[str, Any]) -> float:
    """The power of the number of GPUs that the time of the first search grows with, from end to end."""
    first, last = (measured[f"llama3-8b, {nodes} nodes"] for nodes in (GROWTH_NODES[0], GROWTH_NODES[-1]))
    return math.log(last["cold_s"] / first["cold_s"]) / math.log(last["nodes"] / first["nodes"])


if __name__ == "__main__":
    main()
