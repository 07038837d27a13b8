"""The source of a few functions with all that they need, as text that stands alone.

Starting from some definitions of this package, those that they name are taken along, each from its own source,
so that what an emitted script does is what the program does, to the letter.
"""

from __future__ import annotations

import ast
import builtins
import importlib
import inspect
from collections.abc import Iterable
from functools import cache
from types import ModuleType
from typing import Any

__all__ = ["linked"]

_PACKAGE = "autoplan"


def linked(roots: Iterable[Any]) -> tuple[list[str], list[str]]:
    """(imports, definitions) that make ``roots``, functions and classes of this package, work elsewhere."""
    linker = _Linker()
    for root in roots:
        linker.take(root.__module__, root.__qualname__)
    return sorted(linker.imports), linker.in_order()


class _Linker:
    def __init__(self) -> None:
        self.imports: set[str] = set()
        self.found: dict[
            str, tuple[str, ast.stmt | None]
        ] = {}  # by name: home module, statement (None: an error)

    def take(self, module: str, name: str) -> None:
        """Take a top-level definition, and all that it names."""
        statement = None if module == f"{_PACKAGE}.errors" else _top_level(module)[name]
        if isinstance(statement, ast.Import | ast.ImportFrom):
            self._import(statement, name)
            return
        if name in self.found:
            assert self.found[name][0] == module, f"{name} is in {module} and in {self.found[name][0]}"
            return
        self.found[name] = module, statement
        for used in sorted(_names(statement)) if statement is not None else ():
            if used in _top_level(module):
                self.take(module, used)

    def _import(self, statement: ast.Import | ast.ImportFrom, name: str) -> None:
        for alias in statement.names:
            if (alias.asname or alias.name.split(".")[0]) != name:
                continue
            renamed = f" as {alias.asname}" if alias.asname else ""
            if isinstance(statement, ast.Import):
                self.imports.add(f"import {alias.name}{renamed}")
            elif (statement.module or "").split(".")[0] == _PACKAGE:
                found = getattr(importlib.import_module(statement.module or ""), alias.name)
                self.take(getattr(found, "__module__", statement.module) or "", alias.name)
            else:
                self.imports.add(f"from {statement.module} import {alias.name}{renamed}")

    def in_order(self) -> list[str]:
        """The definitions, each after those that it needs when it is made."""
        made: dict[tuple[str, int], str] = {}
        entered: set[str] = set()

        def enter(name: str) -> None:
            if name in entered:
                return
            entered.add(name)
            module, statement = self.found[name]
            if statement is None:
                made[module, len(made)] = _error(name)
                return
            for used in sorted(_names_at_once(statement)):
                if used in self.found:
                    enter(used)
            made.setdefault((module, statement.lineno), _source(module, statement))

        for name in self.found:
            enter(name)
        return list(made.values())


def _names_at_once(statement: ast.stmt) -> set[str]:
    """The names that a statement needs when it runs, not those in the bodies of functions."""
    inside: set[str] = set()
    if isinstance(statement, ast.FunctionDef):
        defaults = [*statement.args.defaults, *statement.args.kw_defaults]
        parts: list[ast.AST] = [*statement.decorator_list, *(d for d in defaults if d is not None)]
    elif isinstance(statement, ast.ClassDef):
        parts = [*statement.decorator_list, *statement.bases]
        for part in statement.body:
            if isinstance(part, ast.FunctionDef):
                inside |= _names_at_once(part)
            elif not isinstance(part, ast.AnnAssign):  # an annotation is never evaluated
                parts.append(part)
    else:
        parts = [statement]
    return inside | {name for part in parts for name in _names(part)}


@cache
def _module(name: str) -> ModuleType:
    return importlib.import_module(name)


@cache
def _top_level(module: str) -> dict[str, ast.stmt]:
    """A module's top-level statements by the names that they bind."""
    found: dict[str, ast.stmt] = {}
    for statement in ast.parse(inspect.getsource(_module(module))).body:
        if isinstance(statement, ast.FunctionDef | ast.ClassDef):
            found[statement.name] = statement
        elif isinstance(statement, ast.Import | ast.ImportFrom):
            found.update({alias.asname or alias.name.split(".")[0]: statement for alias in statement.names})
        elif isinstance(statement, ast.Assign | ast.AnnAssign):
            targets = statement.targets if isinstance(statement, ast.Assign) else [statement.target]
            names = {n.id for target in targets for n in ast.walk(target) if isinstance(n, ast.Name)}
            found.update(dict.fromkeys(names, statement))
    return found


def _names(statement: ast.AST) -> set[str]:
    """The names that a statement reads."""
    return {
        node.id
        for node in ast.walk(statement)
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load) and not hasattr(builtins, node.id)
    }


def _source(module: str, statement: ast.stmt) -> str:
    lines = inspect.getsource(_module(module)).splitlines()
    decorators = getattr(statement, "decorator_list", [])
    first = min([statement.lineno, *(d.lineno for d in decorators)])
    return "\n".join(lines[first - 1 : statement.end_lineno])


def _error(name: str) -> str:
    return f'class {name}(ValueError):\n    """A value is not what was expected: (field, value, expected, remedy)."""'
