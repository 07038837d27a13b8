"""A plan's prediction taken apart as a measurement can take a step apart."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

from autoplan.cost.degrees import Degrees
from autoplan.cost.price import plan_stages, unit_prices
from autoplan.cost.step import StagePrice, simulated
from autoplan.cost.unit import StrategiesOf
from autoplan.hardware.dtypes import DTYPE_BYTES
from autoplan.hardware.measurement import BOUNDS

if TYPE_CHECKING:
    from autoplan.graph.ir import ModelGraph
    from autoplan.hardware import Cluster, Device
    from autoplan.plan import Job, Plan

__all__ = ["PredictedParts", "predicted_parts"]

_BoundSeconds = dict[str, float]


@dataclass(frozen=True, slots=True)
class PredictedParts:
    """What a plan is predicted to take.

    Args:
        step_s: seconds of the step.
        stages: of each pipeline rank, seconds of a step by cause; together they are the step.
        units: of a micro-batch's pass of each kind of unit, ``(kind, "forward" or "backward")``, seconds by what
            bounds it, without what is sent.
        optimizer: of each pipeline rank's optimizer, the same.
        memory: of each pipeline rank, bytes without the reserve.
    """

    step_s: float
    stages: tuple[Mapping[str, float], ...]
    units: Mapping[tuple[str, str], _BoundSeconds]
    optimizer: tuple[_BoundSeconds, ...]
    memory: tuple[float, ...]


def predicted_parts(
    graph: ModelGraph, plan: Plan, job: Job, cluster: Cluster, *, strategies_of: StrategiesOf | None = None
) -> PredictedParts:
    """Take the price of ``plan`` apart; arguments and errors as for ``price``."""
    stages = plan_stages(graph, plan, job, cluster, strategies_of=strategies_of)
    degrees = Degrees.of(plan)
    step_s = simulated(stages, degrees, cluster).step_s
    units: dict[tuple[str, str], _BoundSeconds] = {}
    for bound in BOUNDS:
        only = cast("Cluster", _OneBound(cluster, bound))
        for kind, cost in unit_prices(graph, plan, job, only, strategies_of)[1][0].items():
            t = cost.times  # what is left of communication here is copying, which costs compute
            units.setdefault((kind, "forward"), {})[bound] = t.forward_s + t.forward_comm_s
            units.setdefault((kind, "backward"), {})[bound] = t.backward_s + t.backward_comm_s
    kinds = {unit.name: unit.kind for unit in graph.units}
    of_rank: list[list[tuple[StagePrice, tuple[str, ...]]]] = [[] for _ in range(plan.pp)]
    for stage, planned, rank in zip(stages, plan.stages, degrees.stage_ranks, strict=True):
        of_rank[rank].append((stage, tuple(kinds[name] for name in planned.units)))
    launch_s = cluster.device.launch_s
    optimizer = [sum(stage.times.optimizer_s for stage, _ in held) for held in of_rank]
    return PredictedParts(
        step_s=step_s,
        stages=tuple(_rank_parts(held, units, degrees, step_s) for held in of_rank),
        units=units,
        optimizer=tuple({"memory": max(s - launch_s, 0.0), "launch": min(s, launch_s)} for s in optimizer),
        memory=tuple(held[0][0].memory.total - held[0][0].memory.reserve for held in of_rank),
    )


def _rank_parts(
    held: list[tuple[StagePrice, tuple[str, ...]]],
    units: Mapping[tuple[str, str], _BoundSeconds],
    degrees: Degrees,
    step_s: float,
) -> dict[str, float]:
    m = degrees.num_micro_batches
    forward = backward = again_s = 0.0
    for stage, kinds in held:
        for (_, keep), kind in zip(stage.units, kinds, strict=True):
            forward += m * sum(units[kind, "forward"].values())
            backward += m * sum(units[kind, "backward"].values())
            again_s += m * keep.again_s
    priced = [stage.times for stage, _ in held]
    computed = m * sum(t.forward_s - t.forward_fsdp_s + t.backward_s - t.backward_fsdp_s for t in priced)
    cp = m * sum(t.times.cp_comm_s for t in priced)
    copied = m * sum(t.away_s + t.back_s for t in priced)
    parts = {
        "forward": forward,
        "backward": backward,
        "recompute": again_s,
        "tp": max(computed - forward - backward - again_s - cp - copied, 0.0),
        "ep" if degrees.ep > 1 else "cp": cp,
        "fsdp": sum(m * (t.forward_fsdp_s + t.backward_fsdp_s) + t.head_s + t.tail_fsdp_s for t in priced),
        "dp": sum(t.tail_dp_s + t.tied_s for t in priced),
        "optimizer": sum(t.optimizer_s for t in priced),
    }
    if copied:
        parts["host copies"] = copied
    parts["waiting"] = max(step_s - sum(parts.values()), 0.0)
    return parts


class _OneBound:
    """A cluster on which only what ``bound`` sets the pace of takes time, and sending takes none."""

    def __init__(self, cluster: Cluster, bound: str) -> None:
        self.name, self.world_size = cluster.name, cluster.world_size
        self.stage_multiple, self.types = 1, (self,)
        self.device = _OneBoundDevice(cluster.device, bound)

    def type_of(self, rank: int, ranks: int) -> int:
        return 0

    def collective_time_s(self, kind: str, nbytes: Any, size: int, stride: int = 1) -> float:
        return 0.0


class _OneBoundDevice:
    def __init__(self, device: Device, bound: str) -> None:
        self._device = device
        self._bound = bound

    def gemm_time_s(self, gemm: tuple[int, int, int, int], dtype: str) -> float:
        b, m, n, k = gemm
        nbytes = DTYPE_BYTES.get(dtype, 4) * b * (m * k + k * n + m * n)
        return self._share("gemm", self._device.gemm_time_s(gemm, dtype), nbytes)

    def attention_time_s(
        self, batch: int, m: int, n: int, k: int, dtype: str, causal: bool, backward: bool = False
    ) -> float:
        whole_s = self._device.attention_time_s(batch, m, n, k, dtype, causal, backward=backward)
        nbytes = DTYPE_BYTES.get(dtype, 4) * batch * (2 * m * k + 2 * n * k) * (2 if backward else 1)
        return self._share("attention", whole_s, nbytes)

    def memory_time_s(self, nbytes: float) -> float:
        return self._share("memory", self._device.memory_time_s(nbytes), nbytes)

    def _share(self, kind: str, whole_s: float, nbytes: float) -> float:
        """Of an op's seconds, those of this bound: a product that memory holds up is memory's."""
        launch_s = self._device.launch_s
        if self._bound == "launch":
            return launch_s
        streamed_s = self._device.memory_time_s(nbytes) - launch_s
        held_up = whole_s - launch_s <= streamed_s * (1 + 1e-9)
        return whole_s - launch_s if self._bound == ("memory" if held_up else kind) else 0.0
