"""What the planner needs of a model: how to build it, and an example of its batch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

from autoplan.errors import ModelError

if TYPE_CHECKING:
    from torch import Tensor, nn

Batch: TypeAlias = "dict[str, Tensor] | tuple[Tensor, ...] | Tensor"

__all__ = ["Batch", "ModelSource", "checked_seq", "token_batch"]


@dataclass(frozen=True, slots=True)
class ModelSource:
    """A model that can be built at any size without weights.

    Args:
        name: how the model is called in plans and reports.
        build: makes the module; called under ``torch.device("meta")``, so it costs no memory.
        example_batch: from a number of samples to a batch of meta tensors whose first dim is the
            samples: forward's keyword arguments as a dict (language models: ``input_ids`` and ``labels``,
            (b, s) int64), or what a user's factory gave: a dict, a tuple, or the one tensor.
        loss: ``fn(output, batch) -> scalar``; None when the model returns its own loss, as
            ``output.loss`` or as the output itself.
        tokens_per_sample: the sequence length; 0 when samples are not sequences.
    """

    name: str
    build: Callable[[], nn.Module]
    example_batch: Callable[[int], Batch]
    loss: Callable[[Any, Any], Tensor] | None
    tokens_per_sample: int


def token_batch(seq: int, *names: str) -> Callable[[int], dict[str, Tensor]]:
    """A maker of batches whose every entry is a (samples, ``seq``) int64 tensor on the meta device."""

    def example_batch(samples: int) -> dict[str, Tensor]:
        import torch

        return {name: torch.empty((samples, seq), dtype=torch.int64, device="meta") for name in names}

    return example_batch


def checked_seq(seq: int) -> int:
    """``seq`` itself when it is a possible sequence length.

    Raises:
        ModelError: it is below 1.
    """
    if seq < 1:
        raise ModelError("--seq", seq, "an integer of at least 1", "give the tokens of one sample")
    return seq
