"""What an example of an op is, and the tensors that examples are made of."""

from __future__ import annotations

import operator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

aten = torch.ops.aten


@dataclass(frozen=True)
class Example:
    """One call. An argument may be another ``Example``, whose result (a list, say) is then the input."""

    target: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any] = field(default_factory=dict)
    cuts: str = ""
    label: str = ""
    constant: tuple[int, ...] = ()
    """Positions of floating arguments, the last ones, that cannot have a gradient."""
    results: int | None = None
    """How many of its results mean something; None: all."""

    @property
    def name(self) -> str:
        shown = str(self.target).removeprefix("aten.") if self.target is not operator.getitem else "getitem"
        return f"{shown}-{self.label}" if self.label else shown


_generator = torch.Generator().manual_seed(7)


def normal(*shape: int) -> Tensor:
    return torch.randn(shape, generator=_generator, dtype=torch.float64)


def positive(*shape: int) -> Tensor:
    return torch.rand(shape, generator=_generator, dtype=torch.float64) + 0.5


def whole(high: int, *shape: int) -> Tensor:
    return torch.randint(0, high, shape, generator=_generator)


def some(*shape: int) -> Tensor:
    return torch.rand(*shape, generator=_generator) < 0.5


def complexes(*shape: int) -> Tensor:
    return torch.complex(normal(*shape), normal(*shape))
