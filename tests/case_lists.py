"""Lists of cases of ``equality`` as pytest takes them."""

from __future__ import annotations

from typing import Any

import pytest
from equality import Case

__all__ = ["and_slow", "case_name"]


def case_name(case: Case) -> str:
    """A test's name: what of the case is not as usual."""
    hidden = ("model", "seed", "cp_boundary")
    shown = [f"{k}{v}" for k, v in vars(case).items() if k not in hidden and v not in (1, 0, "none", "R", "")]
    return "-".join([case.model, *shown, f"seed{case.seed}"])


def and_slow(cases: list[Case], more: list[Case]) -> list[Any]:
    """All of them, those of ``more`` for the slow list."""
    return [*cases, *(pytest.param(case, marks=pytest.mark.slow) for case in more)]
