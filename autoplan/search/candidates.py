"""Every combination of degrees, state sharding and micro-batch size that fills the cluster."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from autoplan.cost.degrees import Degrees
from autoplan.errors import InputError, PlanError
from autoplan.search.pins import Pins

if TYPE_CHECKING:
    from autoplan.hardware import Cluster
    from autoplan.plan import Job

__all__ = ["candidates", "divisors"]


def candidates(job: Job, cluster: Cluster, units: int, pins: Pins) -> list[Degrees]:
    """All of them in a fixed order.

    tp stays inside a node, pp is at most the number of ``units`` and of micro-batches; zero is 0 exactly where fsdp is 1.
    Raises InputError if the global batch cannot be cut among the data ranks, naming the nearest that
    can, and PlanError if the pins leave nothing.
    """
    meshes = list(_meshes(cluster, units, pins))
    if not meshes:
        pinned = ", ".join(
            f"{name}={getattr(pins, name)}" for name in Pins.__slots__ if getattr(pins, name) is not None
        )
        expected = f"degrees that multiply to {cluster.world_size} ranks with pp at most {units}, the units of the model"
        raise PlanError("pin", pinned or None, expected, "change a pin, or leave it to the search")
    found = [
        Degrees(pp, dp, fsdp, 1, tp, zero, micro_batch, job.global_batch // (dp * fsdp * micro_batch))
        for pp, dp, fsdp, tp in meshes
        for micro_batch in _micro_batches(job.global_batch, dp * fsdp, pins)
        for zero in _zeros(fsdp, pins)
        if pp
        <= job.global_batch // (dp * fsdp * micro_batch)  # torch's 1F1B wants a micro-batch for each stage
    ]
    if not found:
        _refuse_batch(job, [pp * dp * fsdp * (pins.micro_batch or 1) for pp, dp, fsdp, _ in meshes], pins)
    return sorted(found)


def divisors(number: int) -> list[int]:
    """The divisors of ``number``, the smallest first."""
    small = [d for d in range(1, int(number**0.5) + 1) if number % d == 0]
    return small + [number // d for d in reversed(small) if d * d != number]


def _meshes(cluster: Cluster, units: int, pins: Pins) -> Iterator[tuple[int, int, int, int]]:
    world = cluster.world_size
    for pp in _free(divisors(world), pins.pp):
        if pp > units:
            continue
        for tp in _free(divisors(world // pp), pins.tp):
            if cluster.node_size % tp:
                continue
            data_ranks = world // pp // tp
            for fsdp in _free(divisors(data_ranks), pins.fsdp):
                dp = data_ranks // fsdp
                if pins.dp in (None, dp) and any(True for _ in _zeros(fsdp, pins)):
                    yield pp, dp, fsdp, tp


def _free(values: list[int], pinned: int | None) -> list[int]:
    return values if pinned is None else [value for value in values if value == pinned]


def _zeros(fsdp: int, pins: Pins) -> Iterator[int]:
    for zero in (0,) if fsdp == 1 else (1, 2, 3):
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
