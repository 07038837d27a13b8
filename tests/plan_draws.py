"""Random legal plans as cases, and few of them that have every pair of decisions between them."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterable
from dataclasses import dataclass, replace

from equality import Case

from autoplan.plan import SCHEDULE_NEEDS, Schedule
from autoplan.plan.validate import least_micro_batches

__all__ = ["DECISIONS", "FACTS", "WORLDS", "Facts", "Pairs", "covering", "draw", "drawn"]

DECISIONS = (
    "model", "world", "pp", "schedule", "vpp", "dp", "fsdp", "zero", "tp", "boundary", "cp", "cp_attention",
    "cp_order", "cp_boundary", "ep", "recompute", "policy", "micro_batch", "num_micro_batches", "uneven", "dtype",
)  # fmt: skip
WORLDS = {1: 10, 2: 9, 4: 2, 8: 0.2}
"""How often a plan is for so many ranks, against the others."""

_MICRO_BATCHES = {1: 4, 2: 5, 3: 2, 4: 2, 8: 0.2}
_FEW = 2
"""Layers of most models, where there are not more stages: they show what more would, in less time."""


@dataclass(frozen=True, slots=True)
class Facts:
    """Args:
    units: of the chain.
    layers: of them that may be fewer.
    sequence: how many ranks may share a sequence.
    meets: whether samples meet, so that the batch must stay whole.
    wide: whether float64 is so all through.
    experts: of a routed layer.
    searched: whether the search cuts its attention, if ranks share sequences.
    often: how often it is drawn, against the others.
    """

    units: int
    layers: int = 0
    sequence: int = 1
    meets: bool = False
    wide: bool = True
    experts: int = 1
    searched: bool = True
    often: int = 1


FACTS = {
    "gpt": Facts(6, 4, 4, often=3),
    "llama": Facts(6, 4, 4, often=3),
    "llama-tied": Facts(6, 4, 4),
    "moe": Facts(4, sequence=4, experts=4, searched=False, often=3),
    "moe-odd": Facts(4, experts=4),
    "qwen-moe": Facts(4, wide=False, experts=8),
    "deepseek": Facts(4, wide=False, experts=8),
    "hf-gpt2": Facts(6, 4, 4),
    "hf-t5": Facts(7, wide=False),
    "hf-mixtral": Facts(5, sequence=4, meets=True, wide=False),
    "hf-vit": Facts(6, 4),
    "dlrm": Facts(1),
    "resnet-50": Facts(7, meets=True),
    "transformer-encoder": Facts(5, sequence=4, meets=True, searched=False),
}


def drawn(seed: int, index: int, worlds: Iterable[int] = WORLDS, models: Iterable[str] = ()) -> Case:
    """Plan ``index`` of the sample of ``seed``: the same again, whatever was drawn before."""
    return draw(random.Random(f"{seed} {index}"), worlds, models)


def draw(rng: random.Random, worlds: Iterable[int] = WORLDS, models: Iterable[str] = ()) -> Case:
    """A case whose plan is legal, on one of the numbers of ranks ``worlds``, of one of ``models``."""
    sizes = list(worlds)
    (world,) = rng.choices(sizes, [WORLDS[size] for size in sizes])
    known = list(models) or list(FACTS)
    (model,) = rng.choices(known, [FACTS[name].often for name in known])
    while (case := _drawn(rng, world, model)) is None:
        pass
    return case


def _drawn(rng: random.Random, world: int, model: str) -> Case | None:
    facts = FACTS[model]
    degrees = dict.fromkeys(("pp", "dp", "fsdp", "cp", "tp"), 1)
    for _ in range(world.bit_length() - 1):
        degrees[rng.choices(list(degrees), (5, 2, 2, 3, 3))[0]] *= 2
    pp, cp, shared = degrees["pp"], degrees["cp"], degrees["fsdp"] * degrees["cp"]
    schedule, vpp = Schedule.ONE_F_ONE_B, 1
    if pp > 1:
        schedule = rng.choice(list(Schedule))
        vpp = SCHEDULE_NEEDS[schedule].vpp or rng.choice((1, 2, 3))
    least = least_micro_batches(schedule, pp)[0]
    enough = {count: often for count, often in _MICRO_BATCHES.items() if count >= least} or {least: 1}
    (micro_batches,) = rng.choices(list(enough), list(enough.values()))
    few = facts.layers and pp * vpp <= facts.units - facts.layers + _FEW and rng.random() < 0.95
    case = Case(
        model=model,
        layers=_FEW if few else 0,
        **degrees,
        zero=0 if shared == 1 else rng.choice((1, 2, 3) if degrees["fsdp"] > 1 else (0, 1, 2, 3)),
        micro_batch=rng.choice((1, 2)) if not facts.meets else rng.choice((2, 3)),
        num_micro_batches=1 if facts.meets else micro_batches,
        recompute=rng.choice(("none", "full", "mixed")),
        policy=rng.choice(("", "", "random", "offload", "again")),
        dtype=rng.choice(("fp64", "fp64", "fp32")) if facts.wide else "fp32",
        boundary=rng.choice(("R", "S(1)")) if degrees["tp"] > 1 else "R",
        seed=rng.randrange(10**6),
        schedule=schedule.value,
        vpp=vpp,
        uneven=pp > 1 and rng.random() < 0.5,
    )
    fits = pp * vpp <= facts.units and cp <= facts.sequence and case.global_batch <= 64
    fits = fits and not (facts.meets and case.dp * case.fsdp > 1)
    if not fits or case.num_micro_batches < least:
        return None
    if cp == 1:
        return replace(case, ep=rng.choice(_expert_degrees(facts, case)))
    attention = rng.choice(("", "", "", "rows", "ring", "heads")) if facts.searched else ""
    return replace(
        case,
        cp_attention=attention,
        cp_order=rng.choice(("", "plain") if attention else ("plain", "zigzag")),
        cp_boundary=rng.choice(("S(1)", "S(1)", "R")),
    )


def _expert_degrees(facts: Facts, case: Case) -> list[int]:
    data, fsdp = case.dp * case.fsdp, case.fsdp
    return [
        ep
        for ep in (1, 2, 4, 8)
        if data % ep == 0 and facts.experts % ep == 0 and (ep % fsdp == 0 or fsdp % ep == 0)
    ]


class Pairs:
    """Which values of decisions, and which pairs of values of two, are among cases; as the bits of a number."""

    def __init__(self) -> None:
        self.places: dict[tuple[object, ...], int] = {}

    def of(self, case: Case) -> int:
        """The bits of one case."""
        values = [(name, getattr(case, name)) for name in DECISIONS]
        bits = 0
        for one in itertools.chain(((value,) for value in values), itertools.combinations(values, 2)):
            bits |= 1 << self.places.setdefault(one, len(self.places))
        return bits

    def among(self, cases: Iterable[Case]) -> int:
        """The bits of many."""
        bits = 0
        for case in cases:
            bits |= self.of(case)
        return bits


def covering(seed: int, worlds: Iterable[int] = WORLDS, pool: int = 20000) -> list[int]:
    """Few places in the sample of ``seed``: their cases have between them every value and pair of values of two
    decisions that any of its first ``pool`` cases has."""
    pairs = Pairs()
    bits = [pairs.of(drawn(seed, index, worlds)) for index in range(pool)]
    missing = (1 << len(pairs.places)) - 1
    found = []
    while missing:
        best = max(range(pool), key=lambda index: (bits[index] & missing).bit_count())
        found.append(best)
        missing &= ~bits[best]
    return found
