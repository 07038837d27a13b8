"""The shape of the house: who may import whom, how long a file may be, what lies at the top level."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "autoplan"

ORDER = (
    "hardware",
    "graph",
    "plan",
    "verify",
    "cost",
    "search",
    "rewrite",
    "runtime",
    "emit",
    "report",
    "cli",
)
"""Packages in the order data flows; each may import those before it, and the leaves (errors, units, …)."""

TOP_LEVEL = {
    ".ci",
    ".gitignore",
    "CHANGELOG.md",
    "LICENSE",
    "README.md",
    "autoplan",
    "benchmarks",
    "docs",
    "examples",
    "hardware_profiles",
    "pyproject.toml",
    "tests",
}
LONGEST_FILE = 500


def sources() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def home(module: str) -> str:
    """``autoplan.graph.ir`` → ``graph``; a module of the top level is its own home."""
    return module.split(".")[1] if "." in module else ""


def rank(name: str) -> int:
    """Place in the order of data; leaves come first."""
    return ORDER.index(name) if name in ORDER else -1


def imports(path: Path) -> Iterator[tuple[int, str]]:
    """Line and name of every autoplan module that ``path`` imports, at any depth of the file."""
    package = path.relative_to(ROOT).with_suffix("").parts[:-1]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            prefix = ".".join(package[: len(package) - node.level + 1]) if node.level else ""
            module = ".".join(filter(None, (prefix, node.module)))
            # `from autoplan import graph` names a package; `from autoplan.graph import ir` a module of one.
            names = [f"{module}.{alias.name}" for alias in node.names] if module == "autoplan" else [module]
        elif isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "import_module" and node.args:
            first = node.args[0]
            names = [first.value] if isinstance(first, ast.Constant) and isinstance(first.value, str) else []
        else:
            continue
        yield from ((node.lineno, name) for name in names if name.split(".")[0] == "autoplan")


@pytest.mark.parametrize("path", sources(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_package_imports_only_those_above_it(path: Path) -> None:
    parts = path.relative_to(PACKAGE).parts
    if parts[0] in ("__init__.py", "__main__.py"):
        return  # the face and the door of the whole
    here = parts[0] if len(parts) > 1 else ""
    for line, module in imports(path):
        there = home(module)
        assert rank(there) <= rank(here), (
            f"{path.relative_to(ROOT)}:{line}: {here or 'a leaf'} imports {module}, which comes after it; "
            f"the order is {', '.join(ORDER)}"
        )


def test_every_package_has_its_place() -> None:
    packages = {path.name for path in PACKAGE.iterdir() if (path / "__init__.py").exists()}
    assert packages == set(ORDER)


def test_the_check_sees_every_kind_of_import(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(globals(), "ROOT", tmp_path)
    path = tmp_path / "autoplan" / "graph" / "ir.py"
    path.parent.mkdir(parents=True)
    path.write_text(
        "import autoplan.cli.main\n"
        "from autoplan import report\n"
        "from ..search import result\n"
        "from . import layout\n"
        "def late():\n"
        "    from autoplan.runtime import Program\n"
        "    importlib.import_module('autoplan.cost')\n"
        "if TYPE_CHECKING:\n"
        "    from autoplan.plan import Plan\n"
    )
    assert {home(module) for _, module in imports(path)} == {
        "cli",
        "report",
        "search",
        "graph",
        "runtime",
        "cost",
        "plan",
    }


def tracked() -> list[str]:
    listing = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False)
    if listing.returncode != 0:
        pytest.skip("not a git checkout")
    return listing.stdout.splitlines()


def test_no_file_is_too_long_to_read() -> None:
    lengths = {
        name: len((ROOT / name).read_text(encoding="utf-8").splitlines())
        for name in tracked()
        if name.endswith(".py") and (ROOT / name).exists()
    }
    assert {name: length for name, length in lengths.items() if length > LONGEST_FILE} == {}


def test_no_file_is_named_for_what_it_is_not() -> None:
    vague = {"utils.py", "helpers.py", "common.py", "misc.py"}
    assert [name for name in tracked() if Path(name).name in vague] == []


def test_the_top_level_holds_only_what_belongs_there() -> None:
    assert {name.split("/")[0] for name in tracked()} - TOP_LEVEL == set()


@pytest.mark.parametrize("module", ["autoplan", "autoplan.errors", "autoplan.plan", "autoplan.cli.main"])
def test_importing_stays_light(module: str) -> None:
    """torch and ortools take seconds to load; they come in only with what needs them."""
    code = f"import sys, {module}; print(*{{'torch', 'ortools', 'numpy', 'rich'}} & set(sys.modules))"
    seen = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert seen.stdout.split() == []
