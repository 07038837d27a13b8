"""What a script calls that the model's own files define."""

from __future__ import annotations

import importlib
from functools import cache, reduce

from autoplan.graph.functions import FunctionCall

__all__ = ["function_of"]


@cache
def function_of(module: str, name: str) -> FunctionCall:
    """The call of an ``autograd.Function``, by its module and name."""
    return FunctionCall(reduce(getattr, name.split("."), importlib.import_module(module)))  # type: ignore[arg-type]
