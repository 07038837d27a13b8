"""Where a figure comes from. Every figure of a profile names one of these by its key."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import msgspec
from msgspec import Meta

__all__ = [
    "BytesPerSecond",
    "Count",
    "Efficiency",
    "FlopsPerSecond",
    "Fraction",
    "Money",
    "Rate",
    "Seconds",
    "Source",
    "SourceKind",
    "Spreads",
    "Watts",
    "one_of",
]

# The ranges are wider than any machine, and narrow enough to catch a figure in the wrong unit.
Count = Annotated[int, Meta(ge=1, le=2**53)]
FlopsPerSecond = Annotated[float, Meta(ge=1e6, le=1e21, description="FLOP/s (989.4 TFLOP/s is 989.4e12)")]
BytesPerSecond = Annotated[
    float, Meta(ge=1e5, le=1e18, description="bytes/s (450 GB/s is 450e9; 400 Gb/s is 50e9)")
]
Rate = Annotated[float, Meta(gt=0, le=1e21, description="FLOP/s or bytes/s of one measured point")]
Seconds = Annotated[float, Meta(ge=0, le=100, description="seconds (3.4 us is 3.4e-6)")]
Watts = Annotated[float, Meta(gt=0, le=1e6, description="watts")]
Money = Annotated[float, Meta(gt=0, le=1e6, description="US dollars")]


def one_of(*words: str) -> str:
    """The pattern of a text that is one of ``words``: a schema shows it, and an error lists them."""
    return f"^({'|'.join(words)})$"


Fraction = Annotated[float, Meta(ge=0, le=1)]
Efficiency = Annotated[float, Meta(gt=0, le=1)]
Spreads = dict[str, Annotated[float, Meta(ge=0, le=1e6)]]


class SourceKind(StrEnum):
    """How far a figure can be trusted.

    ``measured`` by this package on the machine that the profile describes; ``datasheet`` of the
    maker; ``published`` by others who measured; ``calibrated``: fitted so that predictions agree with
    published runs; ``assumed`` where nothing better is known.
    """

    MEASURED = "measured"
    DATASHEET = "datasheet"
    PUBLISHED = "published"
    CALIBRATED = "calibrated"
    ASSUMED = "assumed"


class Source(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """One origin of figures.

    Args:
        kind: see ``SourceKind``.
        document: the datasheet, paper or thread, or the reason of an assumption.
        date: ISO date of a measurement, or on which a price was read.
        tool: what measured, with its version.
        versions: of the software that was measured (torch, NCCL, …).
        samples: of which each figure is the median.
        rows: of a calibration, what it was fitted on, such as ``bigscience_bloom.csv:2-40``.
        settings: what else the figures depend on (ranks, threads per rank, load of the machine).
    """

    kind: SourceKind
    document: str = ""
    date: str = ""
    tool: str = ""
    versions: dict[str, str] = {}
    samples: Annotated[int, Meta(ge=0, le=2**31)] = 0
    rows: tuple[str, ...] = ()
    settings: dict[str, str | int | float] = {}

    def __str__(self) -> str:
        detail = self.document or ", ".join(part for part in (self.tool, self.date) if part)
        rows = f" (rows {', '.join(self.rows)})" if self.rows else ""
        return f"{self.kind}: {detail}{rows}" if detail or rows else str(self.kind)
