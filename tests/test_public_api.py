"""The public face: every name in it resolves, has a docstring, and is written down in both places."""

from __future__ import annotations

import ast
import importlib
import inspect
import pkgutil
from pathlib import Path

import pytest

import autoplan

SOURCE = Path(autoplan.__file__)
MODULES = sorted(
    module.name
    for module in pkgutil.walk_packages(autoplan.__path__, "autoplan.")
    if not module.name.endswith("__main__")
)


def typed_names() -> set[str]:
    """Names imported for type checkers at the head of ``autoplan/__init__.py``."""
    tree = ast.parse(SOURCE.read_text(encoding="utf-8"))
    block = next(
        node
        for node in tree.body
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"
    )
    return {alias.name for node in block.body if isinstance(node, ast.ImportFrom) for alias in node.names}


def test_the_face_is_complete_and_sorted() -> None:
    assert list(autoplan.__all__) == sorted(autoplan.__all__)
    assert set(autoplan.__all__) == set(autoplan._HOME) == typed_names()


@pytest.mark.parametrize("name", autoplan.__all__)
def test_every_name_of_the_face_resolves_and_is_documented(name: str) -> None:
    assert getattr(autoplan, name).__doc__


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'parallelise'"):
        autoplan.parallelise  # noqa: B018 (reading it is the test)


def test_search_is_a_function_also_once_its_package_is_loaded() -> None:
    importlib.import_module("autoplan.search.outer")
    with pytest.raises(TypeError, match="cluster"):
        autoplan.search(None, None)  # type: ignore[call-arg]


@pytest.mark.parametrize("name", MODULES)
def test_every_module_exports_what_it_says_and_documents_it(name: str) -> None:
    module = importlib.import_module(name)
    assert module.__doc__, f"{name} has no docstring"
    for exported in getattr(module, "__all__", ()):
        value = getattr(module, exported)
        if inspect.isclass(value) or inspect.isfunction(value):
            assert value.__doc__, f"{name}.{exported} has no docstring"
