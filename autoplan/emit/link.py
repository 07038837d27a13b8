"""The source of a few functions with all that they need, as text that stands alone.

Starting from some definitions of this package, those that they name are taken along, each from its own source,
so that what an emitted script does is what the program does, to the letter. Of an operator (``torch.library``), so are
the statements that register something for it.
"""

from __future__ import annotations

import ast
import builtins
import importlib
import inspect
import re
from collections.abc import Iterable
from functools import cache
from types import ModuleType

__all__ = ["linked"]

_PACKAGE = "autoplan"


def linked(roots: Iterable[tuple[str, str]]) -> tuple[list[str], list[str]]:
    """(imports, definitions) that make ``roots``, by module and name functions and classes of this package, work
    elsewhere."""
    roots = list(roots)
    linker = _Linker({home: home[1] for home in roots})  # roots keep their names
    for module, name in roots:
        linker.take(module, name)
    return sorted(linker.imports), linker.in_order()


_Home = tuple[str, str]
"""Where a definition is, and its name there: module and name."""


class _Linker:
    def __init__(self, names: dict[_Home, str]) -> None:
        self.imports: set[str] = set()
        self.found: dict[_Home, ast.stmt | None] = {}  # None: an error
        self.names = names  # in the script, where a name is taken by what comes first
        self.followers: list[tuple[str, ast.stmt]] = []  # what registers something for a definition
        self.homes: dict[str, dict[str, _Home]] = {}  # by module: what its names mean

    def take(self, module: str, name: str) -> _Home | None:
        """Take a top-level definition, and all that it names; None for what is imported from elsewhere."""
        statement = None if module == f"{_PACKAGE}.errors" else _top_level(module)[name]
        if isinstance(statement, ast.Import | ast.ImportFrom):
            return self._import(statement, name)
        home = module, name
        if home in self.found:
            return home
        self.found[home] = statement
        if home not in self.names:
            taken = set(self.names.values())
            self.names[home] = next(
                n for n in (name, *(f"{name}_{i}" for i in range(2, 99))) if n not in taken
            )
        if statement is None:
            return home
        followers = [one for one in _statements(module) if _registers_for(one) == name]
        self.followers += [(module, one) for one in followers]
        for used in sorted({n for one in (statement, *followers) for n in _names(one)}):
            if used in _top_level(module) and (meant := self.take(module, used)):
                self.homes.setdefault(module, {})[used] = meant
        return home

    def _import(self, statement: ast.Import | ast.ImportFrom, name: str) -> _Home | None:
        for alias in statement.names:
            if (alias.asname or alias.name.split(".")[0]) != name:
                continue
            renamed = f" as {alias.asname}" if alias.asname else ""
            if isinstance(statement, ast.Import):
                self.imports.add(f"import {alias.name}{renamed}")
            elif (statement.module or "").split(".")[0] == _PACKAGE:
                return self.take(statement.module or "", alias.name)
            else:
                self.imports.add(f"from {statement.module} import {alias.name}{renamed}")
        return None

    def in_order(self) -> list[str]:
        """The definitions, each after those that it needs when it is made."""
        made: dict[tuple[str, int], str] = {}
        entered: set[_Home] = set()

        def enter(home: _Home) -> None:
            if home in entered:
                return
            entered.add(home)
            module, statement = home[0], self.found[home]
            if statement is None:
                made[module, len(made)] = _error(home[1])
                return
            for used in sorted(_names_at_once(statement)):
                if used in self.homes.get(module, {}):
                    enter(self.homes[module][used])
            made.setdefault((module, statement.lineno), self._written(module, statement))

        for home in self.found:
            enter(home)
        return [*made.values(), *(self._written(*follower) for follower in self.followers)]

    def _written(self, module: str, statement: ast.stmt) -> str:
        """A statement's source, with names as the script has them."""
        text = _source(module, statement)
        means = {name: (module, name) for name in _top_level(module)} | self.homes.get(module, {})
        for name, home in means.items():
            if self.names.get(home, name) != name:
                text = re.sub(rf"(?<![.\w]){name}\b", self.names[home], text)
        return text


def _registers_for(statement: ast.stmt) -> str | None:
    """The definition that a statement like ``op.register_fake(...)``, or a function decorated so, registers with."""
    calls = [statement.value] if isinstance(statement, ast.Expr) else getattr(statement, "decorator_list", [])
    for call in calls:
        method = call.func if isinstance(call, ast.Call) else call
        if isinstance(method, ast.Attribute) and method.attr.startswith("register_"):
            return method.value.id if isinstance(method.value, ast.Name) else None
    return None


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
def _statements(module: str) -> list[ast.stmt]:
    return ast.parse(inspect.getsource(_module(module))).body


@cache
def _top_level(module: str) -> dict[str, ast.stmt]:
    """A module's top-level statements by the names that they bind."""
    found: dict[str, ast.stmt] = {}
    for statement in _statements(module):
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
