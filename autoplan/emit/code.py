"""A local graph as the source of a class that somebody may read: its ops in order, grouped by the model's modules."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import torch
from torch import fx

from autoplan.emit.named import function_of
from autoplan.errors import PlanError
from autoplan.graph import gpu_kernels
from autoplan.graph.functions import FunctionCall
from autoplan.graph.sources import grouped_mm
from autoplan.rewrite.keeping import Planned

__all__ = ["GROUPS", "Code", "class_names", "forward_code"]

GROUPS = {axis: f"<process group of {axis}>" for axis in ("tp", "cp", "ep")}
"""What stands for the name of a mesh axis's process group, which is known when the script runs."""

_OPERATORS = {
    "grouped_mm": (grouped_mm.__name__, "grouped_mm"),
    "rms_norm": (gpu_kernels.__name__, "_fused_rms_norm", "_fused_rms_norm_backward"),
}
"""Where this package's operators are: modules, and the functions in them."""

_FREED = re.compile(r";\s+\w+ = (?:\w+ = )*None(?=\s|$)")
_STANDARD = {"torch", "device", "inf", "nan"}


@dataclass(frozen=True, slots=True)
class Code:
    """A ``forward`` method, the functions of this package that it calls (modules, names), and the imports it needs."""

    text: str
    calls: tuple[tuple[str, str], ...]
    imports: tuple[str, ...]


def forward_code(
    graph: fx.Graph, paths: Mapping[str, str] | None = None, steps: Mapping[fx.Node, str] | None = None
) -> Code:
    """The method that runs ``graph``. ``paths`` gives the module of each op, by its name, for comments; ``steps`` the
    names by which policies of recomputation know calls.

    Raises:
        PlanError: the graph calls something that no script can name.
    """
    code = graph.python_code("self")
    text, calls, imports = code.src, [], set()
    for op in sorted(set(re.findall(r"\bautoplan\.(\w+)\.\w+", text))):
        calls += _operator(op)
    for number, (node, name) in enumerate((steps or {}).items()):
        text = _planned(text, node.name, f"STEP_{number}_", name)
    for name, value in code.globals.items():
        if not re.search(rf"\b{re.escape(name)}\b", text) or name in _STANDARD:
            continue
        function = _function(value)
        if isinstance(value, ModuleType):
            imports.add(f"import {value.__name__} as {name}")
        elif value is type(None):
            text = re.sub(rf"\b{name}\b", "None", text)
        elif function is not None and "<" not in function.__qualname__:
            where = function.__module__, function.__qualname__
            text = re.sub(rf"\b{re.escape(name)}\b", f"function_of{where!r}", text)
            calls.append((function_of.__module__, "function_of"))
        elif getattr(value, "__module__", "").startswith("autoplan."):
            own = value.__name__
            text = re.sub(rf"\b{own}\b", f"{own}_0", text)  # a result may be called as the function is
            text = re.sub(rf"\b{re.escape(name)}\b", own, text)
            calls.append((value.__module__, value.__qualname__))
        elif "<" not in getattr(value, "__qualname__", "<") and "." not in value.__qualname__:
            imports.add(f"from {value.__module__} import {value.__qualname__} as {name}")
        else:
            raise PlanError(
                "model", repr(value), "calls that a script can name", "run the plan with autoplan.parallelize"
            )
    for axis, name in GROUPS.items():
        text = text.replace(f"'{name}'", f"{axis.upper()}_GROUP")
    text = re.sub(r"device\(type='\w+'(?:, index=\d+)?\)", "DEVICE", text)
    if steps:
        calls.append((Planned.__module__, "Planned"))
        for number, name in enumerate(steps.values()):
            text = text.replace(f"STEP_{number}_", repr(name))
    return Code(_laid_out(text, paths or {}), tuple(calls), tuple(sorted(imports)))


def _function(call: Any) -> type[torch.autograd.Function] | None:
    """The Function that is called, if one is."""
    return call.function if isinstance(call, FunctionCall) else None


def _operator(op: str) -> list[tuple[str, str]]:
    """The functions that make an operator of this package, by module and name."""
    if op not in _OPERATORS:
        raise PlanError(
            "model", op, "no op that only autoplan has, in a script", "run the plan with autoplan.parallelize"
        )
    module, *names = _OPERATORS[op]
    return [(module, name) for name in names]


def _planned(text: str, result: str, mark: str, name: str) -> str:
    """The code with the call that gives ``result`` made by way of ``keeping.Planned``; ``mark`` stands for ``name``."""
    call = rf"(?m)^(\s+{re.escape(result)} = )([\w.]+)\("
    made, count = re.subn(call, rf"\1Planned({mark}, \2)(", text, count=1)
    if not count:
        field, remedy = f"policies.{name}", "run the plan with autoplan.parallelize"
        raise PlanError(field, result, "the result of a plain call, in a script", remedy)
    return made


def _laid_out(text: str, paths: Mapping[str, str]) -> str:
    """The method's lines, with a comment wherever another module of the model begins."""
    lines, last = [], None
    for line in text.strip().splitlines():
        line = _FREED.sub("", line).rstrip()
        assigned = re.match(r"\s+(\w+) = ", line)
        path = paths.get(assigned[1]) if assigned else None
        if path is not None and path != last:
            lines.append(f"    # {path or 'the model itself'}")
            last = path
        if line.strip():
            lines.append(line)
    return "\n".join("    " + line for line in lines)


def class_names(kinds: Iterable[str], taken: Iterable[str]) -> dict[str, str]:
    """A class name for each kind of block, none of them ``taken``: ``between.3`` → ``Between3``."""
    names: dict[str, str] = {}
    used = {*taken}
    for kind in kinds:
        words = re.split(r"\W+|_+", kind)
        plain = "".join(word[:1].upper() + word[1:] for word in words if word) or "Block"
        name = next(n for n in (plain, *(f"{plain}Block{i}" for i in range(len(used) + 1))) if n not in used)
        used.add(name)
        names[kind] = name
    return names
