"""The measured tables of a profile: one TOML table per dtype or collective, its points as arrays."""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta

from autoplan.hardware.source import Count, Efficiency, Positive, Quantity

__all__ = [
    "AttentionEfficiency",
    "AttentionPoint",
    "AttentionTable",
    "CommunicationPoint",
    "CommunicationTable",
    "GemmPoint",
    "GemmTable",
    "MemoryPoint",
    "MemoryTable",
]

Spread = Quantity
Points = Meta(min_length=1)


class GemmPoint(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """``[m, n, k, flops_per_s, spread]``: one product of (m, k) by (k, n), launch overhead taken out.

    ``spread`` is (third quartile - first quartile) / median of the samples.
    """

    m: Count
    n: Count
    k: Count
    flops_per_s: Positive
    spread: Spread = 0.0


class GemmTable(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Measured matrix products of one dtype."""

    dtype: str
    source: str
    points: Annotated[tuple[GemmPoint, ...], Points]


class MemoryPoint(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """``[nbytes, bytes_per_s, spread]``: bytes read plus written by one op, launch overhead taken out."""

    nbytes: Count
    bytes_per_s: Positive
    spread: Spread = 0.0


class MemoryTable(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Measured memory-bound ops, by rising size."""

    source: str
    points: Annotated[tuple[MemoryPoint, ...], Points]


class AttentionPoint(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """``[batch, m, n, k, forward_flops_per_s, backward_flops_per_s, spread]``.

    ``batch`` sequences times heads, m queries, n keys, head size k. FLOP are counted as
    ``attention_flops`` counts them, half when causal.
    """

    batch: Count
    m: Count
    n: Count
    k: Count
    forward_flops_per_s: Positive
    backward_flops_per_s: Positive
    spread: Spread = 0.0


class AttentionTable(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Measured fused attention of one dtype, causal or not."""

    dtype: str
    causal: bool
    source: str
    points: Annotated[tuple[AttentionPoint, ...], Points]


class AttentionEfficiency(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Fractions of peak that fused attention reaches on long sequences."""

    forward: Efficiency
    backward: Efficiency


class CommunicationPoint(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """``[nbytes, bus_bytes_per_s, spread]``: bus bandwidth as nccl-tests defines it, latency included."""

    nbytes: Count
    bus_bytes_per_s: Positive
    spread: Spread = 0.0


class CommunicationTable(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One collective measured in groups of ``group`` members, all groups at work, by rising size."""

    collective: str
    group: Count
    source: str
    points: Annotated[tuple[CommunicationPoint, ...], Points]
