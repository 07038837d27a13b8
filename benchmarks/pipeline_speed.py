"""How fast pipeline schedules are simulated: plans per second on one core; write what came out.

    python benchmarks/pipeline_speed.py

For each schedule, on 16 ranks with 128 micro-batches and uneven stages: milliseconds for the first plan
of a shape (the order of actions made and compiled), for each further plan alone with its start and end
of every event, and for each of 1,000 plans priced in one call.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from surroundings import surroundings, write_results

from autoplan.cost.pipeline import StageSeconds, compiled, pipeline_order, simulate, step_times_s

PP, MICRO_BATCHES, PLANS, REPEATS = 16, 128, 1000, 20
SHAPES = (
    ("gpipe", 1), ("1f1b", 1), ("interleaved", 2), ("interleaved", 4), ("zb-h1", 1), ("zbv", 2), ("dualpipe-v", 2),
)  # fmt: skip
RESULTS = Path(__file__).parent / "results" / "pipeline_speed.json"


def best_ms(call: Callable[[], object], repeats: int) -> float:
    """The fastest of ``repeats`` calls: others share this machine."""
    taken = []
    for _ in range(repeats):
        start = time.perf_counter()
        call()
        taken.append(time.perf_counter() - start)
    return min(taken) * 1e3


def uneven(chunks: int, plans: int | None = None) -> StageSeconds:
    """Stages that differ by up to a fifth; the same for every run."""
    random = np.random.default_rng(0)
    shape = (chunks,) if plans is None else (chunks, plans)
    forward = random.uniform(1.0, 1.2, shape)
    return StageSeconds(
        forward_s=forward, backward_s=2 * forward, weight_s=forward, send_s=np.full(chunks - 1, 0.05)
    )


def first_ms(schedule: str, vpp: int) -> float:
    def cold() -> None:
        pipeline_order.cache_clear()
        compiled.cache_clear()
        compiled(schedule, PP, vpp, MICRO_BATCHES)

    return best_ms(cold, 5)


def main() -> None:
    result = surroundings()
    rows = []
    print(f"{'schedule':<12} vpp  passes  first plan  next plan  plans/s  one of {PLANS}  plans/s")
    for schedule, vpp in SHAPES:
        chunks = PP * vpp
        first = first_ms(schedule, vpp)
        program = compiled(schedule, PP, vpp, MICRO_BATCHES)
        one, many = uneven(chunks), uneven(chunks, PLANS)
        alone = best_ms(lambda: simulate(program, one), REPEATS)  # noqa: B023 - called at once
        together = best_ms(lambda: step_times_s(program, many), 3) / PLANS  # noqa: B023
        passes = sum(map(len, program.order.ranks))
        print(
            f"{schedule:<12} {vpp:>3}  {passes:>6}  {first:>7.1f} ms  {alone:>6.2f} ms  {1e3 / alone:>7.0f}"
            f"  {together * 1e3:>8.0f} µs  {1e3 / together:>7.0f}"
        )
        rows.append(
            {
                "schedule": schedule,
                "pp": PP,
                "vpp": vpp,
                "micro_batches": MICRO_BATCHES,
                "passes": passes,
                "first_plan_ms": first + alone,
                "next_plan_ms": alone,
                "one_of_many_ms": together,
            }
        )
    write_results(RESULTS, {**result, "plans_in_one_call": PLANS, "rows": rows})


if __name__ == "__main__":
    main()
