"""What compute and communication lose to each other while both run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import msgspec
from msgspec import Meta

from autoplan.hardware.source import one_of
from autoplan.hardware.tables import COLLECTIVES

__all__ = ["Slowdown", "slowdown_of"]

Factor = Annotated[float, Meta(ge=1, le=1000)]
Sent = Annotated[str, Meta(pattern=one_of("any", *COLLECTIVES, "to_host", "from_host"))]
Computed = Annotated[str, Meta(pattern=one_of("any", "gemm", "attention", "memory"))]


class Slowdown(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """How many times longer each takes while the other runs all the while.

    Args:
        communication: a collective, a copy to or from the host, or ``any``.
        compute: matrix products, attention, memory-bound ops, or ``any``.
        level: name of the level that the communication crosses; empty: any.
        compute_factor, communication_factor: time together over time alone.
        source: a key of the profile's ``sources``.
        spread, samples, noisy: of a measurement.
    """

    communication: Sent = "any"
    compute: Computed = "any"
    level: str = ""
    compute_factor: Factor
    communication_factor: Factor
    source: str
    spread: Annotated[float, Meta(ge=0, le=1e6)] = 0.0
    samples: Annotated[int, Meta(ge=0, le=2**31)] = 0
    noisy: bool = False


NONE = Slowdown(compute_factor=1.0, communication_factor=1.0, source="")


def slowdown_of(
    slowdowns: Sequence[Slowdown], communication: str = "any", compute: str = "any", level: str = ""
) -> Slowdown:
    """The entry that fits best: the same communication counts most, then the level, then the compute.

    Without any that fits, factors of 1: the profile has no figure.
    """
    best, most = NONE, -1
    for entry in slowdowns:
        pairs = (
            (4, entry.communication, communication, "any"),
            (2, entry.level, level, ""),
            (1, entry.compute, compute, "any"),
        )
        if any(has not in (wanted, general) for _, has, wanted, general in pairs):
            continue
        fit = sum(weight for weight, has, wanted, general in pairs if has == wanted and has != general)
        if fit > most:
            best, most = entry, fit
    return best
