"""What a check of a plan found."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

__all__ = ["Claim", "Finding", "Illegal", "Unfamiliar", "Verdict"]


@dataclass(frozen=True, slots=True)
class Claim:
    """What was said of a plan: seconds of a step, their parts by cause, and bytes on each stage's rank; and for how
    long of a step the mean rank computes, if that was said. ``limit_bytes``: what a plan may use of a device, or where
    devices differ, of that of each stage."""

    step_s: float
    parts_s: dict[str, float]
    stage_bytes: Sequence[float]
    limit_bytes: float | Sequence[float]
    fits: bool
    busy_s: float | None = None

    @property
    def of_stages(self) -> list[tuple[float, float]]:
        """Of each stage, its bytes and its limit."""
        limits = self.limit_bytes
        return [
            (nbytes, limits if isinstance(limits, float | int) else limits[stage])
            for stage, nbytes in enumerate(self.stage_bytes)
        ]


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is wrong: where, what the plan or its price says, and what was found instead."""

    where: str
    said: Any
    found: Any

    def __str__(self) -> str:
        return f"{self.where}: the plan says {self.said}, and it is {self.found}"


@dataclass(slots=True)
class Verdict:
    """``findings`` is empty for a plan that holds. ``checked`` and ``unchecked`` say what was looked at, and what
    this package does not know how to derive."""

    findings: list[Finding] = field(default_factory=list)
    checked: list[str] = field(default_factory=list)
    unchecked: list[str] = field(default_factory=list)

    @property
    def holds(self) -> bool:
        return not self.findings

    def expect(self, where: str, said: Any, found: Any) -> None:
        """Note a finding unless the two are equal."""
        if said != found:
            self.findings.append(Finding(where, said, found))

    def close(self, where: str, said: float, found: float, within: float) -> None:
        """Note a finding unless the two numbers differ by at most that share."""
        if not abs(said - found) <= within * max(abs(said), abs(found), 1e-30):
            self.findings.append(Finding(where, said, found))


class Illegal(Exception):
    """A layout that an op or a tensor cannot have; the text says why."""


class Unfamiliar(Exception):
    """Something that the check does not know how to derive; the text names it."""
