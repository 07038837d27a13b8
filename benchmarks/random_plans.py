"""Random legal plans of small models on 1 to 8 gloo ranks: how many give the numbers of one process.

    python benchmarks/random_plans.py --minutes 10 --seed 1     # adds to benchmarks/results/random_plans.json
    python benchmarks/random_plans.py --plans 50 --worlds 2 4
    python benchmarks/random_plans.py --pairs --worlds 1 2 4    # drawn so that every pair of decisions is among them
    python benchmarks/random_plans.py --curves                  # six hybrid plans for 100 steps

A plan draws its degrees, schedule, where stages end, state sharding, recomputation, micro-batches, precision, and a
legal strategy for every op and layout for every parameter (``tests/plan_draws.py``). It passes if the loss of each of
three steps, every gradient of the first and every parameter after the last are those of the plain model in one
process, to 1e-10 in float64 and 1e-5 in float32, relative to the largest value of each tensor.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

from equality import Case, check, reference, run, traced
from plan_draws import DECISIONS, covering, draw
from ranks import Ranks
from surroundings import surroundings, write_results

RESULTS = Path(__file__).parent / "results" / "random_plans.json"
STEPS = 100
CURVES = (
    Case("llama", dp=2, tp=2, seed=1, recompute="mixed"),
    Case("gpt", pp=2, tp=2, seed=2, schedule="zbv", vpp=2),
    Case("hf-gpt2", fsdp=2, zero=3, pp=2, num_micro_batches=4, schedule="interleaved", vpp=2),
    Case("moe", fsdp=2, zero=2, tp=2, seed=3),
    Case("llama", cp=2, fsdp=2, zero=3, cp_attention="ring", recompute="full"),
    Case("hf-vit", pp=2, dp=2, schedule="1f1b", micro_batch=2),
)


class Pools:
    """Ranks, started when they are first needed; they have the graphs that this process has traced."""

    def __init__(self) -> None:
        self.made: dict[int, Ranks] = {}

    def __call__(self, size: int) -> Ranks:
        return self.made.setdefault(size, Ranks(size, "fork"))

    def close(self) -> None:
        for ranks in self.made.values():
            ranks.close()


def tried(case: Case, pools: Pools) -> tuple[str, float]:
    """What is wrong with a case, empty if nothing, and its largest relative difference."""
    try:
        return "", max(pools(case.world)(check, case))
    except AssertionError as error:
        return str(error), 0.0


def sample(
    seed: int, worlds: tuple[int, ...], models: tuple[str, ...], plans: int, minutes: float, pairs: bool
) -> dict[str, Any]:
    """Random plans until ``plans`` are done or the time is up; of all models where ``models`` is empty.

    With ``pairs`` they are those few that have every pair of decisions between them, of all models.
    """
    rng, pools = random.Random(seed), Pools()
    for one in {
        (c.model, c.dtype, c.micro_batch): c for c in (draw(rng, worlds, models) for _ in range(500))
    }.values():
        traced(one)
    start = time.monotonic()
    taken: dict[str, Counter[str]] = {name: Counter() for name in (*DECISIONS, "ranks")}
    wrong, worst, count = [], Counter[str](), 0
    drawn = iter(covering(rng, worlds)) if pairs else iter(lambda: draw(rng, worlds, models), None)
    for case in drawn:
        if count >= plans or time.monotonic() - start >= 60 * minutes:
            break
        text, difference = tried(case, pools)
        count += 1
        if text:
            wrong.append({"case": repr(case), "error": text.strip().splitlines()[0]})
            print(f"{case}\n{text}", flush=True)
        worst[case.dtype] = max(worst[case.dtype], difference)  # type: ignore[assignment]
        for name in DECISIONS:
            taken[name][str(getattr(case, name))] += 1
        taken["ranks"][str(case.world)] += 1
        if count % 10 == 0:
            print(f"{count} plans, {len(wrong)} wrong, {time.monotonic() - start:.0f} s", flush=True)
    pools.close()
    return {
        "seed": seed,
        "pairs": pairs,
        "minutes": round((time.monotonic() - start) / 60, 1),
        "plans": count,
        "equal": count - len(wrong),
        "largest_difference": dict(worst),
        "wrong": wrong,
        "taken": {name: dict(sorted(found.items())) for name, found in taken.items()},
    }


def curves() -> list[dict[str, Any]]:
    """The largest relative difference of a loss from one process's over 100 steps, for six hybrid plans."""
    pools, found = Pools(), []
    for case in CURVES:
        losses = pools(case.world)(run, case, STEPS)[0][0]
        expected = reference(case, STEPS)[0]
        apart = max(abs(a - b) / abs(b) for a, b in zip(losses, expected, strict=True))
        row = {
            "plan": repr(case),
            "first_loss": losses[0],
            "last_loss": losses[-1],
            "largest_difference": apart,
        }
        print(row, flush=True)
        found.append(row)
    pools.close()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description="Random plans against one process.")
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--plans", type=int, default=10**6)
    parser.add_argument("--worlds", type=int, nargs="+", default=[1, 2, 4, 8])
    parser.add_argument("--models", nargs="+", default=[], help="some of those in tests/plan_draws.py")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--pairs", action="store_true")
    parser.add_argument("--curves", action="store_true")
    asked = parser.parse_args()
    result = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else {"runs": []}
    if asked.curves:
        result["curves"] = surroundings() | {"steps": STEPS, "plans": curves()}
    else:
        made = sample(
            asked.seed, tuple(asked.worlds), tuple(asked.models), asked.plans, asked.minutes, asked.pairs
        )
        result["runs"].append(surroundings() | made)
        print(f"{made['equal']} of {made['plans']} plans equal one process")
    result["plans"] = sum(one["plans"] for one in result["runs"])
    result["equal"] = sum(one["equal"] for one in result["runs"])
    write_results(RESULTS, result)


if __name__ == "__main__":
    main()
