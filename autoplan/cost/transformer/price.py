"""Price configurations written by hand: arrays in, arrays out.

shape = shape_of_size(SIZES["llama3-70b"])
c = Configuration(seq=8192, micro_batch=1, micro_batches=[64, 32], tp=[8, 4], pp=[4, 8], dp=4, sp=True)
prices = price_configurations(shape, c, cluster)
prices.step_s, prices.memory.total, prices.fits
"""

from __future__ import annotations

from dataclasses import dataclass, fields, is_dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from autoplan.cost.transformer.configuration import Configuration
from autoplan.cost.transformer.formats import FORMATS, Formats
from autoplan.cost.transformer.shape import Transformer
from autoplan.cost.transformer.software import SOFTWARE, Software
from autoplan.cost.transformer.step_memory import StepMemory, step_memory
from autoplan.cost.transformer.step_times import step_times

if TYPE_CHECKING:
    from autoplan.hardware import Cluster

__all__ = ["Prices", "price_configurations", "rates"]

CHUNK = 16_384
"""Configurations priced at a time, so that arrays stay in the caches."""


@dataclass(frozen=True, slots=True)
class Prices:
    """One entry for each configuration.

    Args:
        step_s: seconds of an optimizer step; ``parts`` by cause add up to it.
        tokens_per_s: of the whole cluster; ``tokens_per_s_per_gpu`` of one device.
        model_flops_per_s: per device, attention counted causal; ``model_flops_per_s_full`` in full.
        mfu, mfu_full: of the peak of the products' format.
        memory: see ``StepMemory``.
    """

    step_s: Any
    parts: dict[str, Any]
    tokens_per_s: Any
    tokens_per_s_per_gpu: Any
    model_flops_per_s: Any
    model_flops_per_s_full: Any
    mfu: Any
    mfu_full: Any
    memory: StepMemory

    @property
    def fits(self) -> Any:
        return self.memory.fits


def price_configurations(
    shape: Transformer,
    configuration: Configuration,
    cluster: Cluster,
    formats: Formats = FORMATS["bf16"],
    software: Software = SOFTWARE["megatron-core"],
    schedule: str = "1f1b",
) -> Prices:
    """Price every configuration for one model, or each for its own (arrays in ``shape`` of the same length).

    Raises ProfileError where the device has no peak for a format, or the cluster is too small.
    """
    c = configuration.as_arrays()
    count = len(c)
    pieces = [
        _priced(_part(shape, start, count), _part(c, start, count), cluster, formats, software, schedule)
        for start in range(0, count, CHUNK)
    ]
    return pieces[0] if len(pieces) == 1 else _joined(pieces)


def _priced(
    shape: Transformer,
    c: Configuration,
    cluster: Cluster,
    formats: Formats,
    software: Software,
    schedule: str,
) -> Prices:
    times = step_times(shape, c, formats, software, cluster, schedule)
    memory = step_memory(shape, c, formats, software, cluster, schedule)
    peak = cluster.device.peak(formats.products)
    return Prices(
        step_s=times.step_s,
        parts={name: s + np.zeros(len(c)) for name, s in times.parts.items()},
        memory=memory,
        **rates(shape, c, times.step_s, peak),
    )


def rates(shape: Transformer, c: Configuration, step_s: Any, peak: float) -> dict[str, Any]:
    """What steps of ``step_s`` come to, under the names that ``Prices`` has; ``peak`` is FLOP/s of the mean device."""
    tokens = c.global_batch * c.seq
    passes = np.where(c.frozen, 2.0, 3.0)
    causal, full = (
        passes * tokens * shape.forward_flops_per_token(c.seq / c.packed, full_attention=f) / c.world / step_s
        for f in (False, True)
    )
    rate = tokens / step_s
    return {
        "tokens_per_s": rate,
        "tokens_per_s_per_gpu": rate / c.world,
        "model_flops_per_s": causal,
        "model_flops_per_s_full": full,
        "mfu": causal / peak,
        "mfu_full": full / peak,
    }


def _part(value: Any, start: int, count: int) -> Any:
    """A slice of every array of ``count`` entries in a record."""
    if count <= CHUNK:
        return value

    def cut(field: Any) -> Any:
        whole = isinstance(field, np.ndarray) and field.ndim == 1 and len(field) == count
        return field[start : start + CHUNK] if whole else field

    return replace(value, **{f.name: cut(getattr(value, f.name)) for f in fields(value)})


def _joined(pieces: list[Any]) -> Any:
    """Records of arrays as one record."""
    first = pieces[0]
    if isinstance(first, np.ndarray):
        return np.concatenate([np.atleast_1d(piece) for piece in pieces])
    if isinstance(first, dict):
        return {name: _joined([piece[name] for piece in pieces]) for name in first}
    if is_dataclass(first) and not isinstance(first, type):
        joined = {f.name: _joined([getattr(piece, f.name) for piece in pieces]) for f in fields(first)}
        return type(first)(**joined)
    return first
