"""Number formats that a device may have a peak for, and how many bytes an element takes."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta

from autoplan.hardware.source import one_of

__all__ = ["DTYPE_BYTES", "Dtype"]

DTYPE_BYTES: dict[str, float] = {
    "float64": 8,
    "float32": 4,
    "tf32": 4,
    "bfloat16": 2,
    "float16": 2,
    "fp8": 1,
    "mxfp8": 1 + 1 / 32,  # a byte of scale for 32 elements (OCP Microscaling Formats 1.0, section 5)
    "nvfp4": 0.5 + 1 / 16,  # a byte of scale for 16 elements (NVIDIA, NVFP4)
}
"""Bytes of an element in memory, its share of a block's scale included. torch's names where torch has one;
``tf32``: float32 in memory, TF32 on tensor cores; ``fp8``: e4m3 or e5m2 with a scale for each tensor."""

Dtype = Annotated[str, Meta(pattern=one_of(*DTYPE_BYTES))]
