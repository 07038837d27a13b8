"""Number formats of a training run: what products run in, and the bytes that its state takes."""

from __future__ import annotations

from dataclasses import dataclass

from autoplan.errors import InputError

__all__ = ["FORMATS", "Formats", "formats_of"]


@dataclass(frozen=True, slots=True)
class Formats:
    """One way to train.

    Args:
        name: as on the command line.
        products: dtype of the linear layers' products, as profiles name it.
        activations: dtype of everything else.
        parameter_bytes: of the copy that computes.
        master_bytes: of the copy that the optimizer updates, 0 where it is the same.
        cast_bytes: touched to quantize one element of a product's input: 16 bits read, one byte written
            in each of two orientations.
        scaled: gradients are scaled and unscaled (16-bit float).
    """

    name: str
    products: str
    activations: str
    parameter_bytes: float
    master_bytes: float
    cast_bytes: float = 0.0
    scaled: bool = False


FORMATS: dict[str, Formats] = {
    f.name: f
    for f in (
        Formats("bf16", "bfloat16", "bfloat16", 2, 4),
        Formats("fp16", "float16", "float16", 2, 4, scaled=True),
        Formats("fp32", "float32", "float32", 4, 0),
        Formats("tf32", "tf32", "float32", 4, 0),
        Formats("fp8", "fp8", "bfloat16", 2, 4, 4.0),
        Formats("mxfp8", "mxfp8", "bfloat16", 2, 4, 4.0),
        Formats("nvfp4", "nvfp4", "bfloat16", 2, 4, 3.5),
    )
}
"""Every format by name."""


def formats_of(name: str) -> Formats:
    """The format of that name. Raises InputError."""
    if name not in FORMATS:
        raise InputError("--precision", name, f"one of {', '.join(FORMATS)}", "give --precision bf16")
    return FORMATS[name]
