"""Every combination of degrees, state sharding and micro-batch size that fills the cluster."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import lru_cache
from typing import TYPE_CHECKING

from autoplan.cost.degrees import Degrees
from autoplan.errors import InputError, PlanError
from autoplan.plan.schedule import SCHEDULE_NEEDS, Schedule
from autoplan.plan.validate import least_micro_batches
from autoplan.search.pins import Pins

if TYPE_CHECKING:
    from autoplan.hardware import AnyCluster
    from autoplan.plan import Job

__all__ = ["candidates", "divisors", "other_shapes", "variants"]


LONG = 16_384
"""Tokens of a sample from which cp above 1 is tried; below, it is where it is held fixed."""


def candidates(
    job: Job,
    cluster: AnyCluster,
    units: int,
    pins: Pins,
    cuts_sequence: Callable[[int], bool] | None = None,
    shares_experts: Callable[[int], bool] | None = None,
) -> list[Degrees]:
    """All of them in a fixed order.

    In a cluster of several types of device, pipeline ranks have devices of one type: pp is a multiple of its
    ``stage_multiple``.
    tp stays inside a node, pp is at most the number of ``units``; zero is 0 where fsdp and cp
    are 1, may be 0 where fsdp is, and is above 0 elsewhere. cp is above 1 for samples of ``LONG`` tokens or more, or
    where it is held fixed, and only as ``cuts_sequence`` says that the model's sequence can be cut. ep is as
    ``shares_experts`` says that the model's experts can be shared out, with cp 1. Where nothing is
    asked of schedule or vpp, degrees for which several schedules can run stand here once, under 1F1B, and
    ``variants`` gives the others.
    Raises InputError if the global batch cannot be cut among the data ranks, naming the nearest that
    can, and PlanError if the pins leave nothing.
    """
    meshes = list(_meshes(cluster, units, pins, _cp_degrees(job, cluster, pins, cuts_sequence)))
    if not meshes:
        names = [name for name in Pins.__slots__ if name != "rules" and getattr(pins, name) is not None]
        pinned = ", ".join(f"{name}={getattr(pins, name)}" for name in names)
        expected = f"degrees that multiply to {cluster.world_size} ranks with pp at most {units}, the units of the model"
        if cluster.stage_multiple > 1:
            expected += (
                f", and a multiple of {cluster.stage_multiple}, so that no stage has devices of two types"
            )
        raise PlanError("pin", pinned or None, expected, "change a pin, or leave it to the search")
    experts = _ep_degrees(cluster, pins, shares_experts)
    found = [
        variant
        for pp, dp, fsdp, cp, tp in meshes
        for micro_batch in _micro_batches(job.global_batch, dp * fsdp, pins)
        for zero in _zeros(fsdp, cp, pins)
        for ep in experts
        if _fits_experts(ep, dp, fsdp, cp)
        for variant in _first(
            Degrees(
                pp, dp, fsdp, cp, tp, zero, micro_batch, job.global_batch // (dp * fsdp * micro_batch), ep=ep
            ),
            units,
            pins,
        )
    ]
    if not found and not any(_fits_experts(ep, *mesh[1:4]) for mesh in meshes for ep in experts):
        expected = "a divisor of dp · fsdp, and a divisor or a multiple of fsdp, with cp 1"
        raise PlanError("ep", pins.ep, expected, "change it, or leave it to the search")
    if not found:
        _refuse_batch(job, [pp * dp * fsdp * (pins.micro_batch or 1) for pp, dp, fsdp, _, _ in meshes], pins)
    allowed = sorted(degrees for degrees in found if pins.rules.allows(degrees))
    if not allowed:
        ruled = [f"{name}={value}" for name, value in (*pins.rules.held, *pins.rules.banned)]
        raise PlanError(
            "pin or forbid",
            ", ".join(ruled),
            f"some of the {len(found)} candidates left",
            "release one of them",
        )
    return allowed


def variants(degrees: Degrees, units: int, pins: Pins) -> list[Degrees]:
    """``degrees`` under every schedule but 1F1B, with every number of stages a rank.

    Without cp only. And only with a pin: GPipe where 1F1B can run, which takes as long and keeps less, and ZB-H1 with several stages a rank.
    """
    if degrees.cp > 1:
        return []
    shapes = other_shapes(degrees.pp, degrees.num_micro_batches, units, pins.schedule, pins.vpp)
    return [replace(degrees, schedule=schedule, vpp=vpp) for schedule, vpp in shapes]


@lru_cache(maxsize=4096)
def other_shapes(
    pp: int, micro_batches: int, units: int, schedule: Schedule | None, vpp: int | None
) -> tuple[tuple[Schedule, int], ...]:
    """The (schedule, stages a rank) that ``variants`` gives; ``schedule`` and ``vpp`` are pinned, or None."""
    if pp == 1:
        return ()
    found = []
    for name, needs in SCHEDULE_NEEDS.items():
        if name is Schedule.ONE_F_ONE_B or schedule not in (None, name):
            continue
        if micro_batches < least_micro_batches(name, pp)[0]:
            continue
        if name is Schedule.GPIPE and schedule is None and micro_batches >= pp:
            continue
        only = 1 if name is Schedule.ZB_H1 and schedule is None and vpp is None else needs.vpp
        counts = range(1, units // pp + 1) if only is None else (only,)
        found += [(name, count) for count in counts if pp * count <= units and vpp in (None, count)]
    return tuple(found)


def _first(degrees: Degrees, units: int, pins: Pins) -> list[Degrees]:
    free = pins.schedule is None and pins.vpp is None and pins.rules.free_schedules
    own = pins.schedule in (None, Schedule.ONE_F_ONE_B) and pins.vpp in (None, 1)
    enough = degrees.num_micro_batches >= degrees.pp  # torch's 1F1B wants a micro-batch for each stage
    first = [degrees] if own and enough else []
    return first if free and first else first + variants(degrees, units, pins)


def divisors(number: int) -> list[int]:
    """The divisors of ``number``, the smallest first."""
    small = [d for d in range(1, int(number**0.5) + 1) if number % d == 0]
    return small + [number // d for d in reversed(small) if d * d != number]


def _cp_degrees(
    job: Job, cluster: AnyCluster, pins: Pins, cuts_sequence: Callable[[int], bool] | None
) -> list[int]:
    if pins.cp is None and job.tokens_per_sample < LONG:
        return [1]
    found = _free(divisors(cluster.world_size), pins.cp)
    fit = [cp for cp in found if cp == 1 or (cuts_sequence is not None and cuts_sequence(cp))]
    if not fit:
        expected = "a divisor of the sequence of a model whose units pass (batch, sequence, …) on"
        raise PlanError("cp", pins.cp, expected, "change it, or leave it to the search")
    return fit


def _ep_degrees(cluster: AnyCluster, pins: Pins, shares_experts: Callable[[int], bool] | None) -> list[int]:
    found = _free(divisors(cluster.world_size), pins.ep)
    fit = [ep for ep in found if ep == 1 or (shares_experts is not None and shares_experts(ep))]
    if not fit:
        expected = "a divisor of the number of experts of a model that routes tokens to experts"
        raise PlanError("ep", pins.ep, expected, "change it, or leave it to the search")
    return fit


def _fits_experts(ep: int, dp: int, fsdp: int, cp: int) -> bool:
    """What ``validate_plan`` asks of ep."""
    return ep == 1 or (cp == 1 and dp * fsdp % ep == 0 and (fsdp % ep == 0 or ep % fsdp == 0))


def _meshes(
    cluster: AnyCluster, units: int, pins: Pins, cp_degrees: list[int]
) -> Iterator[tuple[int, int, int, int, int]]:
    world = cluster.world_size
    for pp in _free(divisors(world), pins.pp):
        if pp > units or pp % cluster.stage_multiple:
            continue
        for tp in _free(divisors(world // pp), pins.tp):
            if cluster.node_size % tp:
                continue
            for cp in cp_degrees:
                data_ranks, rest = divmod(world // pp // tp, cp)
                for fsdp in _free(divisors(data_ranks), pins.fsdp) if not rest else ():
                    dp = data_ranks // fsdp
                    if pins.dp in (None, dp) and any(True for _ in _zeros(fsdp, cp, pins)):
                        yield pp, dp, fsdp, cp, tp


def _free(values: list[int], pinned: int | None) -> list[int]:
    return values if pinned is None else [value for value in values if value == pinned]


def _zeros(fsdp: int, cp: int, pins: Pins) -> Iterator[int]:
    for zero in (0,) if fsdp * cp == 1 else (0, 1, 2, 3) if fsdp == 1 else (1, 2, 3):
        if pins.zero in (None, zero):
            yield zero


def _micro_batches(global_batch: int, data_ranks: int, pins: Pins) -> list[int]:
    if global_batch % data_ranks:
        return []
    return _free(divisors(global_batch // data_ranks), pins.micro_batch)


def _refuse_batch(job: Job, multiples: list[int], pins: Pins) -> None:
    """Name the nearest batches that some mesh can cut."""
    batch = job.global_batch
    nearest = sorted({max(batch // m, 1) * m for m in multiples} | {-(-batch // m) * m for m in multiples})
    below = [n for n in nearest if n < batch][-1:]
    above = [n for n in nearest if n > batch][:1]
    micro = f" with micro_batch {pins.micro_batch}" if pins.micro_batch else ""
    raise InputError(
        "--global-batch",
        batch,
        f"a multiple of {min(multiples)}, so that every data rank has equal micro-batches, one a stage at least{micro}",
        f"use {' or '.join(map(str, below + above))}",
    )
