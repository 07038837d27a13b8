"""One configuration in detail, as plain numbers: what ``autoplan estimate`` prints."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from autoplan.cost.transformer.configuration import Configuration
from autoplan.cost.transformer.formats import Formats
from autoplan.cost.transformer.mixed_times import step_times_on
from autoplan.cost.transformer.price import rates
from autoplan.cost.transformer.shape import Transformer
from autoplan.cost.transformer.software import Software
from autoplan.cost.transformer.step_memory import StageMemory, stage_memories

if TYPE_CHECKING:
    from autoplan.hardware import AnyCluster, Device

__all__ = ["HandEstimate", "StageBytes", "estimate_one"]


@dataclass(frozen=True, slots=True)
class StageBytes:
    """Bytes of one pipeline stage at its worst moment: by owner, allocated, and in all; and those of its device."""

    stage: int
    layers: float
    owners: dict[str, float]
    allocated_bytes: float
    total_bytes: float
    limit_bytes: float
    device: str

    @property
    def filled(self) -> float:
        """Of the device's memory."""
        return self.total_bytes / self.limit_bytes


@dataclass(frozen=True, slots=True)
class HandEstimate:
    """The price of one configuration. ``parts`` are seconds by cause and add up to ``step_time_s``.

    ``peak_memory_bytes`` is the upper figure, on which ``fits`` is promised, of the stage that is nearest to its device's
    limit; ``allocated_bytes`` the lower.
    """

    step_time_s: float
    tokens_per_s: float
    tokens_per_s_per_gpu: float
    model_tflops_per_gpu: float
    model_tflops_per_gpu_full_attention: float
    mfu: float
    mfu_full_attention: float
    parameters: float
    peak_memory_bytes: float
    allocated_bytes: float
    memory_limit_bytes: float
    fits: bool
    reason: str
    parts: dict[str, float]
    stages: tuple[StageBytes, ...]

    def to_json(self) -> dict[str, Any]:
        """The object under ``estimate`` in ``--json``."""
        fields = {name: getattr(self, name) for name in self.__slots__ if name not in ("stages", "parts")}
        stages = [
            {
                "stage": s.stage,
                "layers": s.layers,
                "total_bytes": s.total_bytes,
                "allocated_bytes": s.allocated_bytes,
                "limit_bytes": s.limit_bytes,
                "memory": s.owners,
            }
            for s in self.stages
        ]
        return {**fields, "parts": self.parts, "stages": stages}


def estimate_one(
    shape: Transformer,
    configuration: Configuration,
    cluster: AnyCluster,
    formats: Formats,
    software: Software,
    schedule: str,
) -> HandEstimate:
    """Price one configuration, however unwise. Raises ProfileError where the device lacks the format."""
    times = step_times_on(shape, configuration, formats, software, cluster, schedule)
    devices = [only.device for only in cluster.types]
    peak = sum(
        share * device.peak(formats.products) for share, device in zip(cluster.shares, devices, strict=True)
    )
    prices = rates(shape, configuration.as_arrays(), times.step_s, peak)
    memories = [
        stage_memories(shape, configuration, formats, software, only, schedule) for only in cluster.types
    ]
    on = [cluster.type_of(stage, int(configuration.pp)) for stage in range(int(configuration.pp))]
    stages = tuple(_stage(s, *memories[of][s], devices[of]) for s, of in enumerate(on))
    worst = max(stages, key=lambda stage: stage.filled)
    limit = worst.limit_bytes
    fits = worst.total_bytes <= limit
    reason = (
        ""
        if fits
        else (
            f"stage {worst.stage} needs {worst.total_bytes / 2**30:.1f} GiB and {worst.device} leaves "
            f"{limit / 2**30:.1f} GiB; most of it is {max(worst.owners, key=lambda name: worst.owners[name])}"
        )
    )
    return HandEstimate(
        step_time_s=_one(times.step_s),
        tokens_per_s=_one(prices["tokens_per_s"]),
        tokens_per_s_per_gpu=_one(prices["tokens_per_s_per_gpu"]),
        model_tflops_per_gpu=_one(prices["model_flops_per_s"]) / 1e12,
        model_tflops_per_gpu_full_attention=_one(prices["model_flops_per_s_full"]) / 1e12,
        mfu=_one(prices["mfu"]),
        mfu_full_attention=_one(prices["mfu_full"]),
        parameters=float(shape.parameters),
        peak_memory_bytes=worst.total_bytes,
        allocated_bytes=max(stage.allocated_bytes for stage in stages),
        memory_limit_bytes=limit,
        fits=fits,
        reason=reason,
        parts={name: _one(s) for name, s in times.parts.items()},
        stages=stages,
    )


def _stage(index: int, layers: Any, memory: StageMemory, device: Device) -> StageBytes:
    return StageBytes(
        stage=index,
        layers=_one(layers),
        owners={name: _one(b) for name, b in memory.owners.items()},
        allocated_bytes=_one(memory.allocated),
        total_bytes=_one(memory.total),
        limit_bytes=float(device.usable_bytes),
        device=device.name,
    )


def _one(value: Any) -> float:
    return float(np.asarray(value).reshape(-1)[0])
