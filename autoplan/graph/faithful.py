"""What a captured graph would leave out without a word, and how each is kept, or refused by name.

torch.export records the ops that forward runs. It does not record hooks on gradients, an autocast that is on, or that
a tensor came out of inference mode; it takes a number that Python drew at random for a constant; and once it makes a
graph functional it forgets which ops ran without gradient.
"""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator
from typing import Any

import numpy
import torch
from torch import Tensor, fx, nn
from torch.overrides import TorchFunctionMode

from autoplan.errors import TraceError

__all__ = ["check_hooks", "check_numbers", "faithful", "keep_no_grad"]

_aten = torch.ops.aten
_DRAWN = (
    "a forward that takes the same way in every step",
    "draw with torch, whose draws are part of the graph, or switch this off in the model's configuration",
)
_HOOKS = (Tensor.register_hook, Tensor.register_post_accumulate_grad_hook)


def check_hooks(model: nn.Module) -> None:
    """Raise TraceError if a parameter's gradient passes through a hook, which a plan's parameters would not have."""
    for name, parameter in model.named_parameters():
        if parameter._backward_hooks or getattr(parameter, "_post_accumulate_grad_hooks", None):
            raise TraceError(
                name, "a hook on its gradient", "parameters without hooks",
                "remove the hook; change gradients between backward and the optimizer's step",
            )  # fmt: skip


def check_numbers(graph: fx.Graph, path: str) -> None:
    """Raise TraceError if forward reads a number out of a tensor, which each step might have another value of."""
    for node in graph.nodes:
        if isinstance(node.meta.get("val"), torch.SymInt | torch.SymFloat | torch.SymBool):
            raise TraceError(
                path, f"{node.target}: a number read from a tensor", "a forward whose numbers do not depend on data",
                "leave out .item(), int() and float(); a tensor of one element does the same",
            )  # fmt: skip


@contextlib.contextmanager
def faithful(path: str) -> Iterator[None]:
    """While ``path`` is captured: refuse what the graph would not show.

    Raises:
        TraceError: forward turns autocast or inference mode on, hooks a gradient, or draws from Python's or
            numpy's random numbers.
    """
    python_state, numpy_state = random.getstate(), _numpy_state()
    with _Watch(path):
        yield
    drawn = "random" if random.getstate() != python_state else None
    if _numpy_state() != numpy_state:
        drawn = "numpy.random"
    if drawn is not None:
        raise TraceError(path, f"a number drawn with {drawn}", *_DRAWN)


def _numpy_state() -> bytes:
    _, keys, position, *_ = numpy.random.get_state()
    return keys.tobytes() + bytes(str(position), "ascii")  # type: ignore[union-attr]


class _Watch(TorchFunctionMode):
    """Looks at the state of torch at each call that forward makes."""

    def __init__(self, path: str) -> None:
        super().__init__()
        self._path = path

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in _HOOKS:
            self._refuse(
                "a hook on a gradient", "no hooks in forward", "write it as a torch.autograd.Function"
            )
        if torch.is_inference_mode_enabled():
            self._refuse("torch.inference_mode in forward", "torch.no_grad", "use torch.no_grad in its place")
        if torch.is_autocast_enabled("cuda") or torch.is_autocast_enabled("cpu"):
            self._refuse(
                "torch.autocast turned on", "one dtype for all of forward",
                "leave autocast out and give the precision instead (--precision, parallelize(precision=…)); "
                "cast by hand where an op needs another dtype",
            )  # fmt: skip
        return func(*args, **(kwargs or {}))

    def _refuse(self, value: str, expected: str, remedy: str) -> None:
        raise TraceError(self._path, value, expected, remedy)


def keep_no_grad(owner: fx.GraphModule) -> None:
    """Detach what comes out of each no-grad region of an exported graph, in place.

    Made functional, a graph has its regions inlined, and what was constant to autograd would become differentiable.
    """
    for node in list(owner.graph.nodes):
        inner = _region(owner, node)
        if inner is None:
            continue
        keep_no_grad(inner)
        if "set_grad" in _name(node) and not node.args[0]:
            for used in list(node.users):
                _detach(owner.graph, used)
    owner.recompile()


def _region(owner: fx.GraphModule, node: fx.Node) -> fx.GraphModule | None:
    if node.op != "call_function" or not _name(node).startswith("wrap_with_"):
        return None
    held = next(arg for arg in node.args if isinstance(arg, fx.Node) and arg.op == "get_attr")
    return getattr(owner, str(held.target))


def _name(node: fx.Node) -> str:
    return getattr(node.target, "__name__", str(node.target))


def _detach(graph: fx.Graph, value: fx.Node) -> None:
    """Let all users of one result of a region read it detached."""
    if not isinstance(value.meta.get("val"), Tensor) or not value.meta["val"].is_floating_point():
        return
    with graph.inserting_after(value):
        detached = graph.call_function(_aten.detach.default, (value,))
    detached.meta.update(value.meta)
    value.replace_all_uses_with(detached, lambda user: user is not detached)
