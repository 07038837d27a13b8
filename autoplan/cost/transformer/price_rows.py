"""Price the rows of a table of runs: many rows that share a cluster, a format and a program in one call."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np

from autoplan.cost.transformer.configuration import Configuration
from autoplan.cost.transformer.formats import FORMATS
from autoplan.cost.transformer.price import Prices, price_configurations
from autoplan.cost.transformer.row_cluster import loaded_cluster, row_cluster_name, sized_cluster
from autoplan.cost.transformer.row_configuration import RowSetup, row_setup
from autoplan.cost.transformer.row_fields import Fields
from autoplan.cost.transformer.row_model import row_model
from autoplan.cost.transformer.shape import Transformer
from autoplan.cost.transformer.step_memory import step_memory
from autoplan.errors import AutoplanError

__all__ = ["PREDICTED", "PricedRow", "ReadRow", "price_rows", "read_row", "row_groups", "stacked"]

PREDICTED = (
    "pred_step_time_s",
    "pred_tokens_per_s_per_gpu",
    "pred_mem_gb",
    "pred_fits",
    "pred_assumed",
    "pred_error",
)
"""The columns that pricing adds."""

FALLBACK = {"mxfp8": "fp8", "nvfp4": "fp8", "fp8": "bf16", "tf32": "bf16", "bf16": "fp16"}
"""The format that stands in where a device has no peak for one."""


NEAR_BYTES_PER_S = 200e9
"""A host is near that is joined so fast: by NVLink-C2C (450 GB/s), not by PCIe (64 GB/s)."""


@dataclass(frozen=True, slots=True)
class ReadRow:
    """A row understood: what to price, on which profile, and what was assumed."""

    shape: Transformer
    setup: RowSetup
    cluster: str
    assumed: tuple[str, ...]
    memory_of: str


@dataclass(frozen=True, slots=True)
class PricedRow:
    """The prediction for one row; ``error`` says why there is none.

    Args:
        memory_bytes: of the rank, and by the count, that the row's notes name for ``mem_gb``: tensors of the
            fullest rank (``torch.cuda.max_memory_allocated``) unless they say otherwise.
    """

    step_s: float | None = None
    tokens_per_s_per_gpu: float | None = None
    memory_bytes: float | None = None
    fits: bool | None = None
    assumed: tuple[str, ...] = ()
    error: str = ""
    parts: Mapping[str, float] | None = None

    def columns(self) -> dict[str, str]:
        """``PREDICTED`` as text; blank where there is no prediction."""
        return {
            "pred_step_time_s": _text(self.step_s),
            "pred_tokens_per_s_per_gpu": _text(self.tokens_per_s_per_gpu),
            "pred_mem_gb": _text(None if self.memory_bytes is None else self.memory_bytes / 1e9),
            "pred_fits": "" if self.fits is None else str(int(self.fits)),
            "pred_assumed": "; ".join(self.assumed),
            "pred_error": self.error,
        }


def read_row(
    row: Mapping[str, Any], cluster: str | None = None, chosen: Mapping[str, str] | None = None
) -> ReadRow:
    """Understand one row of a table with the header of published runs.

    Args:
        cluster: a profile that replaces what ``gpu`` names.
        chosen: values for blank columns.

    Raises:
        AutoplanError: a column is wrong, or is blank and has no usual value.
    """
    read = Fields(row, chosen)
    name = cluster or row_cluster_name(read)
    profile = loaded_cluster(name)
    shape = row_model(read)
    host = profile.device.host
    near = host is not None and host.to_host_bytes_per_s > NEAR_BYTES_PER_S
    setup = row_setup(read, shape, read.text("gpu") or name, coherent=near)
    precision = setup.precision
    while FORMATS[precision].products not in profile.device.peak_flops and precision in FALLBACK:
        precision = FALLBACK[precision]
    if precision != setup.precision:
        read.assume("precision", precision, f"{profile.device.name} has no {setup.precision}")
        setup = replace(setup, precision=precision)
    memory_of = _memory_of(read, setup)
    return ReadRow(shape, setup, name, tuple(read.assumed), memory_of)


def _memory_of(read: Fields, setup: RowSetup) -> str:
    """What ``mem_gb`` counts: as noted; else Megatron's tests log the last rank's tensors, runs of older programs
    were watched by nvidia-smi, and later ones log the tensors of the fullest rank."""
    if read.noted("nvidia-smi"):
        return "device"
    if read.noted("LAST rank") or "functional test" in read.text("task").lower():
        return "last"
    if read.noted("max_(memory_)?allocated") or not setup.software.watched:
        return "tensors"
    read.assume("mem_gb", "all that the device holds", "as nvidia-smi shows it")
    return "device"


def price_rows(rows: Sequence[Mapping[str, Any]], cluster: str | None = None) -> list[PricedRow]:
    """Price every row; one that cannot be priced says why and does not stop the others."""
    groups, errors = row_groups(rows, cluster)
    priced = [PricedRow(error=errors.get(index, "")) for index in range(len(rows))]
    for members in groups:
        for index, row in _price_group(members):
            priced[index] = row
    return priced


def row_groups(
    rows: Sequence[Mapping[str, Any]], cluster: str | None = None
) -> tuple[list[list[tuple[int, ReadRow]]], dict[int, str]]:
    """Rows that can be priced in one call, each with its index; and why the others cannot, by index."""
    reads: dict[int, ReadRow] = {}
    errors: dict[int, str] = {}
    for index, row in enumerate(rows):
        try:
            reads[index] = read_row(row, cluster)
        except AutoplanError as error:
            errors[index] = str(error)
    _make_fit(rows, cluster, reads)
    return _alike(reads), errors


def _alike(reads: Mapping[int, ReadRow]) -> list[list[tuple[int, ReadRow]]]:
    """Rows that can be priced in one call."""
    groups: dict[Any, list[tuple[int, ReadRow]]] = defaultdict(list)
    for index, read in reads.items():
        setup = read.setup
        shape = read.shape
        key = (read.cluster, setup.precision, setup.software, shape.moe, shape.mla, shape.hybrid)
        groups[key].append((index, read))
    return list(groups.values())


def _make_fit(rows: Sequence[Mapping[str, Any]], cluster: str | None, reads: dict[int, ReadRow]) -> None:
    """Replace the reading of each row that does not fit by the first alternative that does, if any."""
    tried = {index: read for index, read in reads.items() if read.setup.alternatives}
    ways = {index: iter(read.setup.alternatives) for index, read in tried.items()}
    while tried:
        fitting: dict[int, bool] = {}
        for members in _alike(tried):
            fitting |= {index: fits for (index, _), fits in zip(members, _fits(members), strict=True)}
        following: dict[int, ReadRow] = {}
        for index, read in tried.items():
            if fitting[index]:
                reads[index] = read
                continue
            for chosen in ways[index]:
                try:
                    following[index] = read_row(rows[index], cluster, chosen)
                    break
                except AutoplanError:
                    continue
        tried = following


def _fits(members: Sequence[tuple[int, ReadRow]]) -> list[bool]:
    """Whether each row fits; where that cannot be told, it stays as it is."""
    reads = [read for _, read in members]
    first = reads[0]
    shape, configuration = stacked(reads)
    try:
        cluster = sized_cluster(first.cluster, max(read.setup.gpus for read in reads))
    except AutoplanError:
        return [True] * len(reads)
    memory = step_memory(shape, configuration, FORMATS[first.setup.precision], first.setup.software, cluster)
    return np.broadcast_to(memory.fits, len(reads)).tolist()


def _price_group(members: list[tuple[int, ReadRow]]) -> list[tuple[int, PricedRow]]:
    """Rows of one group together; one by one if that fails, so that only the guilty row has an error."""
    try:
        prices = _prices([read for _, read in members])
    except AutoplanError as error:
        if len(members) == 1:
            index, read = members[0]
            return [(index, PricedRow(assumed=read.assumed, error=str(error)))]
        return [row for member in members for row in _price_group([member])]
    return [(index, _row(prices, at, read)) for at, (index, read) in enumerate(members)]


def _prices(reads: list[ReadRow]) -> Prices:
    first = reads[0]
    shape, configuration = stacked(reads)
    cluster = sized_cluster(first.cluster, max(read.setup.gpus for read in reads))
    formats = FORMATS[first.setup.precision]
    return price_configurations(shape, configuration, cluster, formats, first.setup.software)


def stacked(reads: Sequence[ReadRow]) -> tuple[Transformer, Configuration]:
    """The models and configurations of a group of rows as arrays."""
    structure = {"moe", "mla", "hybrid"}
    shape = Transformer(
        **{
            f.name: np.array([float(getattr(read.shape, f.name)) for read in reads])
            for f in fields(Transformer)
            if f.name not in structure
        },
        moe=reads[0].shape.moe,
        mla=reads[0].shape.mla,
        hybrid=reads[0].shape.hybrid,
    )
    configuration = Configuration(
        **{
            f.name: np.array([getattr(read.setup.configuration, f.name) for read in reads])
            for f in fields(Configuration)
        }
    )
    return shape, configuration


def _row(prices: Prices, at: int, read: ReadRow) -> PricedRow:
    def one(value: Any) -> float:
        return float(np.broadcast_to(value, np.shape(prices.step_s))[at])

    memory = prices.memory
    counted = {"device": memory.total, "last": memory.last.allocated, "tensors": memory.allocated}
    step_s = one(prices.step_s)
    if not np.isfinite(step_s) or step_s <= 0:
        return PricedRow(assumed=read.assumed, error="the dimensions of this row have no finite price")
    return PricedRow(
        step_s=step_s,
        tokens_per_s_per_gpu=one(prices.tokens_per_s_per_gpu),
        memory_bytes=one(counted[read.memory_of]),
        fits=bool(np.broadcast_to(prices.fits, np.shape(prices.step_s))[at]),
        assumed=read.assumed,
        parts={name: one(s) for name, s in prices.parts.items()},
    )


def _text(value: float | None) -> str:
    return "" if value is None else f"{value:.6g}"
