"""One row of a table of runs, as typed fields: blanks are None, odd words become the usual ones."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

from autoplan.cost.transformer.configuration import Recompute
from autoplan.errors import InputError

__all__ = ["Fields", "column_name", "precision_name", "recompute_of", "zero_of"]

LARGEST = 1e9  # no dimension, degree or batch is above; keeps products of them finite


class Fields:
    """Typed access to a row; ``assumed`` gathers what had to be taken as usual.

    ``chosen`` fills blanks with what lets the row fit.
    """

    def __init__(self, row: Mapping[str, Any], chosen: Mapping[str, str] | None = None) -> None:
        self._row = {
            column_name(k): ("" if v is None else str(v)).strip()
            for k, v in row.items()
            if isinstance(k, str)
        }
        self.assumed: list[str] = []
        for name, value in (chosen or {}).items():
            self._row[name] = value
            self.assume(name, value, "to fit")

    def text(self, name: str) -> str:
        return self._row.get(name, "")

    def number(self, name: str, *, least: float = 0.0) -> float | None:
        """A finite number of at least ``least``; None where blank. Raises InputError."""
        text = self.text(name).replace(",", "")
        if not text or text.lower() in ("nan", "none", "n/a", "na", "-", "?"):
            return None
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not (math.isfinite(value) and least <= value <= LARGEST):
            raise InputError(
                name, self.text(name), f"a number from {least:g} to {LARGEST:g}", f"correct {name}"
            )
        return value

    def count(self, name: str, *, least: int = 1) -> int | None:
        """A whole number of at least ``least``; None where blank. Raises InputError."""
        value = self.number(name)
        if value is None:
            return None
        if value != int(value) or value < least:
            raise InputError(name, self.text(name), f"a whole number of at least {least}", f"correct {name}")
        return int(value)

    def need(self, name: str, usual: int | None, why: str) -> int:
        """``name``'s count, or the usual one (said in ``assumed``). Raises InputError if there is none."""
        value = self.count(name)
        if value is None:
            if usual is None:
                raise InputError(name, None, "a whole number of at least 1", f"give {name}")
            self.assume(name, usual, why)
            return usual
        return value

    def flag(self, name: str) -> bool | None:
        text = self.text(name).lower()
        if text in ("1", "1.0", "true", "yes", "on"):
            return True
        if text in ("0", "0.0", "false", "no", "off"):
            return False
        if not text or text in ("nan", "none"):
            return None
        raise InputError(name, self.text(name), "0 or 1", f"correct {name}")

    def assume(self, name: str, value: Any, why: str = "") -> None:
        self.assumed.append(f"{name}={value}" + (f" ({why})" if why else ""))

    def noted(self, pattern: str) -> re.Match[str] | None:
        """A match in the notes, whatever the case."""
        return re.search(pattern, self.text("notes"), re.IGNORECASE)


def column_name(text: str) -> str:
    """A column however its header is written: ``Seq Len`` and ``SEQ-LEN`` are ``seq_len``."""
    return re.sub(r"[\s-]+", "_", text.strip().lower())


def precision_name(text: str) -> str | None:
    """A format's name from what tables write; None where blank. Raises InputError."""
    word = text.lower().replace("_", "-").replace(" ", "")
    if not word or word in ("nan", "none"):
        return None
    for pattern, name in (
        (r"nvfp4|fp4", "nvfp4"),
        (r"mxfp8|fp8-?mx|mxfp", "mxfp8"),
        (r"fp8|float8|e4m3|hybrid", "fp8"),
        (r"bf16|bfloat16|amp-?bf", "bf16"),
        (r"fp16|float16|half|amp", "fp16"),
        (r"tf32", "tf32"),
        (r"fp32|float32|float", "fp32"),
        (r"mixed", "bf16"),
    ):
        if re.search(pattern, word):
            return name
    raise InputError("precision", text, "bf16, fp16, fp8, mxfp8, nvfp4, tf32 or fp32", "correct precision")


def recompute_of(text: str) -> Recompute | None:
    """A ``Recompute`` from what tables write; None where blank. Raises InputError."""
    word = text.lower()
    if not word or word == "nan":
        return None
    if word in ("none", "no", "0", "false", "off"):
        return Recompute.NONE
    if word in ("full", "1", "true", "yes", "on") or re.search(r"full|block|uniform|all", word):
        return Recompute.FULL
    if re.search(r"select|partial|core|attn|attention|layernorm|norm|act|mla|moe|mlp|minimal", word):
        return Recompute.SELECTIVE
    raise InputError("recompute", text, "none, selective or full", "correct recompute")


def zero_of(text: str) -> int | None:
    """ZeRO's stage from ``0`` to ``3``, ``fsdp``, ``fsdp(2)``, ``hsdp``; None where blank. Raises InputError."""
    word = text.lower().replace("zero", "").strip(" -_")
    if not word or word in ("nan", "none"):
        return None if word != "none" else 0
    if match := re.search(r"[0-3](?!\d)", word):
        return int(match[0])
    if "sdp" in word:
        return 3
    raise InputError("zero_stage", text, "0, 1, 2, 3, fsdp or fsdp(2)", "correct zero_stage")
