"""What is to be trained, apart from the model: batch, precision, optimizer."""

from __future__ import annotations

import msgspec

from autoplan.errors import InputError
from autoplan.precision import Precision

__all__ = ["Job"]


class Job(msgspec.Struct, frozen=True, kw_only=True):
    """A training job.

    Args:
        global_batch: samples in one optimizer step, over all ranks.
        tokens_per_sample: tokens in a sample (the sequence length); 0 when samples are not sequences.
        precision: see ``Precision``.
        optimizer_states: moments kept per parameter (AdamW 2, SGD with momentum 1, SGD 0).
    """

    global_batch: int
    tokens_per_sample: int = 0
    precision: Precision = Precision.BF16
    optimizer_states: int = 2

    def __post_init__(self) -> None:
        if self.global_batch < 1:
            raise InputError(
                "--global-batch",
                self.global_batch,
                "an integer of at least 1",
                "give the samples of one optimizer step",
            )
        if self.tokens_per_sample < 0:
            raise InputError(
                "--seq", self.tokens_per_sample, "an integer of at least 1", "give the sequence length"
            )
