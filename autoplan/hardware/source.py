"""Where a figure comes from. Every figure of a profile names one of these by its key."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import msgspec
from msgspec import Meta

__all__ = ["Count", "Efficiency", "Fraction", "Positive", "Quantity", "Source", "SourceKind"]

LARGEST = 1e30  # beyond any quantity in SI units that a machine has; keeps infinity out

Count = Annotated[int, Meta(ge=1, le=2**53)]
Positive = Annotated[float, Meta(gt=0, le=LARGEST)]
Quantity = Annotated[float, Meta(ge=0, le=LARGEST)]
Fraction = Annotated[float, Meta(ge=0, le=1)]
Efficiency = Annotated[float, Meta(gt=0, le=1)]


class SourceKind(StrEnum):
    """How far a figure can be trusted.

    ``measured`` by this package on the machine that the profile describes; ``datasheet`` of the
    maker; ``published`` by others who measured; ``assumed`` where nothing better is known.
    """

    MEASURED = "measured"
    DATASHEET = "datasheet"
    PUBLISHED = "published"
    ASSUMED = "assumed"


class Source(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """One origin of figures.

    Args:
        kind: see ``SourceKind``.
        document: the datasheet, paper or thread, or the reason of an assumption.
        date: ISO date of a measurement.
        tool: what measured, with its version.
        versions: of the software that was measured (torch, NCCL, …).
        settings: what else the figures depend on (ranks, threads per rank, samples, load of the machine).
    """

    kind: SourceKind
    document: str = ""
    date: str = ""
    tool: str = ""
    versions: dict[str, str] = {}
    settings: dict[str, str | int | float] = {}

    def __str__(self) -> str:
        detail = self.document or ", ".join(part for part in (self.tool, self.date) if part)
        return f"{self.kind}: {detail}" if detail else str(self.kind)
