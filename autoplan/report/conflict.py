"""No plan fits: the error that says what cannot be met together, and what would mend it."""

from __future__ import annotations

from autoplan.errors import NoPlanError
from autoplan.search.result import SearchResult

__all__ = ["no_plan_error"]

_MOST_CURES = 3


def no_plan_error(result: SearchResult) -> NoPlanError:
    """The error of an infeasible ``result``; the message names the cures, the smallest first."""
    texts = [cure.text.rstrip(".") for cure in result.cures[:_MOST_CURES]]
    remedy = "; or ".join(texts) or "use more GPUs, or release a pinned decision"
    return NoPlanError("plan", result.conflict, "a plan that fits every rank's memory", remedy)
