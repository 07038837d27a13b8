"""No plan: the error that says what cannot be met together, and what would mend it."""

from __future__ import annotations

from autoplan.errors import NoPlanError
from autoplan.search.result import SearchResult, Status

__all__ = ["no_plan_error"]

_MOST_CURES = 3


def no_plan_error(result: SearchResult) -> NoPlanError:
    """The error of a ``result`` without a plan; the message names the cures, the smallest first."""
    texts = [cure.text.rstrip(".") for cure in result.cures[:_MOST_CURES]]
    remedy = "; or ".join(texts) or "use more GPUs, or release a pinned decision"
    late = result.status is Status.LIMIT
    expected = "a first plan within the time limit" if late else "a plan that fits every rank's memory"
    return NoPlanError("plan", result.conflict, expected, remedy)
