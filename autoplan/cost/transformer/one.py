"""One configuration in detail, as plain numbers: what ``autoplan estimate`` prints."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from autoplan.cost.transformer.configuration import Configuration
from autoplan.cost.transformer.formats import Formats
from autoplan.cost.transformer.price import price_configurations
from autoplan.cost.transformer.shape import Transformer
from autoplan.cost.transformer.software import Software
from autoplan.cost.transformer.step_memory import StageMemory, stage_memories

if TYPE_CHECKING:
    from autoplan.hardware import Cluster

__all__ = ["HandEstimate", "StageBytes", "estimate_one"]


@dataclass(frozen=True, slots=True)
class StageBytes:
    """Bytes of one pipeline stage at its worst moment: by owner, allocated, and in all."""

    stage: int
    layers: float
    owners: dict[str, float]
    allocated_bytes: float
    total_bytes: float


@dataclass(frozen=True, slots=True)
class HandEstimate:
    """The price of one configuration. ``parts`` are seconds by cause and add up to ``step_time_s``.

    ``peak_memory_bytes`` is the upper figure, on which ``fits`` is promised; ``allocated_bytes`` the lower.
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
                "memory": s.owners,
            }
            for s in self.stages
        ]
        return {**fields, "parts": self.parts, "stages": stages}


def estimate_one(
    shape: Transformer,
    configuration: Configuration,
    cluster: Cluster,
    formats: Formats,
    software: Software,
    schedule: str,
) -> HandEstimate:
    """Price one configuration, however unwise. Raises ProfileError where the device lacks the format."""
    prices = price_configurations(shape, configuration, cluster, formats, software, schedule)
    memories = stage_memories(shape, configuration, formats, software, cluster, schedule)
    stages = tuple(_stage(index, layers, memory) for index, (layers, memory) in enumerate(memories))
    worst = max(stages, key=lambda stage: stage.total_bytes)
    limit = float(cluster.device.usable_bytes)
    fits = worst.total_bytes <= limit
    reason = (
        ""
        if fits
        else (
            f"stage {worst.stage} needs {worst.total_bytes / 2**30:.1f} GiB and {cluster.device.name} leaves "
            f"{limit / 2**30:.1f} GiB; most of it is {max(worst.owners, key=lambda name: worst.owners[name])}"
        )
    )
    return HandEstimate(
        step_time_s=_one(prices.step_s),
        tokens_per_s=_one(prices.tokens_per_s),
        tokens_per_s_per_gpu=_one(prices.tokens_per_s_per_gpu),
        model_tflops_per_gpu=_one(prices.model_flops_per_s) / 1e12,
        model_tflops_per_gpu_full_attention=_one(prices.model_flops_per_s_full) / 1e12,
        mfu=_one(prices.mfu),
        mfu_full_attention=_one(prices.mfu_full),
        parameters=float(shape.parameters),
        peak_memory_bytes=worst.total_bytes,
        allocated_bytes=max(stage.allocated_bytes for stage in stages),
        memory_limit_bytes=limit,
        fits=fits,
        reason=reason,
        parts={name: _one(s) for name, s in prices.parts.items()},
        stages=stages,
    )


def _stage(index: int, layers: Any, memory: StageMemory) -> StageBytes:
    return StageBytes(
        stage=index,
        layers=_one(layers),
        owners={name: _one(b) for name, b in memory.owners.items()},
        allocated_bytes=_one(memory.allocated),
        total_bytes=_one(memory.total),
    )


def _one(value: Any) -> float:
    return float(np.asarray(value).reshape(-1)[0])
