"""The measured tables of a profile: one TOML table per dtype or collective, its points as arrays.

Every point ends in ``spread, samples, noisy``, which may be left out: how far, over the figure, a second
measurement may lie from it (``measure_figure.figure_of`` says how that is found), how many samples there
were (0: as many as the source says), and whether they scattered too much to be trusted.
"""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta

from autoplan.hardware.dtypes import Dtype
from autoplan.hardware.source import Count, Efficiency, Rate, one_of

__all__ = [
    "COLLECTIVES",
    "AttentionEfficiency",
    "AttentionPoint",
    "AttentionTable",
    "BatchedGemmPoint",
    "BatchedGemmTable",
    "Collective",
    "CommunicationPoint",
    "CommunicationTable",
    "GemmPoint",
    "GemmTable",
    "MemoryPoint",
    "MemoryTable",
]

Spread = Annotated[float, Meta(ge=0, le=1e6)]
Samples = Annotated[int, Meta(ge=0, le=2**31)]
Points = Meta(min_length=1)
COLLECTIVES = ("all_reduce", "all_gather", "reduce_scatter", "all_to_all", "send_recv")
Collective = Annotated[str, Meta(pattern=one_of(*COLLECTIVES))]


class GemmPoint(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """``[m, n, k, flops_per_s, spread, samples, noisy]``: one product of (m, k) by (k, n), launch overhead taken out."""

    m: Count
    n: Count
    k: Count
    flops_per_s: Rate
    spread: Spread = 0.0
    samples: Samples = 0
    noisy: bool = False


class GemmTable(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Measured matrix products of one dtype."""

    dtype: Dtype
    source: str
    points: Annotated[tuple[GemmPoint, ...], Points]


class BatchedGemmPoint(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """``[batch, m, n, k, flops_per_s, spread, samples, noisy]``: ``batch`` products in one kernel."""

    batch: Count
    m: Count
    n: Count
    k: Count
    flops_per_s: Rate
    spread: Spread = 0.0
    samples: Samples = 0
    noisy: bool = False


class BatchedGemmTable(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Measured batched matrix products of one dtype."""

    dtype: Dtype
    source: str
    points: Annotated[tuple[BatchedGemmPoint, ...], Points]


class MemoryPoint(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """``[nbytes, bytes_per_s, spread, samples, noisy]``: bytes read plus written by one op, launch overhead
    taken out; over a host link, bytes copied one way."""

    nbytes: Count
    bytes_per_s: Rate
    spread: Spread = 0.0
    samples: Samples = 0
    noisy: bool = False


class MemoryTable(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Measured memory-bound ops or copies, by rising size."""

    source: str
    points: Annotated[tuple[MemoryPoint, ...], Points]


class AttentionPoint(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """``[batch, m, n, k, forward_flops_per_s, backward_flops_per_s, spread, samples, noisy]``.

    ``batch`` sequences times heads, m queries, n keys, head size k. FLOP are counted as
    ``attention_flops`` counts them, half when causal.
    """

    batch: Count
    m: Count
    n: Count
    k: Count
    forward_flops_per_s: Rate
    backward_flops_per_s: Rate
    spread: Spread = 0.0
    samples: Samples = 0
    noisy: bool = False


class AttentionTable(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Measured fused attention of one dtype, causal or not."""

    dtype: Dtype
    causal: bool
    source: str
    points: Annotated[tuple[AttentionPoint, ...], Points]


class AttentionEfficiency(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Fractions of peak that fused attention reaches on long sequences."""

    forward: Efficiency
    backward: Efficiency


class CommunicationPoint(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """``[nbytes, bus_bytes_per_s, spread, samples, noisy]``: bus bandwidth as nccl-tests defines it, latency
    included; ``nbytes`` by the convention of ``Cluster.collective_time_s``."""

    nbytes: Count
    bus_bytes_per_s: Rate
    spread: Spread = 0.0
    samples: Samples = 0
    noisy: bool = False


class CommunicationTable(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True
):
    """One collective measured in groups of ``group`` units of the level below, by rising size.

    Args:
        at_once: ``all``: every group of the level was at work, so that devices of a unit shared its
            links; ``one``: a single group, with one device of each unit.
    """

    collective: Collective
    group: Annotated[int, Meta(ge=2, le=2**24)]
    at_once: Annotated[str, Meta(pattern=one_of("all", "one"))] = "all"
    source: str
    points: Annotated[tuple[CommunicationPoint, ...], Points]
