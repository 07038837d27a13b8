"""Weights of a model on the meta device, made module by module, so that only one module is ever whole in memory.

A module is given memory, its own ``reset_parameters`` runs, then the ``_init_weights`` of the nearest module
above it that has one (as Hugging Face models do), and then it is freed again. Each starts from a seed made of
the run's seed and the module's name: what comes out depends on no plan, no rank and no order.
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Collection, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from autoplan.errors import ModelError

__all__ = ["initialised"]


def initialised(model: nn.Module, wanted: Collection[str], seed: int) -> Iterator[tuple[str, Tensor]]:
    """The initial values, on the CPU, of the meta tensors named in ``wanted``; the model is left as it is.

    Raises:
        ModelError: nothing initialises one of them.
    """
    for path, module, deep in _groups(model, ""):
        mine = [
            f"{path}.{name}" if path else name
            for name, _ in (
                *module.named_parameters(recurse=deep, remove_duplicate=False),
                *module.named_buffers(recurse=deep, remove_duplicate=False),
            )
        ]
        if not any(name in wanted for name in mine):
            continue
        made = _made(model, path, module, deep, seed)
        for name in mine:
            tensor = made.get(name)
            if tensor is not None and name in wanted:
                if not _is_set(tensor):
                    raise ModelError(
                        f"model.{name}",
                        "a tensor on the meta device that nothing initialises",
                        f"a reset_parameters() of {type(module).__name__}, or an _init_weights(module) above it",
                        "write one, or pass a model with weights",
                    )
                yield name, tensor


def _groups(module: nn.Module, path: str) -> Iterator[tuple[str, nn.Module, bool]]:
    """(path, module, deep): what is initialised at once. A module's own reset may reach into its children."""
    if _resets(module) is not None and any(True for _ in module.parameters()):
        yield path, module, True
        return
    yield path, module, False
    for name, child in module.named_children():
        yield from _groups(child, f"{path}.{name}" if path else name)


def _resets(module: nn.Module) -> Any:
    return getattr(module, "reset_parameters", None) or getattr(module, "_reset_parameters", None)


def _made(model: nn.Module, path: str, module: nn.Module, deep: bool, seed: int) -> dict[str, Tensor]:
    """The group's tensors by name, initialised."""
    if deep:
        twin = copy.deepcopy(module)
        for part in twin.modules():
            _give_memory(part)
    else:
        twin = copy.copy(module)
        twin._parameters, twin._buffers = dict(module._parameters), dict(module._buffers)
        _give_memory(twin)
    above = _init_weights_above(model, path)
    with torch.random.fork_rng(devices=[]), torch.no_grad(), torch.device("cpu"):
        torch.manual_seed(int.from_bytes(hashlib.sha256(f"{seed}/{path}".encode()).digest()[:7]))
        for part in _children_first(twin) if deep else [twin]:
            reset = _resets(part)
            if reset is not None:
                reset()
        if above is not None:
            for part in _children_first(twin) if deep else [twin]:
                above(part)
    named = (
        *twin.named_parameters(recurse=deep, remove_duplicate=False),
        *twin.named_buffers(recurse=deep, remove_duplicate=False),
    )
    return {f"{path}.{name}" if path else name: tensor.detach() for name, tensor in named}


def _children_first(module: nn.Module) -> Iterator[nn.Module]:
    for child in module.children():
        yield from _children_first(child)
    yield module


def _init_weights_above(model: nn.Module, path: str) -> Any:
    """The ``_init_weights`` of the module at ``path`` or of the nearest above it."""
    words = path.split(".") if path else []
    for length in range(len(words), -1, -1):
        found = getattr(model.get_submodule(".".join(words[:length])), "_init_weights", None)
        if callable(found):
            return found
    return None


def _give_memory(module: nn.Module) -> None:
    """Memory for a module's own meta tensors, marked so that what is never written can be told."""
    for name, parameter in module._parameters.items():
        if parameter is not None and parameter.is_meta:
            empty = _marked(parameter)
            module._parameters[name] = nn.Parameter(empty, parameter.requires_grad)
    for name, buffer in module._buffers.items():
        if buffer is not None and buffer.is_meta:
            module._buffers[name] = _marked(buffer)


def _marked(tensor: Tensor) -> Tensor:
    return torch.full(tensor.shape, _mark(tensor.dtype), dtype=tensor.dtype, device="cpu")


def _mark(dtype: torch.dtype) -> Any:
    if dtype.is_floating_point or dtype.is_complex:
        return float("nan")
    return True if dtype is torch.bool else torch.iinfo(dtype).max


def _is_set(tensor: Tensor) -> bool:
    if not tensor.numel():
        return True
    if tensor.is_floating_point() or tensor.is_complex():
        return not bool(tensor.isnan().any())
    return not bool((tensor == _mark(tensor.dtype)).all())
