"""How numbers are held while a model trains."""

from __future__ import annotations

from enum import StrEnum

__all__ = ["Precision"]


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
    def master_dtype(self) -> str:
        """torch's name of the dtype that parameters, their gradients and moments are kept in."""
        return {"bf16": "float32", "fp32": "float32", "fp64": "float64"}[self.value]

    @property
    def master_bytes(self) -> int:
        """Bytes a parameter takes in the optimizer's copy; its gradient and each moment take the same."""
        return {"bf16": 4, "fp32": 4, "fp64": 8}[self.value]
