"""Layers that a model drops at random in training, by a number drawn for each: ``torch.rand([]) < p``.

Which layers run would then change from step to step, and a plan needs one program. Where p is 0 the answer
is known without drawing; else the model is refused by the line that asks.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from autoplan.errors import TraceError

__all__ = ["NoLayerDrop"]

_LESS = {Tensor.lt, Tensor.__lt__, Tensor.le, Tensor.__le__, torch.lt, torch.le}
_MORE = {Tensor.gt, Tensor.__gt__, Tensor.ge, Tensor.__ge__, torch.gt, torch.ge}


class NoLayerDrop(TorchFunctionMode):
    """Answers whether a single uniform number lies below a constant, if that constant is no probability between."""

    def __init__(self, path: str) -> None:
        super().__init__()
        self._path = path
        self._drawn: list[Tensor] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        drawn = bool(args) and any(args[0] is number for number in self._drawn)
        if drawn and func in _LESS | _MORE and len(args) == 2 and isinstance(args[1], int | float):
            if 0 < args[1] < 1:
                raise TraceError(
                    self._path,
                    f"a branch that is taken with probability {args[1]}",
                    "the same layers in every step",
                    "set the model's layer drop to 0",
                )
            return (args[1] >= 1) == (func in _LESS)
        made = func(*args, **(kwargs or {}))
        if func is torch.rand and isinstance(made, Tensor) and made.dim() == 0:
            self._drawn.append(made)
        return made
