"""Random legal plans of small models on 1 to 8 gloo ranks: how many give the numbers of one process.

    python benchmarks/random_plans.py --minutes 10 --seed 1     # adds to benchmarks/results/random_plans.json
    python benchmarks/random_plans.py --plans 50 --worlds 2 4
    python benchmarks/random_plans.py --pairs --worlds 1 2 4    # drawn so that every pair of decisions is among them
    python benchmarks/random_plans.py --seed 1 --only 123       # one plan of a sample again, alone; records nothing
    python benchmarks/random_plans.py --curves                  # six hybrid plans for 100 steps, twice

A plan draws its degrees, schedule, where stages end, state sharding, what is recomputed and offloaded, micro-batches,
precision, and a legal strategy for every op and layout for every parameter (``tests/plan_draws.py``). It passes if the
loss of each of three steps, every gradient of the first and every parameter after the last are those of the plain
model in one process, to 1e-10 in float64 and 1e-5 in float32, relative to the largest value of each tensor.

What plans share is made once, before the ranks are forked: traced graphs, models, and what one process gives.
"""

from __future__ import annotations

import argparse
import gc
import hashlib
import itertools
import json
import os
import resource
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

from equality import Apart, Case, check, plan_for, reference, run, traced
from plan_draws import DECISIONS, WORLDS, Pairs, covering, drawn
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
LANES = 2
"""Plans that run side by side: ranks wait for each other most of the time."""
ROUND = 30
"""Plans that are drawn, sorted by their number of ranks, and run to the end before the clock is read."""
AT_ONCE = 10
"""Plans that ranks run before they answer."""

Outcome = tuple[str, float]
"""What is wrong, empty if nothing, and the largest relative difference."""


class Pools:
    """Ranks, so many for each of ``sizes``; they have all that this process has worked out."""

    def __init__(self, sizes: Iterable[int]) -> None:
        os.environ["TORCH_FR_BUFFER_SIZE"] = "0"  # no note, with its traceback, of each collective
        gc.collect()
        gc.freeze()  # what is there is there to stay: ranks need not look through it for garbage
        self.made = {size: Ranks(size, "fork") for size in sizes}
        for size in sizes:
            self(size)(
                abs, 0
            )  # before there are threads, which a fork would leave in the middle of something

    def __call__(self, size: int) -> Ranks:
        return self.made[size]

    def close(self) -> None:
        for ranks in self.made.values():
            end(ranks)


def end(ranks: Ranks) -> None:
    """Stop them at once: those that are forked hold each other's pipes open, and so see no end."""
    for process in ranks.processes:
        process.kill()
    ranks.close()


def check_all(cases: Sequence[Case]) -> list[Outcome]:
    """What each of ``cases`` gives on this rank. Any other error than wrong numbers ends it: other ranks may wait."""
    return [_outcome(case) for case in cases]


def _outcome(case: Case) -> Outcome:
    try:
        return "", check(case)
    except Apart as error:
        return str(error), 0.0


def tried(cases: Sequence[Case], ranks: Ranks) -> list[Outcome]:
    """What each of ``cases`` gives; where one of them fails in another way than by its numbers, each is run alone."""
    try:
        of_ranks = ranks(check_all, cases)
    except AssertionError as error:
        end(ranks)
        if len(cases) == 1:
            return [(str(error), 0.0)]
        return [outcome for case in cases for outcome in tried([case], ranks)]
    return [max(found) for found in zip(*of_ranks, strict=True)]


class Sample:
    """What has been found of the plans at ``places`` in the sample of ``seed``."""

    def __init__(self, seed: int, worlds: Sequence[int], models: Sequence[str]) -> None:
        self.seed, self.worlds, self.models = seed, worlds, models
        self.cases: dict[int, Case] = {}
        self.wrong: list[dict[str, Any]] = []
        self.worst: dict[str, float] = {}

    def case(self, place: int) -> Case:
        return drawn(self.seed, place, self.worlds, self.models)

    def add(self, place: int, case: Case, outcome: Outcome) -> None:
        text, difference = outcome
        self.cases[place] = case
        self.worst[case.dtype] = max(self.worst.get(case.dtype, 0.0), difference)
        if text:
            self.wrong.append({"place": place, "case": repr(case), "error": text.strip().splitlines()[0]})
            print(f"place {place}: {case}\n{text}", flush=True)

    def record(self) -> dict[str, Any]:
        taken = {
            name: dict(sorted(Counter(str(getattr(case, name)) for case in self.cases.values()).items()))
            for name in DECISIONS
        }
        return {
            "seed": self.seed,
            "worlds": list(self.worlds),
            "models": list(self.models),
            "plans": len(self.cases),
            "equal": len(self.cases) - len(self.wrong),
            "largest_difference": self.worst,
            "wrong": self.wrong,
            "digest": digest(self.cases[place] for place in sorted(self.cases)),
            "taken": taken,
        }


def digest(cases: Iterable[Case]) -> str:
    """Tells one sample from another, and from what the same seed once gave."""
    return hashlib.sha256("\n".join(map(repr, cases)).encode()).hexdigest()[:16]


def rounds(places: Iterable[int]) -> Iterator[list[int]]:
    """``places``, so many at a time."""
    left = iter(places)
    while taken := list(itertools.islice(left, ROUND)):
        yield taken


def batches(places: Sequence[int], found: Sample) -> list[list[int]]:
    """``places`` by number of ranks, the most first, at most ``AT_ONCE`` together."""
    by_world: dict[int, list[int]] = {}
    for place in places:
        by_world.setdefault(found.case(place).world, []).append(place)
    return [
        own[first : first + AT_ONCE]
        for _, own in sorted(by_world.items(), reverse=True)
        for first in range(0, len(own), AT_ONCE)
    ]


def prepare(cases: Iterable[Case]) -> None:
    """Work out, once for all ranks to come, what many of ``cases`` need."""
    seen: Counter[tuple[object, ...]] = Counter()
    for case in cases:
        cuts = case.micro_batch, case.tp, case.cp, case.cp_attention
        for need, *key in ((traced, case.micro_batch), (reference, case.global_batch), (planned, *cuts)):
            whole = (need, case.model, case.layers, case.dtype, *key)
            seen[whole] += 1
            if seen[whole] == 2:
                need(case)


def planned(case: Case) -> None:
    """Draw a plan: the ways to cut each op are worked out once for a graph."""
    plan_for(traced(case), case)


def sample(found: Sample, places: Iterable[int], minutes: float) -> dict[str, Any]:
    """Run the plans at ``places``, in rounds of ``ROUND``, until the time is up."""
    start = time.monotonic()
    prepare(map(found.case, range(200)))
    print(f"prepared in {time.monotonic() - start:.0f} s", flush=True)
    lanes = [Pools(found.worlds) for _ in range(LANES)]
    free = SimpleQueue[Pools]()
    for lane in lanes:
        free.put(lane)

    def run_some(some: list[int]) -> None:
        pools = free.get()
        cases = list(map(found.case, some))
        for place, case, outcome in zip(some, cases, tried(cases, pools(cases[0].world)), strict=True):
            found.add(place, case, outcome)
        free.put(pools)

    with ThreadPoolExecutor(LANES) as threads:
        for taken in rounds(places):
            list(threads.map(run_some, batches(taken, found)))
            seconds = time.monotonic() - start
            print(f"{len(found.cases)} plans, {len(found.wrong)} wrong, {seconds:.0f} s", flush=True)
            if seconds >= 60 * minutes:
                break
    for lane in lanes:
        lane.close()
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return {
        "minutes": round((time.monotonic() - start) / 60, 1),
        "cpu_minutes": round(sum(one.ru_utime + one.ru_stime for one in used) / 60, 1),
    }


def coverage(runs: Iterable[dict[str, Any]]) -> dict[str, int]:
    """How many values of decisions and pairs of them there are among legal plans, and among those of ``runs``."""
    pairs = Pairs()
    legal = pairs.among(drawn(0, index) for index in range(50000))
    covered = 0
    for one in runs:
        found = Sample(one["seed"], one["worlds"], one["models"])
        places = covering(one["seed"], one["worlds"])[: one["plans"]] if one["pairs"] else range(one["plans"])
        cases = [found.case(place) for place in sorted(places)]
        if digest(cases) == one["digest"]:  # else the draw was another then
            covered |= pairs.among(cases)
    return {"legal": legal.bit_count(), "covered": (covered & legal).bit_count()}


def twice(case: Case, steps: int) -> tuple[list[float], bool]:
    """Losses of a program on this rank, and whether another run of it has the same bits."""
    (losses, *tensors), (again, *others) = run(case, steps), run(case, steps)
    same = all(
        torch.equal(a[name], b[name]) for a, b in zip(tensors, others, strict=True) for name in (*a, *b)
    )
    return losses, same and losses == again


def curves() -> list[dict[str, Any]]:
    """The largest relative difference of a loss from one process's over ``STEPS`` steps, for six hybrid plans."""
    pools, found = Pools({case.world for case in CURVES}), []
    for case in CURVES:
        of_ranks = pools(case.world)(twice, case, STEPS)
        losses = of_ranks[0][0]
        expected = reference(case, STEPS)[0]
        apart = max(abs(a - b) / abs(b) for a, b in zip(losses, expected, strict=True))
        row = {
            "plan": repr(case),
            "first_loss": losses[0],
            "last_loss": losses[-1],
            "largest_difference": apart,
            "rerun_equal": all(same for _, same in of_ranks),
        }
        print(row, flush=True)
        found.append(row)
    pools.close()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description="Random plans against one process.")
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--plans", type=int, default=10**6)
    parser.add_argument("--worlds", type=int, nargs="+", default=list(WORLDS), choices=list(WORLDS))
    parser.add_argument("--models", nargs="+", default=[], help="some of those in tests/plan_draws.py")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", type=int, help="the plan at this place in the sample of the seed")
    parser.add_argument("--pairs", action="store_true")
    parser.add_argument("--curves", action="store_true")
    asked = parser.parse_args()
    found = Sample(asked.seed, asked.worlds, asked.models)
    if asked.only is not None:
        case = found.case(asked.only)
        ranks = Ranks(case.world, "fork")
        print(case, *tried([case], ranks)[0], sep="\n")
        end(ranks)
        return
    around = surroundings()
    result = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else {"runs": []}
    result["runs"] = [one for one in result["runs"] if "digest" in one]  # others cannot be drawn again
    if asked.curves:
        result["curves"] = around | {"steps": STEPS, "plans": curves()}
    else:
        places = covering(asked.seed, asked.worlds) if asked.pairs else range(10**6)
        spent = sample(found, itertools.islice(places, asked.plans), asked.minutes)
        result["runs"].append(around | {"pairs": asked.pairs} | spent | found.record())
        result["pairs"] = coverage(result["runs"])
        print(f"{len(found.cases) - len(found.wrong)} of {len(found.cases)} plans equal one process")
    result["plans"] = sum(one["plans"] for one in result["runs"])
    result["equal"] = sum(one["equal"] for one in result["runs"])
    write_results(RESULTS, result)


if __name__ == "__main__":
    main()
