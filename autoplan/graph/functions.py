"""Keeping each call of a ``torch.autograd.Function`` as one op of the graph.

``torch.export`` traces straight through such a call and keeps its forward ops alone: the Function's own
backward would be lost, and the gradients would silently be others. While a model is exported,
``kept_functions`` therefore puts an operator of its own in the place of each call, and ``restore_functions``
turns that operator, in the clean graph, into the call of the Function that it stands for.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx
from torch.autograd.function import _SingleLevelFunction
from torch.fx.experimental.proxy_tensor import disable_proxy_modes_tracing

from autoplan.errors import TraceError

__all__ = ["FunctionCall", "kept_functions", "restore_functions"]

_NAMESPACE = "autoplan_functions"
_PLAIN = (int, float, bool, str, torch.dtype, torch.device, type(None))
_WRAP = "wrap it as an operator: torch.library.custom_op, with register_fake and register_autograd"


class FunctionCall:
    """Calls a Function: what a graph's node has as its target. Equal for equal Functions.

    It gives a tensor, or a tuple of tensors if there are several; results that are not tensors are left out.
    """

    def __init__(self, function: type[torch.autograd.Function]) -> None:
        self.function = function
        self.__name__ = function.__name__
        self.__module__ = function.__module__

    def __call__(self, *args: Any) -> Any:
        out: Any = self.function.apply(*args)
        tensors = (out,) if isinstance(out, Tensor) else tuple(p for p in out if isinstance(p, Tensor))
        return tensors[0] if len(tensors) == 1 else tensors

    def __eq__(self, other: object) -> bool:
        return isinstance(other, FunctionCall) and self.function is other.function

    def __hash__(self) -> int:
        return hash(self.function)

    def __str__(self) -> str:
        return f"{self.function.__module__}.{self.function.__qualname__}"

    __repr__ = __str__


@dataclass(frozen=True, slots=True)
class _Slot:
    """The place of a tensor among a call's arguments."""

    index: int


@dataclass(frozen=True, slots=True)
class _Stand:
    """What an operator stands for: a Function, and its arguments with slots for the tensors."""

    call: FunctionCall
    arguments: tuple[Any, ...]


_STANDS: dict[Any, _Stand] = {}
_OPERATORS: dict[Any, Any] = {}
_NUMBER = itertools.count()
_LIBRARY: list[torch.library.Library] = []


@contextmanager
def kept_functions() -> Iterator[None]:
    """Until the end of the block, calls of Functions other than torch's own are operators."""
    # where every `apply` ends up, those that were looked up before this block included
    _SingleLevelFunction.apply = classmethod(_apply)  # type: ignore[method-assign,assignment]
    try:
        yield
    finally:
        del _SingleLevelFunction.apply  # type: ignore[attr-defined]


def _apply(function: type[torch.autograd.Function], *args: Any, **kwargs: Any) -> Any:
    original: Callable[..., Any] = super(_SingleLevelFunction, function).apply  # type: ignore[misc]
    if function.__module__.partition(".")[0] == "torch":
        return original(*args, **kwargs)  # a checkpoint's gradient is that of what it runs
    name = f"{function.__module__}.{function.__qualname__}"
    tensors = [argument for argument in args if isinstance(argument, Tensor)]
    slots = iter(range(len(tensors)))
    template = tuple(_Slot(next(slots)) if isinstance(arg, Tensor) else _constant(name, arg) for arg in args)
    with disable_proxy_modes_tracing():
        out = original(*args, **kwargs)
    pieces = (out,) if isinstance(out, Tensor) else tuple(out)
    results = [piece for piece in pieces if isinstance(piece, Tensor)]
    if not tensors or any(result is tensor for result in results for tensor in tensors):
        raise TraceError(name, "an autograd.Function that changes or returns its input", "one that makes new tensors",
                         "return a new tensor: x.clone() or x.view_as(x)")  # fmt: skip
    made = _operator(_Stand(FunctionCall(function), template), len(tensors), results)(*tensors)
    if isinstance(out, Tensor):
        return made[0]
    rest = iter(made)
    return tuple(next(rest) if isinstance(piece, Tensor) else piece for piece in pieces)


def _constant(name: str, argument: Any) -> Any:
    if isinstance(argument, _PLAIN):
        return argument
    if isinstance(argument, dict):
        return {_constant(name, key): _constant(name, item) for key, item in argument.items()}
    if isinstance(argument, tuple | list):
        return tuple(_constant(name, item) for item in argument)
    raise TraceError(
        name,
        f"an argument that is {type(argument).__name__}",
        "an autograd.Function of tensors, numbers, strings and dtypes",
        _WRAP,
    )


def _operator(stand: _Stand, count: int, results: list[Tensor]) -> Any:
    """The operator of ``stand`` for results of these shapes, made when it is first needed."""
    shapes = tuple((tuple(r.shape), tuple(r.stride()), r.dtype) for r in results)
    key = stand.call, repr(stand.arguments), shapes
    if key not in _OPERATORS:
        if not _LIBRARY:
            _LIBRARY.append(torch.library.Library(_NAMESPACE, "DEF"))
        name = f"{stand.call.function.__name__}_{next(_NUMBER)}"
        takes = ", ".join(f"Tensor x{index}" for index in range(count))
        _LIBRARY[0].define(f"{name}({takes}) -> Tensor[]")

        def fake(*tensors: Tensor) -> list[Tensor]:
            return [
                tensors[0].new_empty_strided(shape, stride, dtype=dtype) for shape, stride, dtype in shapes
            ]

        torch.library.register_fake(f"{_NAMESPACE}::{name}", fake, lib=_LIBRARY[0])
        operator = getattr(getattr(torch.ops, _NAMESPACE), name).default
        _OPERATORS[key] = operator
        _STANDS[operator] = stand
    return _OPERATORS[key]


def restore_functions(graph: fx.Graph) -> None:
    """Call the Functions themselves, in the places of their operators."""
    for node in list(graph.nodes):
        stand = _STANDS.get(node.target)
        if stand is None:
            continue
        tensors = node.args
        arguments = tuple(tensors[a.index] if isinstance(a, _Slot) else a for a in stand.arguments)
        with graph.inserting_before(node):
            made = graph.create_node(
                "call_function", stand.call, arguments, name=stand.call.function.__name__.lower()
            )
        made.meta.update(node.meta)
        values = node.meta["val"]
        if len(values) == 1:
            made.meta["val"] = values[0]
            for piece in list(node.users):
                piece.replace_all_uses_with(made)
                graph.erase_node(piece)
        else:
            node.replace_all_uses_with(made)
        graph.erase_node(node)
