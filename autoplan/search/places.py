"""The chain on each type of device of a cluster, and on the best of all of them, for bounds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from autoplan.cost.degrees import Degrees
from autoplan.cost.memory import StateRates, fixed_reserve_bytes, limit_bytes
from autoplan.cost.tied import kinds_once
from autoplan.cost.unit import UnitCost
from autoplan.search.optimist import least_cost
from autoplan.search.run import best_runs, chain_runs
from autoplan.search.stages import Place, StagingQuestion

if TYPE_CHECKING:
    from autoplan.graph.ir import ModelGraph
    from autoplan.hardware import AnyCluster, Cluster
    from autoplan.plan import Job
    from autoplan.search.pins import Pins

__all__ = ["hiding", "least_of_each", "staging_question"]


def _place_on(
    cluster: Cluster,
    chain: ModelGraph,
    costs: Mapping[str, UnitCost],
    degrees: Degrees,
    job: Job,
    sent_bytes: float,
) -> Place:
    """``chain`` on devices of one type, that of ``cluster``; ``costs`` are those there."""
    alone = degrees.pp == 1
    return Place(
        runs=chain_runs(chain, kinds_once(chain, costs) if alone else costs, degrees, job, cluster),
        send_s=0.0 if alone else cluster.p2p_time_s(sent_bytes, degrees.pp_stride, degrees.pp),
        overlap=cluster.overlap,
        limit_bytes=limit_bytes(cluster.device),
        reserve_bytes=fixed_reserve_bytes(cluster.device),
    )


def _best_place(places: Sequence[Place]) -> Place:
    """As if each stage had the best of everything."""
    if len(places) == 1:
        return places[0]
    return Place(
        runs=best_runs([place.runs for place in places]),
        send_s=min(place.send_s for place in places),
        overlap=max(place.overlap for place in places),
        limit_bytes=max(place.limit_bytes for place in places),
        reserve_bytes=min(place.reserve_bytes for place in places),
    )


def staging_question(
    cluster: AnyCluster,
    chain: ModelGraph,
    job: Job,
    pins: Pins,
    degrees: Degrees,
    costs_on: Sequence[Mapping[str, UnitCost]],
    sent_bytes: Sequence[float],
) -> StagingQuestion:
    """How to cut ``chain`` into stages on the types of device of ``cluster``, of which ``costs_on`` has each; what a cut
    sends is taken at its least."""
    sent = min(sent_bytes, default=0.0)
    places = [
        _place_on(only, chain, costs, degrees, job, sent)
        for costs, only in zip(costs_on, cluster.types, strict=True)
    ]
    types = [cluster.type_of(rank, degrees.pp) for rank in range(degrees.pp)]
    one = _best_place(places)
    return StagingQuestion(
        runs=one.runs,
        stages=degrees.pp,
        micro_batches=degrees.num_micro_batches,
        send_s=one.send_s,
        sent_bytes=sent,
        overlap=one.overlap,
        rates=StateRates.of(degrees, job),
        limit_bytes=one.limit_bytes,
        reserve_bytes=one.reserve_bytes,
        recompute=pins.recompute,
        without=pins.rules.without,
        places=tuple(places[kind] for kind in types) if len(places) > 1 else (),
    )


def hiding(question: StagingQuestion) -> StagingQuestion:
    """``question`` of one type of device, if all traffic is hidden that can be: units may compute for longer than is
    known."""
    hidden = 1 - question.overlap
    runs = tuple(replace(run, traffic=run.traffic.scaled(hidden)) for run in question.runs)
    return replace(question, runs=runs, overlap=0.0)


def least_of_each(on: Sequence[Mapping[str, UnitCost]]) -> Mapping[str, UnitCost]:
    """By kind, the least of each cost; ``on`` are those of several types of device, or of several layouts."""
    return on[0] if len(on) == 1 else {kind: least_cost([costs[kind] for costs in on]) for kind in on[0]}
