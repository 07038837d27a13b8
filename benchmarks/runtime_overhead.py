"""What autoplan's programs cost beside hand-written ones of the same plan, and what planning takes; write it down.

    python benchmarks/runtime_overhead.py [--only NAME] [--pairs N]

For each plan the ranks hold both programs, with the same weights, and take steps of one and the other in turns:
whatever else the machine does, it does to both. A pair's ratio is autoplan's step over the hand-written one; the
table has medians over pairs, between their quartiles. Wall time is the slowest rank's; CPU time is that of all
ranks, and hardly depends on what else the machine does. Both programs must give the same losses.

Planning: a fresh process that imports, builds llama3-8b on the meta device, traces it, searches a plan for 8 H100,
and rewrites it for one rank (a pretended process group), until the first step could begin.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import statistics
import subprocess
import sys
import time
from pathlib import Path
from queue import Empty
from typing import Any

RESULTS = Path(__file__).parent / "results" / "runtime_overhead.json"
TARGET, PLANNING_TARGET_S = 1.03, 15.0
PAIRS, WARM = 24, 3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--only", default="", help="plans whose name holds this text; nothing is written")
    parser.add_argument("--pairs", type=int, default=PAIRS, help=f"pairs of steps (default: {PAIRS})")
    parser.add_argument("--planning", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.planning:
        print(json.dumps(planning()))
        return
    from overhead_cases import CASES
    from surroundings import surroundings, write_results

    about = surroundings()
    rows = []
    for name in CASES:
        if args.only in name:
            rows.append(compared(name, args.pairs))
            print(line(rows[-1]), flush=True)
    if args.only:
        return
    done = subprocess.run(
        [sys.executable, __file__, "--planning"], capture_output=True, text=True, check=True
    )
    planned = json.loads(done.stdout.splitlines()[-1])
    print(json.dumps(planned))
    result = about | {
        "target": TARGET,
        "planning_target_s": PLANNING_TARGET_S,
        "pairs": args.pairs,
        "plans": rows,
        "planning": planned,
    }
    write_results(RESULTS, result)
    RESULTS.with_suffix(".md").write_text(page(result), encoding="utf-8")


def compared(name: str, pairs: int) -> dict[str, Any]:
    """Both programs of a plan on ranks of their own."""
    import torch.multiprocessing as mp
    from overhead_cases import CASES

    case = CASES[name]
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    queue: Any = mp.get_context("spawn").Queue()
    ranks = mp.spawn(_rank, (name, pairs, port, queue), nprocs=case.world_size, join=False)
    seen: list[dict[str, Any]] = []
    while len(seen) < case.world_size:
        try:
            seen.append(queue.get(timeout=1))
        except Empty:
            ranks.join(timeout=0.01)  # raises what a rank has raised
    while not ranks.join():
        pass
    losses = [one["losses"] for one in seen]
    assert all(
        abs(a - b) <= 2e-5 * abs(b) for ours, hand in losses for a, b in zip(ours, hand, strict=True)
    ), losses
    wall = [[max(one["wall"][which][i] for one in seen) for i in range(pairs)] for which in (0, 1)]
    cpu = [[sum(one["cpu"][which][i] for one in seen) for i in range(pairs)] for which in (0, 1)]
    return {
        "plan": name,
        "ranks": case.world_size,
        "by_hand": case.hand,
        "cpu": summary(*cpu),
        "wall": summary(*wall),
    }


def summary(ours: list[float], hand: list[float]) -> dict[str, Any]:
    """Seconds of a step, and the ratio of pairs: median and quartiles."""
    ratios = [a / b for a, b in zip(ours, hand, strict=True)]
    low, middle, high = statistics.quantiles(ratios, n=4)
    return {
        "autoplan_s": statistics.median(ours),
        "by_hand_s": statistics.median(hand),
        "ratio": middle,
        "quartiles": [low, high],
    }


def _rank(rank: int, name: str, pairs: int, port: int, queue: Any) -> None:
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "RANK": str(rank)}
    import torch
    import torch.distributed as dist
    from overhead_cases import CASES, by_hand, ours

    case = CASES[name]
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=case.world_size)
    programs = ours(case), by_hand(case)
    losses = [[float(step()) for _ in range(WARM)] for step in programs]
    wall: list[list[float]] = [[], []]
    cpu: list[list[float]] = [[], []]
    for pair in range(pairs):
        for which in ((0, 1), (1, 0))[pair % 2]:
            dist.barrier()
            begin, used = time.perf_counter(), time.process_time()
            programs[which]()
            wall[which].append(time.perf_counter() - begin)
            cpu[which].append(time.process_time() - used)
    queue.put({"losses": losses, "wall": wall, "cpu": cpu})
    dist.barrier()
    queue.close()
    queue.join_thread()
    os._exit(0)  # gloo's own teardown can abort when a peer has gone first


def planning() -> dict[str, Any]:
    """One process: seconds of each thing before the first step."""
    begin = time.perf_counter()
    import torch
    from fake_program import fake_program, pretending

    from autoplan.graph.sources.load import load_source
    from autoplan.graph.trace import trace
    from autoplan.hardware import Cluster
    from autoplan.plan import Job
    from autoplan.search import search
    from autoplan.search.graphs import Graphs

    moments = [time.perf_counter()]
    source = load_source("llama3-8b", 8192)
    with torch.device("meta"):
        model = source.build()
    job = Job(global_batch=64, tokens_per_sample=8192)
    graphs = Graphs(
        lambda samples: trace(model, source.example_batch(samples), None, job.precision, "llama3-8b")
    )
    found = search(graphs, job, Cluster.of("h100-sxm", gpus=8))
    assert found.plan is not None
    moments.append(time.perf_counter())
    with pretending(0, 8):
        fake_program(model, graphs.trace(found.plan.micro_batch), found.plan)
    moments.append(time.perf_counter())
    return {
        "import_s": moments[0] - begin,
        "planning_s": moments[1] - moments[0],
        "rewriting_s": moments[2] - moments[1],
        "planning_and_rewriting_s": moments[2] - moments[0],
        "cpu_s": time.process_time(),
    }


def line(row: dict[str, Any]) -> str:
    cpu, wall = row["cpu"], row["wall"]
    return (
        f"{row['plan']:<14} {row['by_hand']:<34} CPU × {cpu['ratio']:.3f} ({cpu['quartiles'][0]:.3f}–"
        f"{cpu['quartiles'][1]:.3f}), wall × {wall['ratio']:.3f} ({wall['quartiles'][0]:.3f}–{wall['quartiles'][1]:.3f})"
    )


def page(result: dict[str, Any]) -> str:
    """The result as a page to read."""
    planned, machine = result["planning"], result["machine"]
    lines = [
        "# What autoplan's programs cost beside hand-written ones",
        "",
        f"{result['date']}, {machine['cpu']}, torch {machine['torch']}, gloo; `python benchmarks/runtime_overhead.py`. "
        f"{result['pairs']} pairs of steps in turns; median ratio (quartiles), autoplan over hand-written. "
        f"At most {result['target']} is wanted.",
        "",
        "| plan | by hand | CPU time | wall time | CPU s a step, by hand |",
        "|---|---|---|---|---|",
    ]
    for row in result["plans"]:
        cells = [
            f"{row[kind]['ratio']:.3f} ({row[kind]['quartiles'][0]:.3f} to {row[kind]['quartiles'][1]:.3f})"
            for kind in ("cpu", "wall")
        ]
        lines.append(
            f"| {row['plan']} | {row['by_hand']} | {cells[0]} | {cells[1]} | {row['cpu']['by_hand_s']:.3f} |"
        )
    lines += [
        "",
        f"Planning llama3-8b for 8 H100 takes {planned['planning_s']:.1f} s, rewriting it for a rank "
        f"{planned['rewriting_s']:.1f} s (imports before that {planned['import_s']:.1f} s; {planned['cpu_s']:.1f} s of "
        f"CPU in all); at most {result['planning_target_s']:.0f} s is wanted.",
        "",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
