"""Memory that programs take beside what their plans predict, on real sizes without a GPU; write what came out.

    python benchmarks/memory_check.py [--only TEXT]

Each program is built and takes two steps with tensors that hold nothing (FakeTensorMode), as one rank of a process
group that pretends (torch's "fake" backend); every storage that an op makes, and FSDP resizes, is counted
(``runtime.live_bytes``). The most that lives at once in the second step stands beside the plan's figure without its
reserve (context and allocator), for the worst rank of each stage. Models are traced for the CPU's kernels, since
these are what runs here. Plans are the search's under the pins of each row, with as much memory as they need.

A row that runs replaces what the results have of it; others stay there, with the day on which they ran.
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results" / "memory_check.json"
WITHIN = 0.05


@dataclass(frozen=True)
class Row:
    """A model at so many ranks, what is pinned, and how many micro-batches a step has."""

    model: str
    seq: int
    micro_batches: int
    pin: dict[str, Any]

    @property
    def ranks(self) -> int:
        return math.prod(self.pin[axis] for axis in ("pp", "dp", "fsdp", "tp"))

    @property
    def samples(self) -> int:
        """The global batch."""
        return self.micro_batches * self.pin["micro_batch"] * self.pin["dp"] * self.pin["fsdp"]

    @property
    def name(self) -> str:
        said = self.pin | {"micro-batches": self.micro_batches}
        always = ("zero", "micro-batches")
        shown = {name: value for name, value in said.items() if value not in (1, "none") or name in always}
        return f"{self.model} on {self.ranks}: " + ", ".join(f"{k} {v}" for k, v in shown.items())


def rows() -> list[Row]:
    """What is checked: each way to share the state, tp, pp, recomputation, and a step of one micro-batch.

    Micro-batches are few, so that a row takes a minute; memory is the same from the schedule's second round on.
    """
    eight = [row for model in (("llama3-8b", 2048, 1), ("gpt2-large", 1024, 4)) for row in _on_eight(*model)]
    return [
        *eight,
        _row("llama3-8b", 8192, 2, fsdp=64, zero=3, recompute="full"),
        _row("llama3-8b", 8192, 2, fsdp=64, zero=2),
        _row("llama3-8b", 8192, 2, fsdp=8, tp=8, zero=3),
        _row("llama3-8b", 8192, 8, pp=4, fsdp=4, tp=4, zero=1),
        _row("llama3-8b", 8192, 4, pp=2, fsdp=4, dp=8, zero=2, recompute="full"),
    ]


def _on_eight(model: str, seq: int, micro: int) -> list[Row]:
    def row(micro_batches: int, **pin: Any) -> Row:
        return _row(model, seq, micro_batches, micro_batch=micro, **pin)

    return [
        row(2, dp=8),
        *(row(2, fsdp=8, zero=zero) for zero in (1, 2, 3)),
        row(2, dp=2, fsdp=4, zero=3),
        row(2, fsdp=8, zero=3, recompute="full"),
        row(1, dp=8),
        row(1, fsdp=8, zero=1),
        row(1, fsdp=8, zero=3),
        row(2, dp=2, tp=4),
        row(2, fsdp=2, tp=4, zero=3),
        row(8, pp=4, dp=2),
        row(4, pp=2, fsdp=2, tp=2, zero=2),
    ]


def _row(model: str, seq: int, micro_batches: int, **pin: Any) -> Row:
    rest = {"pp": 1, "dp": 1, "fsdp": 1, "cp": 1, "tp": 1, "micro_batch": 1, "recompute": "none"}
    return Row(model, seq, micro_batches, rest | pin)


def checked(row: Row) -> dict[str, Any]:
    """Build and run the row's program on the first rank of each stage."""
    import torch
    from fake_program import fake_program, pretending, step_bytes
    from msgspec.structs import replace

    from autoplan.cost import price
    from autoplan.graph.sources.load import load_source
    from autoplan.graph.trace import trace
    from autoplan.hardware import Cluster
    from autoplan.plan import Job
    from autoplan.search import search
    from autoplan.search.graphs import Graphs

    started = time.monotonic()
    source = load_source(row.model, row.seq)
    with torch.device("meta"):
        model = source.build()
    cluster = Cluster.of("h100-sxm", gpus=row.ranks)
    enough = 4 * 10**12
    cluster = replace(cluster, device=replace(cluster.device, memory_bytes=enough, usable_bytes=enough))
    job = Job(global_batch=row.samples, tokens_per_sample=row.seq)
    graphs = Graphs(
        lambda samples: trace(
            model, source.example_batch(samples), None, job.precision, row.model, device="cpu"
        )
    )
    plan = search(graphs, job, cluster, pin=row.pin).plan
    assert plan is not None, row.name
    graph = graphs.trace(plan.micro_batch)
    estimate = price(graph, plan, job, cluster)
    stages = []
    for stage in range(plan.pp):
        predicted = estimate.stages[plan.stage_ranks.index(stage)].memory
        with pretending(stage * (plan.world_size // plan.pp), plan.world_size):
            program = fake_program(model, graph, plan)
            real = step_bytes(program, source.example_batch(program.share))
        owners = {name: getattr(predicted, name) for name in predicted.__struct_fields__ if name != "reserve"}
        stages.append(
            {
                "stage": stage,
                "allocated_bytes": real,
                "predicted_bytes": round(sum(owners.values())),
                "off": sum(owners.values()) / real - 1,
                "owners": {name: round(value) for name, value in owners.items()},
            }
        )
    return {
        "name": row.name, "model": row.model, "ranks": row.ranks, "tokens": row.seq, "pin": row.pin,
        "plan": plan.hash(), "stages": stages, "seconds": round(time.monotonic() - started, 1),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--only", default="", help="rows whose name holds this text")
    parser.add_argument("--one", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one is not None:
        print(json.dumps(checked(rows()[args.one])))
        return
    from surroundings import surroundings

    about, known = surroundings(), {}
    if RESULTS.exists():
        known = {one["name"]: one for one in json.loads(RESULTS.read_text(encoding="utf-8"))["rows"]}
    for index, row in enumerate(rows()):
        if args.only not in row.name:
            continue
        done = subprocess.run(
            [sys.executable, __file__, "--one", str(index)], capture_output=True, text=True, check=False
        )
        if done.returncode:
            print(f"{row.name}: failed\n{done.stderr[-2000:]}", file=sys.stderr)
            raise SystemExit(1)
        known[row.name] = json.loads(done.stdout.splitlines()[-1]) | {"date": about["date"]}
        print(line(known[row.name]), flush=True)
        record(about, [known[row.name] for row in rows() if row.name in known])


def record(about: dict[str, Any], found: list[dict[str, Any]]) -> None:
    """Write down all that is known."""
    off = [abs(stage["off"]) for one in found for stage in one["stages"]]
    result = about | {
        "within": WITHIN, "stages": len(off), "stages_within": sum(o <= WITHIN for o in off), "largest": max(off),
        "rows": found,
    }  # fmt: skip
    RESULTS.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    RESULTS.with_suffix(".md").write_text(page(result), encoding="utf-8")


def line(one: dict[str, Any]) -> str:
    each = "; ".join(
        f"{s['allocated_bytes'] / 2**30:.2f} GiB, predicted {s['predicted_bytes'] / 2**30:.2f} ({s['off']:+.1%})"
        for s in one["stages"]
    )
    return f"{one['name']} [{one['tokens']} tokens]: {each}"


def page(result: dict[str, Any]) -> str:
    """The result as a page to read."""
    lines = [
        "# Memory that programs take beside what their plans predict",
        "",
        f"{result['date']}, torch {result['machine']['torch']}; `python benchmarks/memory_check.py`. Tensors alive at "
        "the worst moment of a step, bf16 with fp32 masters and AdamW, on the first rank of each stage. "
        f"{result['stages_within']} of {result['stages']} stages are within {result['within']:.0%}; the largest error "
        f"is {result['largest']:.1%}.",
        "",
        "| plan | tokens of a sample | stage | allocated | predicted | off | ran |",
        "|---|---|---|---|---|---|---|",
    ]
    for one in result["rows"]:
        for s in one["stages"]:
            lines.append(
                f"| {one['name']} | {one['tokens']} | {s['stage']} | {s['allocated_bytes'] / 2**30:.2f} GiB "
                f"| {s['predicted_bytes'] / 2**30:.2f} GiB | {s['off']:+.1%} | {one['date']} |"
            )
    return "\n".join([*lines, ""])


if __name__ == "__main__":
    main()
