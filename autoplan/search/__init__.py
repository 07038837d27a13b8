"""Which choice is best: layouts of ops, stages, degrees, and the proof that nothing else beats them.

Names are loaded when they are first used: neither torch nor ortools comes in with this package.
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from autoplan.search.outer import search
    from autoplan.search.result import Candidate, Cure, SearchResult, Status

__all__ = ["Candidate", "Cure", "SearchResult", "Status", "search"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'autoplan.search' has no attribute {name!r}")
    home = "autoplan.search.outer" if name == "search" else "autoplan.search.result"
    value = getattr(importlib.import_module(home), name)
    globals()[name] = value
    return value


class _Package(ModuleType):
    """``autoplan.search`` names this package and the function alike: called, the package is the function."""

    def __call__(self, *args: Any, **options: Any) -> SearchResult:
        return __getattr__("search")(*args, **options)


sys.modules[__name__].__class__ = _Package
