"""One accelerator, or one rank's share of a CPU, and how long its ops take."""

from __future__ import annotations

from functools import cached_property
from typing import Annotated, Any, Literal

import msgspec
import numpy as np
from msgspec import Meta

from autoplan.errors import ProfileError
from autoplan.hardware.dtypes import DTYPE_BYTES, Dtype
from autoplan.hardware.gemm import (
    GemmShape,
    attention_flops,
    attention_prior,
    gemm_prior,
    row_filling,
    sizes_of,
)
from autoplan.hardware.host import HostLink
from autoplan.hardware.interpolate import LogGrid, TimeCurve, as_given, greater
from autoplan.hardware.source import (
    BytesPerSecond,
    Count,
    Efficiency,
    FlopsPerSecond,
    Money,
    Seconds,
    Spreads,
    Watts,
)
from autoplan.hardware.tables import (
    AttentionEfficiency,
    AttentionTable,
    BatchedGemmTable,
    GemmTable,
    MemoryTable,
)

__all__ = ["DTYPE_BYTES", "Device"]


class Device(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True, dict=True
):
    """What one rank computes on. Times below are seconds; sizes may be numbers or numpy arrays.

    Args:
        memory_bytes: all memory of the device; on a CPU the machine's, divided by its ranks.
        usable_bytes: what the framework can allocate of it.
        memory_bytes_per_s: peak bandwidth of that memory.
        memory_efficiency: fraction of it that large memory-bound ops reach, where not measured.
        launch_s: least time between two ops: on a GPU, from the end of one kernel to the start of the
            next while the queue is full.
        eager_op_s: time that the host's Python takes to issue one op in eager mode, if known; a
            device that computes faster waits for it.
        peak_flops: FLOP/s by dtype (dense), on a CPU the best that was measured.
        gemm_efficiency: fraction of peak that large products reach, by dtype, where not measured.
        attention_efficiency: the same for fused attention.
        compute_units: multiprocessors of a GPU; 0 on a CPU.
        threads: threads that a rank computed with when a CPU was measured.
        at_once: of a CPU's ranks, so many run at once, where they are more than its cores; 0 where each has its own.
            Figures are of all of them at work, and the fewer there are at work, the faster these run.
        tdp_w, idle_w: power at full load (the maker's limit) and at rest, if known.
        price_per_hour: US dollars for one device with its share of the node, if known.
        host: the link to the host's memory, if known.
        source: for each figure above, a key of the profile's ``sources``.
        spread, noisy: of measured figures, by name: spread of the samples, and those not to trust.
        gemm, batched_gemm, memory, attention: measured tables, which replace the fractions; of two
            tables of one dtype with the same sizes the later counts.
    """

    name: str
    kind: Literal["cuda", "cpu"]
    memory_bytes: Count
    usable_bytes: Count
    memory_bytes_per_s: BytesPerSecond
    memory_efficiency: Efficiency
    launch_s: Seconds
    peak_flops: dict[Dtype, FlopsPerSecond]
    gemm_efficiency: dict[Dtype, Efficiency]
    attention_efficiency: AttentionEfficiency
    source: dict[str, str]
    eager_op_s: Seconds | None = None
    tdp_w: Watts | None = None
    idle_w: Watts | None = None
    price_per_hour: Money | None = None
    compute_units: Annotated[int, Meta(ge=0, le=2**20)] = 0
    threads: Annotated[int, Meta(ge=0, le=2**20)] = 0
    at_once: Annotated[int, Meta(ge=0, le=2**20)] = 0
    spread: Spreads = {}
    noisy: tuple[str, ...] = ()
    host: HostLink | None = None
    gemm: tuple[GemmTable, ...] = ()
    batched_gemm: tuple[BatchedGemmTable, ...] = ()
    memory: MemoryTable | None = None
    attention: tuple[AttentionTable, ...] = ()

    def peak(self, dtype: str) -> float:
        """Peak FLOP/s of dense matrix products. Raises ProfileError where the profile has no figure."""
        if dtype not in self.peak_flops:
            known = ", ".join(self.peak_flops)
            raise ProfileError(
                "dtype",
                dtype,
                f"one that {self.name} has figures for ({known})",
                f"choose another precision, or add device.peak_flops.{dtype} to the profile",
            )
        return self.peak_flops[dtype]

    def gemm_time_s(self, gemm: GemmShape | tuple[Any, Any, Any, Any], dtype: str) -> Any:
        """Seconds for ``batch`` products of (m, k) by (k, n): the roofline with measured efficiency.

        ``max(2 b m n k / (peak eff(m, n, k)), itemsize b (m k + k n + m n) / bandwidth) + launch``
        (Williams et al., 2009, with efficiency interpolated in log m, log n, log k; the form of
        SimuMax and Calculon). Several products at once (``batch`` > 1) take the batched table where
        there is one. Where a dtype was not measured, ``gemm_prior`` stands in.
        """
        batch, m, n, k = sizes_of(gemm)
        compute_s = 2 * batch * m * n * k / self._gemm_rate(batch, m, n, k, dtype)
        nbytes = DTYPE_BYTES.get(dtype, 4) * batch * (m * k + k * n + m * n)
        return as_given(greater(compute_s, self._stream_s(nbytes)) + self.launch_s)

    def attention_time_s(
        self, batch: Any, m: Any, n: Any, k: Any, dtype: str, causal: bool, backward: bool = False
    ) -> Any:
        """Seconds for fused attention: ``batch`` sequences x heads, m queries, n keys, head size k.

        FLOP over the measured rate, or over ``peak`` times ``attention_prior``; never faster than
        reading q, k, v and writing the output (and, backward, their gradients).
        """
        flops = attention_flops(batch, m, n, k, causal=causal, backward=backward)
        nbytes = DTYPE_BYTES.get(dtype, 4) * batch * (2 * m * k + 2 * n * k) * (2 if backward else 1)
        rate = self._attention_rate(batch, m, n, k, dtype, causal, backward)
        return as_given(greater(flops / rate, self._stream_s(nbytes)) + self.launch_s)

    def memory_time_s(self, nbytes: Any) -> Any:
        """Seconds for an op that only reads and writes: ``nbytes`` in all, plus the launch."""
        return as_given(self._stream_s(nbytes) + self.launch_s)

    def _gemm_rate(self, batch: Any, m: Any, n: Any, k: Any, dtype: str) -> Any:
        batched = self._batched_gemm_grids.get(dtype)
        if batched is not None and isinstance(batch, int | float) and batch > 1:
            return batched(batch, m, n, k)
        if grid := self._gemm_grids.get(dtype):
            rate = grid(m, n, k) * self._between_points(batch, m, n, k, dtype)
            if batched is None or not isinstance(batch, np.ndarray):
                return rate
            return np.where(batch > 1, batched(batch, m, n, k), rate)
        return self._gemm_prior_rate(batch, m, n, k, dtype)

    def _between_points(self, batch: Any, m: Any, n: Any, k: Any, dtype: str) -> Any:
        """What changes from one size to the next: tiles and waves of a GPU, vector registers of a CPU."""
        if self.compute_units:
            return self._gemm_prior_rate(batch, m, n, k, dtype)
        return row_filling(n, DTYPE_BYTES.get(dtype, 4))

    def _gemm_prior_rate(self, batch: Any, m: Any, n: Any, k: Any, dtype: str) -> Any:
        ceiling = self.gemm_efficiency.get(dtype, 1.0)
        peak = self.peak(dtype)
        balance = peak / self.memory_bytes_per_s
        return peak * gemm_prior(batch, m, n, k, ceiling=ceiling, units=self.compute_units, balance=balance)

    def _attention_rate(
        self, batch: Any, m: Any, n: Any, k: Any, dtype: str, causal: bool, backward: bool
    ) -> Any:
        if grid := self._attention_grids.get((dtype, causal, backward)):
            return grid(m, n, k)
        efficiency = self.attention_efficiency
        ceiling = efficiency.backward if backward else efficiency.forward
        peak = self.peak(dtype)
        return peak * attention_prior(batch, m, n, k, ceiling=ceiling, units=self.compute_units, peak=peak)

    def _stream_s(self, nbytes: Any) -> Any:
        if self._memory_curve is None:
            return nbytes / (self.memory_bytes_per_s * self.memory_efficiency)
        return self._memory_curve(greater(nbytes, 1e-3))

    @cached_property
    def _gemm_grids(self) -> dict[str, LogGrid]:
        """Measured rates over what ``_between_points`` gives."""
        points: dict[str, dict[tuple[int, int, int], float]] = {}
        for table in self.gemm:
            rates = points.setdefault(table.dtype, {})
            for p in table.points:
                rates[p.m, p.n, p.k] = p.flops_per_s / self._between_points(1, p.m, p.n, p.k, table.dtype)
        return {
            dtype: LogGrid([(*sizes, r) for sizes, r in rates.items()]) for dtype, rates in points.items()
        }

    @cached_property
    def _batched_gemm_grids(self) -> dict[str, LogGrid]:
        points: dict[str, dict[tuple[int, int, int, int], float]] = {}
        for table in self.batched_gemm:
            for p in table.points:
                points.setdefault(table.dtype, {})[p.batch, p.m, p.n, p.k] = p.flops_per_s
        return {
            dtype: LogGrid([(*sizes, r) for sizes, r in rates.items()]) for dtype, rates in points.items()
        }

    @cached_property
    def _attention_grids(self) -> dict[tuple[str, bool, bool], LogGrid]:
        grids = {}
        for t in self.attention:
            for backward in (False, True):
                rates = [p.backward_flops_per_s if backward else p.forward_flops_per_s for p in t.points]
                points = [(p.m, p.n, p.k, rate) for p, rate in zip(t.points, rates, strict=True)]
                grids[t.dtype, t.causal, backward] = LogGrid(points)
        return grids

    @cached_property
    def _memory_curve(self) -> TimeCurve | None:
        if self.memory is None:
            return None
        points = self.memory.points
        return TimeCurve([p.nbytes for p in points], [p.nbytes / p.bytes_per_s for p in points], floor=False)
