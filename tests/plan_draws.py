"""Random legal plans as cases, and few of them that have every pair of decisions between them."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator
from dataclasses import replace

from equality import Case

from autoplan.plan import SCHEDULE_NEEDS, Schedule
from autoplan.plan.validate import least_micro_batches

__all__ = ["DECISIONS", "FACTS", "covering", "draw"]

DECISIONS = (
    "model", "pp", "schedule", "vpp", "dp", "fsdp", "zero", "tp", "cp", "cp_attention", "cp_order", "recompute",
    "micro_batch", "num_micro_batches", "boundary", "uneven", "dtype",
)  # fmt: skip
_ALONE = ("model", "cp_attention", "cp_order", "boundary", "uneven")
"""Decisions of which each value is covered, but not with every other's."""

# (units of the chain, ranks that may share a sequence, whether samples meet, whether float64 is so all through)
FACTS = {
    "gpt": (6, 4, False, True),
    "llama": (6, 4, False, True),
    "moe": (4, 4, False, True),
    "hf-gpt2": (6, 4, False, True),
    "hf-t5": (7, 1, False, False),
    "hf-mixtral": (5, 4, True, False),
    "hf-vit": (6, 1, False, True),
    "dlrm": (1, 1, False, True),
    "resnet-50": (7, 1, True, True),
    "transformer-encoder": (5, 4, True, True),
}


def draw(rng: random.Random, worlds: tuple[int, ...] = (1, 2, 4, 8), models: tuple[str, ...] = ()) -> Case:
    """A case whose plan is legal, on one of the numbers of ranks ``worlds``."""
    while (case := _drawn(rng, rng.choice(worlds), rng.choice(models or tuple(FACTS)))) is None:
        pass
    return case


def _drawn(rng: random.Random, world: int, model: str) -> Case | None:
    units, sequence, meets, wide = FACTS[model]
    degrees = dict.fromkeys(("pp", "dp", "fsdp", "cp", "tp"), 1)
    for _ in range(world.bit_length() - 1):
        degrees[rng.choice(list(degrees))] *= 2
    pp, cp, shared = degrees["pp"], degrees["cp"], degrees["fsdp"] * degrees["cp"]
    schedule, vpp = Schedule.ONE_F_ONE_B, 1
    if pp > 1:
        schedule = rng.choice(list(Schedule))
        vpp = SCHEDULE_NEEDS[schedule].vpp or rng.choice((1, 2, 3))
    case = Case(
        model=model,
        **degrees,
        zero=0 if shared == 1 else rng.choice((1, 2, 3) if degrees["fsdp"] > 1 else (0, 1, 2, 3)),
        micro_batch=rng.choice((1, 2)) if not meets else rng.choice((2, 3)),
        num_micro_batches=1 if meets else rng.choice((1, 2, 3, 4, 8)),
        recompute=rng.choice(("none", "full", "mixed")),
        dtype=rng.choice(("fp64", "fp64", "fp32")) if wide else "fp32",
        boundary=rng.choice(("R", "S(1)")) if degrees["tp"] > 1 else "R",
        cp_boundary=rng.choice(("S(1)", "S(1)", "R")),
        cp_attention=rng.choice(("", "rows", "ring", "heads")) if cp > 1 and model != "moe" else "",
        cp_order="",
        seed=rng.randrange(10**6),
        schedule=schedule.value,
        vpp=vpp,
        uneven=pp > 1 and rng.random() < 0.5,
    )
    if cp > 1:
        case = replace(case, cp_order=rng.choice(("", "plain") if case.cp_attention else ("plain", "zigzag")))
    fits = pp * vpp <= units and cp <= sequence and not (meets and degrees["dp"] * degrees["fsdp"] > 1)
    return case if fits and case.num_micro_batches >= least_micro_batches(schedule, pp)[0] else None


def covering(rng: random.Random, worlds: tuple[int, ...], pool: int = 4000) -> list[Case]:
    """Cases that have between them every pair of values of two decisions (but ``_ALONE``) that any of ``pool`` random
    cases has, and every value of any."""
    cases = [case for case in (draw(rng, worlds) for _ in range(pool)) if case.num_micro_batches in (1, 2, 4)]
    pairs = [set(_pairs(case)) for case in cases]
    missing = set().union(*pairs)
    found = []
    while missing:
        best = max(range(len(cases)), key=lambda index: len(pairs[index] & missing))
        found.append(cases[best])
        missing -= pairs[best]
    return found


def _pairs(case: Case) -> Iterator[tuple[object, ...]]:
    for one in DECISIONS:
        yield one, getattr(case, one)
    for one, other in itertools.combinations([name for name in DECISIONS if name not in _ALONE], 2):
        yield one, getattr(case, one), other, getattr(case, other)
