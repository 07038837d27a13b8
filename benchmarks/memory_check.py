"""Memory that programs take beside what their plans predict, on real sizes without a GPU; write what came out.

    python benchmarks/memory_check.py [--only TEXT]

Each program is built and takes two steps with tensors that hold nothing (FakeTensorMode), as one rank of a process
group that pretends (torch's "fake" backend); every storage that an op makes, and FSDP resizes, is counted
(``runtime.live_bytes``). The most that lives at once in the second step stands beside the plan's figure without its
reserve (context and allocator), for the worst rank of each stage. Models are traced for the CPU's kernels, since
these are what runs here. Plans are the search's under the pins of each row, with as much memory as they need.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results" / "memory_check.json"
WITHIN = 0.05


@dataclass(frozen=True)
class Row:
    """A model at so many ranks, and what is pinned; ``samples`` is the global batch."""

    model: str
    ranks: int
    seq: int
    samples: int
    pin: dict[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return f"{self.model} on {self.ranks}: " + ", ".join(f"{k} {v}" for k, v in self.pin.items())


def rows() -> list[Row]:
    """What is checked: each way to share the state, tp, pp, and recomputation."""
    found = []
    one = {"pp": 1, "cp": 1, "recompute": "none"}
    for model, seq, micro in (("llama3-8b", 2048, 1), ("gpt2-large", 1024, 4)):
        batch = 8 * 4 * micro
        found += [
            Row(model, 8, seq, batch, one | {"dp": 8, "fsdp": 1, "tp": 1, "micro_batch": micro}),
            *(
                Row(
                    model,
                    8,
                    seq,
                    batch,
                    one | {"dp": 1, "fsdp": 8, "tp": 1, "zero": zero, "micro_batch": micro},
                )
                for zero in (1, 2, 3)
            ),
            Row(model, 8, seq, batch, one | {"dp": 2, "fsdp": 4, "tp": 1, "zero": 3, "micro_batch": micro}),
            Row(
                model,
                8,
                seq,
                batch,
                one | {"fsdp": 8, "tp": 1, "zero": 3, "micro_batch": micro, "recompute": "full"},
            ),
            Row(model, 8, seq, batch, one | {"fsdp": 1, "dp": 2, "tp": 4, "micro_batch": micro}),
            Row(model, 8, seq, batch, one | {"fsdp": 2, "dp": 1, "tp": 4, "zero": 3, "micro_batch": micro}),
            Row(model, 8, seq, batch, one | {"pp": 4, "fsdp": 1, "dp": 2, "tp": 1, "micro_batch": micro}),
            Row(model, 8, seq, batch, one | {"pp": 2, "fsdp": 2, "tp": 2, "zero": 2, "micro_batch": micro}),
        ]
    big = {"cp": 1, "micro_batch": 1}
    found += [
        Row("llama3-8b", 64, 8192, 512, big | {"pp": 1, "fsdp": 64, "tp": 1, "zero": 3, "recompute": "full"}),
        Row("llama3-8b", 64, 8192, 512, big | {"pp": 1, "fsdp": 64, "tp": 1, "zero": 2, "recompute": "none"}),
        Row(
            "llama3-8b",
            64,
            8192,
            512,
            big | {"pp": 1, "fsdp": 8, "dp": 1, "tp": 8, "zero": 3, "recompute": "none"},
        ),
        Row(
            "llama3-8b",
            64,
            8192,
            512,
            big | {"pp": 4, "fsdp": 4, "dp": 1, "tp": 4, "zero": 1, "recompute": "none"},
        ),
        Row(
            "llama3-8b",
            64,
            8192,
            512,
            big | {"pp": 2, "fsdp": 4, "dp": 8, "tp": 1, "zero": 2, "recompute": "full"},
        ),
    ]
    return found


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
    parser.add_argument("--only", default="", help="rows whose name holds this text; nothing is written")
    parser.add_argument("--one", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one is not None:
        print(json.dumps(checked(rows()[args.one])))
        return
    from surroundings import surroundings, write_results

    about, found = surroundings(), []
    for index, row in enumerate(rows()):
        if args.only not in row.name:
            continue
        done = subprocess.run(
            [sys.executable, __file__, "--one", str(index)], capture_output=True, text=True, check=False
        )
        if done.returncode:
            print(f"{row.name}: failed\n{done.stderr[-2000:]}", file=sys.stderr)
            raise SystemExit(1)
        found.append(json.loads(done.stdout.splitlines()[-1]))
        print(line(found[-1]), flush=True)
    if args.only:
        return
    off = [abs(stage["off"]) for one in found for stage in one["stages"]]
    result = about | {
        "within": WITHIN, "stages": len(off), "stages_within": sum(o <= WITHIN for o in off), "largest": max(off),
        "rows": found,
    }  # fmt: skip
    write_results(RESULTS, result)
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
        "| plan | tokens | stage | allocated | predicted | off |",
        "|---|---|---|---|---|---|",
    ]
    for one in result["rows"]:
        for s in one["stages"]:
            lines.append(
                f"| {one['name']} | {one['tokens']} | {s['stage']} | {s['allocated_bytes'] / 2**30:.2f} GiB "
                f"| {s['predicted_bytes'] / 2**30:.2f} GiB | {s['off']:+.1%} |"
            )
    return "\n".join([*lines, ""])


if __name__ == "__main__":
    main()
