"""autoplan: the fastest way to train a PyTorch model on a cluster, proven and run.

Names are loaded when they are first used, so that ``import autoplan`` stays light: torch and
ortools come in only with what needs them.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from autoplan.errors import AutoplanError
    from autoplan.graph.axes import register_axes
    from autoplan.hardware import Cluster
    from autoplan.plan import Job, Plan
    from autoplan.runtime import Program, parallelize
    from autoplan.search import SearchResult, search

__version__ = "0.1.0"
__all__ = [
    "AutoplanError",
    "Cluster",
    "Job",
    "Plan",
    "Program",
    "SearchResult",
    "parallelize",
    "register_axes",
    "search",
]

_HOME = {
    "AutoplanError": "autoplan.errors",
    "Cluster": "autoplan.hardware",
    "Job": "autoplan.plan",
    "Plan": "autoplan.plan",
    "Program": "autoplan.runtime",
    "SearchResult": "autoplan.search",
    "parallelize": "autoplan.runtime",
    "register_axes": "autoplan.graph.axes",
    "search": "autoplan.search",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'autoplan' has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOME[name]), name)
    globals()[name] = value
    return value
