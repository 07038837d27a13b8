"""One architecture of the zoo: a model that can be built at two sizes, and what it is trained on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

__all__ = ["Architecture", "Example"]


@dataclass(frozen=True, slots=True)
class Example:
    """A model and its training batch.

    Args:
        build: makes the module on the current default device (``with torch.device("meta")`` costs no memory).
        batch: from a number of samples to a batch on the current default device, in any form that
            ``autoplan.graph.trace.trace`` takes, with values that the model can be run on.
        samples: how many samples a micro-batch has.
        loss: ``fn(output, batch) -> scalar``; None when the model returns its own.
        precision: what it computes in at the realistic size.
    """

    build: Callable[[], nn.Module]
    batch: Callable[[int], Any]
    samples: int = 1
    loss: Callable[[Any, Any], Tensor] | None = None
    precision: str = "bf16"


@dataclass(frozen=True, slots=True)
class Architecture:
    """Args:
    name: unique, the model's own name with its size (``llama-3-8b``).
    family: what it is, for the table's sections (``decoder``, ``encoder``, ``vision``, …).
    full: the model at a realistic size, never given weights.
    tiny: the same classes with few and small layers, quick to run on a CPU; at least two copies of each
        repeated block.
    """

    name: str
    family: str
    full: Callable[[], Example]
    tiny: Callable[[], Example]
