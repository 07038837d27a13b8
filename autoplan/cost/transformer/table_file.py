"""Tables of runs as CSV files, read as text and written with the predicted columns."""

from __future__ import annotations

import csv
import io
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from autoplan.cost.transformer.price_rows import PREDICTED, PricedRow
from autoplan.errors import InputError

__all__ = ["read_table", "write_table"]


def read_table(path: str) -> tuple[list[str], list[dict[str, Any]]]:
    """Header and rows of a CSV file (``-`` is standard input).

    Raises:
        InputError: it cannot be read, is not CSV in UTF-8, or has none of the columns that describe a run.
    """
    try:
        text = sys.stdin.read() if path == "-" else Path(path).read_text(encoding="utf-8-sig")
        reader = csv.DictReader(io.StringIO(text, newline=""))
        header = [name for name in reader.fieldnames or [] if name is not None]
        rows = list(reader)
    except (OSError, UnicodeDecodeError, ValueError, csv.Error) as error:
        raise InputError(
            "--table", path, f"a CSV file in UTF-8 ({error})", "correct the file or its path"
        ) from None
    known = {name.strip() for name in header}
    if not known & {"model", "layers", "gpu"}:
        raise InputError(
            "--table",
            path,
            "a header with model, layers, gpu, …",
            "see `autoplan estimate --help` for the columns",
        )
    return header, rows


def write_table(
    path: str, header: Sequence[str], rows: Sequence[dict[str, Any]], priced: Sequence[PricedRow]
) -> None:
    """The rows as they were, then ``PREDICTED`` (``-`` is standard output). Raises InputError."""
    names = [*(name for name in header if name not in PREDICTED), *PREDICTED]
    buffer = io.StringIO(newline="")
    writer = csv.DictWriter(buffer, names, extrasaction="ignore", restval="", lineterminator="\n")
    writer.writeheader()
    for row, prediction in zip(rows, priced, strict=True):
        writer.writerow({**row, **prediction.columns()})
    if path == "-":
        sys.stdout.write(buffer.getvalue())
        return
    try:
        Path(path).write_text(buffer.getvalue(), encoding="utf-8", newline="")
    except OSError as error:
        raise InputError(
            "--out", path, f"a file that can be written ({error})", "choose another path"
        ) from None
