"""What is to be trained, apart from the model: batch, precision, optimizer."""

from __future__ import annotations

from enum import StrEnum

import msgspec

from autoplan.errors import InputError

__all__ = ["Job", "Precision"]


class Precision(StrEnum):
    """How numbers are held. ``bf16`` computes in bfloat16 and keeps fp32 master weights (FSDP2's mixed
    precision); ``fp32`` and ``fp64`` use one dtype throughout."""

    BF16 = "bf16"
    FP32 = "fp32"
    FP64 = "fp64"

    @property
    def compute_dtype(self) -> str:
        """torch's name of the dtype that ops run in."""
        return {"bf16": "bfloat16", "fp32": "float32", "fp64": "float64"}[self.value]

    @property
    def compute_bytes(self) -> int:
        return {"bf16": 2, "fp32": 4, "fp64": 8}[self.value]

    @property
    def master_bytes(self) -> int:
        """Bytes a parameter takes in the optimizer's copy; its gradient and each moment take the same."""
        return {"bf16": 4, "fp32": 4, "fp64": 8}[self.value]


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
