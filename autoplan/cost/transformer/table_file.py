"""Tables of runs as CSV files, read as text and written with the predicted columns."""

from __future__ import annotations

import codecs
import csv
import io
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from autoplan.cost.transformer.price_rows import PREDICTED, PricedRow
from autoplan.cost.transformer.row_fields import column_name
from autoplan.errors import InputError

__all__ = ["read_table", "write_table"]

DELIMITERS = ",\t;|"


def read_table(path: str) -> tuple[list[str], list[dict[str, Any]]]:
    """Header and rows of a CSV file (``-`` is standard input): commas, tabs, semicolons or bars between fields;
    UTF-8, UTF-16 with its mark, or else Latin-1.

    Raises:
        InputError: it cannot be read, is not CSV, or has none of the columns that describe a run.
    """
    before = csv.field_size_limit()
    try:
        text = _text(Path(path).read_bytes() if path != "-" else _standard_input())
        csv.field_size_limit(max(len(text), before))
        reader = csv.DictReader(io.StringIO(text, newline=""), delimiter=_delimiter(text))
        header = [name for name in reader.fieldnames or [] if name is not None]
        rows = list(reader)
    except (OSError, ValueError, csv.Error) as error:
        raise InputError("--table", path, f"a CSV file ({error})", "correct the file or its path") from None
    finally:
        csv.field_size_limit(before)
    known = {column_name(name) for name in header}
    if not known & {"model", "layers", "gpu"}:
        raise InputError(
            "--table",
            path,
            "a header with model, layers, gpu, …",
            "see `autoplan estimate --help` for the columns",
        )
    return header, rows


def _standard_input() -> bytes:
    return sys.stdin.buffer.read() if hasattr(sys.stdin, "buffer") else sys.stdin.read().encode()


def _text(data: bytes) -> str:
    """Raises UnicodeDecodeError where a UTF-16 file ends inside a character."""
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return data.decode("utf-16")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        return data.decode("latin-1")


def _delimiter(text: str) -> str:
    """What the first line has most of."""
    line = text.split("\n", 1)[0]
    return max(DELIMITERS, key=line.count)


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
