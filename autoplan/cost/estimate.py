"""What a plan is predicted to cost."""

from __future__ import annotations

import msgspec

__all__ = ["Estimate", "MemoryEstimate", "StageEstimate"]


class MemoryEstimate(msgspec.Struct, frozen=True, kw_only=True):
    """Bytes on one rank at its worst moment, by owner."""

    parameters: float
    gradients: float
    optimizer: float
    activations: float
    gathered: float
    workspace: float
    reserve: float

    @property
    def total(self) -> float:
        return sum(getattr(self, name) for name in self.__struct_fields__)


class StageEstimate(msgspec.Struct, frozen=True, kw_only=True):
    """One pipeline stage: seconds of one micro-batch's forward and backward pass, and the memory of the rank that
    holds it, perhaps with others, and what of its device's a plan may use."""

    forward_s: float
    backward_s: float
    memory: MemoryEstimate
    memory_limit_bytes: float = 0.0

    @property
    def filled(self) -> float:
        """How much of its limit is used (of one and the same, where it is not said)."""
        return self.memory.total / (self.memory_limit_bytes or 1.0)


class Estimate(msgspec.Struct, frozen=True, kw_only=True):
    """The price of a plan. ``parts`` are seconds by cause on the busiest path; they add up to the step.

    ``peak_memory_bytes`` and ``memory_limit_bytes`` are of the rank that is nearest to what its device has; ``fits`` is of all.

    ``busy_s`` is for how long of a step the mean rank computes, optimizer and recomputation included. ``mfu`` counts attention as causal where the model's is; ``mfu_full_attention`` counts all of it.
    """

    step_time_s: float
    tokens_per_s: float
    tokens_per_s_per_gpu: float
    model_tflops_per_gpu: float
    mfu: float
    mfu_full_attention: float
    peak_memory_bytes: float
    memory_limit_bytes: float
    fits: bool
    parts: dict[str, float]
    stages: tuple[StageEstimate, ...]
    busy_s: float = 0.0
