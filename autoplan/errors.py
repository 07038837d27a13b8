"""Every error that autoplan raises on purpose.

    AutoplanError                 root; carries field, value, expected, remedy
    ├── InputError                a value given by the user is wrong (exit status 2)
    │   ├── ProfileError          a hardware profile or cluster is wrong
    │   ├── ModelError            a model cannot be found, built or described
    │   └── PlanError             a plan is malformed, or does not fit this model or world
    ├── TraceError                a part of a model cannot be captured
    ├── CheckpointError           a checkpoint is damaged, incomplete, or another model's
    ├── NoPlanError               nothing in the space fits (exit status 3); carries the cures
    ├── CertificateError          a plan that was found does not pass its independent check
    └── DistributedError          ranks disagree, or the process group is not what the plan needs

A message is one line: what is wrong, the value got, what was expected, what to do.
"""

from __future__ import annotations

from typing import Any

__all__ = [
    "AutoplanError",
    "CertificateError",
    "CheckpointError",
    "DistributedError",
    "InputError",
    "ModelError",
    "NoPlanError",
    "PlanError",
    "ProfileError",
    "TraceError",
]


class AutoplanError(Exception):
    """Root of the tree.

    Args:
        field: the name of what is wrong, as the user wrote it (``--cluster``, ``level[1].latency_s``).
        value: the value that was got.
        expected: what would have been right.
        remedy: what to do next, as an imperative.
    """

    exit_status = 2

    def __init__(self, field: str, value: Any, expected: str, remedy: str) -> None:
        self.field = field
        self.value = value
        self.expected = expected
        self.remedy = remedy
        super().__init__(field, value, expected, remedy)

    def __str__(self) -> str:
        text = f"{self.field}: got {_shown(self.value)}, expected {self.expected}; {self.remedy}"
        return " ".join(text.split())

    def to_json(self) -> dict[str, Any]:
        """The ``{"error": …}`` object that every ``--json`` prints."""
        return {
            "error": {
                "field": self.field,
                "value": self.value if isinstance(self.value, int | float | str | None) else str(self.value),
                "expected": self.expected,
                "remedy": self.remedy,
            }
        }


class InputError(AutoplanError):
    """A value given by the user is wrong."""


class ProfileError(InputError):
    """A hardware profile or a cluster description is wrong."""


class ModelError(InputError):
    """A model cannot be found, built or described."""


class PlanError(InputError):
    """A plan is malformed, or does not fit the model, the batch or the world it is used with."""


class TraceError(AutoplanError):
    """A part of a model cannot be captured; ``field`` is the module path."""


class CheckpointError(AutoplanError):
    """A checkpoint cannot be written, or is damaged, incomplete or of another model; ``field`` is its path."""


class NoPlanError(AutoplanError):
    """No plan in the stated space fits; ``remedy`` names the smallest change that would cure it."""

    exit_status = 3


class CertificateError(AutoplanError):
    """A plan that was found does not pass the check that derives it again: autoplan is wrong, not the user."""

    exit_status = 1


class DistributedError(AutoplanError):
    """Ranks disagree, or the process group is not the one that the plan needs."""

    exit_status = 1


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 200 else text[:197] + "..."
