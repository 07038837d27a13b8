"""Finding the repeated blocks of a module tree, before anything is traced.

Most of a model's depth is siblings in one ``ModuleList`` or ``Sequential`` that differ only in the
values of their parameters. Two siblings are copies of one block when their *signatures* are equal:
class, parameters and buffers (name, shape, dtype, requires_grad), the plain attributes and hooks of
every submodule, and so on down the tree. A sibling that differs from all others of its class (a first dense
layer, layers that each hold a constant of their own) is a block too, of one copy: stages are cut between
blocks. An integer attribute that merely counts the siblings
(``layer_idx``) is left out of the signature. When they are traced, the last copy is checked to give the
same graph as the first, and so is every copy if forward reads such a counter.
"""

from __future__ import annotations

import enum
import functools
import types
from collections import Counter
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

__all__ = ["Repeat", "find_repeats"]

_PLAIN = (bool, int, float, str, type(None), type, enum.Enum, types.FunctionType, types.BuiltinFunctionType,
          types.MethodType, functools.partial, torch.dtype, torch.device)  # fmt: skip

_BARE = vars(nn.Module())
"""What every module has. As long as it is empty it tells nothing, and it is most of what there is to compare."""


@dataclass(frozen=True, slots=True)
class Repeat:
    """Copies of one block, or the one there is: module paths in order, the modules, and the attributes that only
    count them."""

    paths: tuple[str, ...]
    modules: tuple[nn.Module, ...]
    counters: frozenset[str] = frozenset()


def find_repeats(model: nn.Module) -> list[Repeat]:
    """The repeated blocks of ``model``, outermost first; a block inside a block is not reported.

    A sibling counts only if it has a forward, parameters and submodules of its own (a bare ``Linear`` is an op,
    not a block), and if it shares no parameter with the rest of the model. One that differs from its siblings (T5's
    first layer, which has the position bias) is a repeat of one copy if it has siblings of its class, and either some
    of these are copies or it holds no blocks itself.
    """
    shared = _shared_parameters(model)
    repeats: list[Repeat] = []
    _visit(model, "", shared, repeats)
    return repeats


def _visit(module: nn.Module, path: str, shared: set[int], repeats: list[Repeat]) -> None:
    folded: set[str] = set()
    if isinstance(module, nn.ModuleList | nn.Sequential):
        copies, counters = _copies(module, shared)
        classes = Counter(type(module._modules[name]) for names in copies.values() for name in names)
        copied = {type(module._modules[names[0]]) for names in copies.values() if len(names) > 1}
        for names in copies.values():
            first = module._modules[names[0]]
            assert first is not None
            lone = classes[type(first)] == 1 or (type(first) not in copied and _holds_blocks(first, shared))
            if len(names) == 1 and lone:
                continue
            folded.update(names)
            paths = tuple(f"{path}.{name}" if path else name for name in names)
            modules = tuple(module._modules[name] for name in names)
            repeats.append(Repeat(paths, modules, counters))  # type: ignore[arg-type]
    for name, child in module.named_children():
        if name not in folded:
            _visit(child, f"{path}.{name}" if path else name, shared, repeats)


def _holds_blocks(module: nn.Module, shared: set[int]) -> bool:
    """Whether a module holds blocks itself, as a stage of a vision model holds its layers."""
    inner: list[Repeat] = []
    _visit(module, "", shared, inner)
    return bool(inner)


def _copies(container: nn.Module, shared: set[int]) -> tuple[dict[Any, list[str]], frozenset[str]]:
    """The names of the children that have one signature, by signature; and the counters left out of it."""
    children = [
        (place, name, child)
        for place, (name, child) in enumerate(container.named_children())
        if type(child).forward is not nn.Module.forward
        and next(child.children(), None) is not None
        and next(child.parameters(), None) is not None
        and not (shared and any(id(p) in shared for p in child.parameters()))
    ]
    counters = _counting_attributes([(place, child) for place, _, child in children])
    groups: dict[Any, list[str]] = {}
    for _, name, child in children:
        groups.setdefault(_signature(child, counters), []).append(name)
    return groups, frozenset(counters)


def _shared_parameters(model: nn.Module) -> set[int]:
    seen: dict[int, int] = {}
    for _, parameter in model.named_parameters(remove_duplicate=False):
        seen[id(parameter)] = seen.get(id(parameter), 0) + 1
    return {key for key, times in seen.items() if times > 1}


def _counting_attributes(siblings: list[tuple[int, nn.Module]]) -> set[str]:
    """Names of integer attributes whose values count the siblings that have them, by their places in the list.

    What has one value in all of them counts nothing.
    """
    offsets: dict[str, set[int]] = {}
    values: dict[str, set[int]] = {}
    for index, sibling in siblings:
        here: dict[str, set[int]] = {}
        for module in sibling.modules():
            for attribute, value in vars(module).items():
                if type(value) is int:
                    here.setdefault(attribute, set()).add(value)
        for attribute, found in here.items():
            shifted = {value - index for value in found}
            offsets[attribute] = offsets.get(attribute, shifted) & shifted
            values.setdefault(attribute, set()).update(found)
    return {name for name, common in offsets.items() if common and len(values[name]) > 1}


def _signature(module: nn.Module, counters: set[str]) -> Any:
    tensors = tuple(
        (kind, name, tuple(t.shape), str(t.dtype), t.requires_grad)
        for kind, table in (("p", module._parameters), ("b", module._buffers))
        for name, t in sorted(table.items())
        if t is not None
    )
    plain = tuple(
        (name, None if name in counters else _shown(value))
        for name, value in sorted(vars(module).items())
        if not (name in _BARE and value == _BARE[name]) and not name.startswith("__") and _is_plain(value)
    )
    children = tuple((name, _signature(child, counters)) for name, child in module.named_children())
    return type(module), tensors, plain, children


def _shown(value: Any) -> str:
    """A function made anew for each copy is the same one, if it holds nothing of its own."""
    if isinstance(value, types.FunctionType) and value.__closure__ is None:
        return f"{value.__code__} {value.__defaults__} {value.__kwdefaults__}"
    return repr(value)


def _is_plain(value: Any) -> bool:
    if isinstance(value, tuple | list):
        return all(_is_plain(item) for item in value)
    if isinstance(value, dict):
        return all(_is_plain(item) for pair in value.items() for item in pair)
    return isinstance(value, _PLAIN)
