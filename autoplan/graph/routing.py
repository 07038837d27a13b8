"""How evenly a router spreads tokens over experts: an assumption that the user states, or measures.

What routing does is not known before training, and not the same for two batches. The planner assumes balance
unless it is told otherwise. Only the busiest rank's tokens matter, and only where the experts of a layer are cut
over ranks: a rank that holds all of them multiplies all rows, however they are spread.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from autoplan.errors import InputError

__all__ = ["Routing"]


@dataclass(frozen=True, slots=True)
class Routing:
    """The load of the experts of every routed layer.

    Args:
        imbalance: tokens of the busiest expert over the mean of all; 1 is perfect balance.
        capacity_factor: the buffer of an expert's tokens, over the mean load. Programs of autoplan drop no
            token and have no capacity: where a rank multiplies its own experts' rows it sets aside room for all
            of them, whosever they are, which None prices. A factor prices the largest buffer of a runtime
            that bounds it; it makes no product faster, since nothing is dropped.
        counts: measured tokens of each expert, in the experts' order; they then say what ``imbalance`` does.

    Raises:
        InputError: a value that no router gives.
    """

    imbalance: float = 1.0
    capacity_factor: float | None = None
    counts: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        _check_ratio("--moe-imbalance", self.imbalance, "the busiest expert's tokens over the mean")
        if self.capacity_factor is not None:
            _check_ratio("--moe-capacity", self.capacity_factor, "an expert's buffer over its mean load")
        if self.counts:
            _check_counts(self.counts)

    @classmethod
    def from_histogram(cls, counts: Sequence[int], capacity_factor: float | None = None) -> Routing:
        """From the tokens that each expert got, in the experts' order.

        Raises:
            InputError: no counts, a negative one, or none above zero.
        """
        checked = _check_counts(tuple(counts))
        return cls(max(checked) * len(checked) / sum(checked), capacity_factor, checked)

    @classmethod
    def read(cls, path: str | Path, capacity_factor: float | None = None) -> Routing:
        """From a file of counts: a JSON list, or numbers between blanks, commas or line ends.

        Raises:
            InputError: the file cannot be read or holds something else.
        """
        try:
            text = Path(path).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(
                "--moe-histogram", str(path), "a readable text file", f"check it: {error}"
            ) from None
        return cls.from_histogram(_numbers(text, path), capacity_factor)

    def load(self, experts: int, ranks: int) -> float:
        """Tokens of the busiest of ``ranks`` ranks over their mean, when ``experts`` are cut evenly.

        With counts, each rank's are added up. Without, the busiest expert's rank holds it and average ones of
        the others, which share the rest.

        Raises:
            InputError: the counts are of another number of experts.
        """
        if self.counts and len(self.counts) != experts:
            raise InputError(
                "--moe-histogram", f"{len(self.counts)} counts", f"{experts}, one for each expert",
                "measure this model's router",
            )  # fmt: skip
        if ranks <= 1:
            return 1.0
        here = math.ceil(experts / ranks)
        if self.counts:
            busiest = max(sum(self.counts[start : start + here]) for start in range(0, experts, here))
            return busiest * ranks / sum(self.counts)
        top = min(self.imbalance, float(experts))
        rest = (experts - top) / (experts - 1) if experts > 1 else 0.0
        return (top + (here - 1) * rest) * ranks / experts

    def of_busiest(self, experts: int, ranks: int) -> Routing:
        """How evenly the rows of the busiest of ``ranks`` ranks lie on its own ``experts / ranks``."""
        here = math.ceil(experts / ranks)
        if ranks <= 1:
            return self
        if self.counts:
            shares = [self.counts[start : start + here] for start in range(0, experts, here)]
            busiest = max(shares, key=sum)
            return Routing.from_histogram(busiest, self.capacity_factor)
        top = min(self.imbalance, float(experts)) / self.load(experts, ranks)
        return Routing(min(max(top, 1.0), float(here)), self.capacity_factor)

    def room(self, experts: int, ranks: int) -> float:
        """The share of a layer's rows for which the busiest of ``ranks`` ranks sets room aside."""
        if self.capacity_factor is None or ranks <= 1:
            return 1.0
        return min(max(self.load(experts, ranks), self.capacity_factor) / ranks, 1.0)

    def __str__(self) -> str:
        """The assumption as a report states it."""
        if self.counts:
            said = f"expert load as measured on {sum(self.counts):,} tokens (busiest {self.imbalance:.3g}x the mean)"
        elif self.imbalance == 1:
            said = "experts evenly loaded"
        else:
            said = f"busiest expert {self.imbalance:.3g}x the mean"
        if self.capacity_factor is not None:
            said += f", buffers priced for {self.capacity_factor:.3g}x the mean"
        return f"{said}; no token is dropped"


def _check_ratio(field: str, value: Any, meaning: str) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 1 <= value < math.inf:
        raise InputError(field, value, f"a number of at least 1: {meaning}", f"give {field} 1.25")


def _check_counts(counts: tuple[Any, ...]) -> tuple[int, ...]:
    whole = all(isinstance(n, int) and not isinstance(n, bool) and n >= 0 for n in counts)
    if not counts or not whole or sum(counts) == 0:
        raise InputError(
            "--moe-histogram", list(counts), "a count of tokens for each expert, not all zero",
            "give one whole number per expert",
        )  # fmt: skip
    return counts


def _numbers(text: str, path: str | Path) -> list[int]:
    try:
        if text.lstrip().startswith("["):
            found = json.loads(text)
            if isinstance(found, list):
                return found
        else:
            return [int(word) for word in re.split(r"[\s,;]+", text) if word]
    except (ValueError, RecursionError):
        pass
    raise InputError(
        "--moe-histogram", str(path), "a JSON list of counts, or numbers between blanks or commas",
        "write the tokens of each expert, in order",
    )  # fmt: skip
