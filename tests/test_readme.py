"""Every command that README.md shows runs, in its order, in a copy of the place where a reader would type it.

Fenced ``console`` blocks give the lines that start with ``$ ``, ``bash`` blocks every line; a backslash at
the end continues a command. A ``python`` block whose first line is a comment with a file name
(``# train.py``) is that file. Installs are left to .ci/run; other commands that cannot run here are named in ``TESTED_ELSEWHERE``.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
LIMIT_S = 900

INSTALLS = re.compile(r"^(python -m )?pip install \S+( && |$)")
"""What .ci/run does in an environment of its own; here it would replace the package under test."""

TESTED_ELSEWHERE = {
    "python -m pytest -n 2 --dist loadfile": "this is the run that you are in",
}
"""Commands of the README, without their installs, that are not run by this test, and why."""


SLOW = {"python benchmarks/train_text.py"}
"""Commands that take minutes: run by .ci/run with ``-m slow``."""


@dataclass(frozen=True, slots=True)
class Fence:
    """One fenced block: its language and its lines."""

    language: str
    lines: tuple[str, ...]


def fences(text: str) -> list[Fence]:
    """The fenced blocks of a Markdown text, in order."""
    found = re.findall(r"^```(\w*)[^\n]*\n(.*?)^```\s*$", text, re.MULTILINE | re.DOTALL)
    return [Fence(language, tuple(body.splitlines())) for language, body in found]


def commands(text: str) -> list[str]:
    """The commands of a Markdown text, in order."""
    found: list[str] = []
    for fence in fences(text):
        if fence.language not in ("console", "bash", "sh"):
            continue
        pending = ""
        for line in fence.lines:
            if not pending and fence.language == "console":
                if not line.startswith("$ "):
                    continue
                line = line.removeprefix("$ ")
            pending += re.sub(r"\\$", "", line) if line.endswith("\\") else line
            if line.endswith("\\"):
                continue
            command = re.sub(r"\s+#\s.*$", "", re.sub(r"\s+", " ", pending)).strip()
            pending = ""
            if command and not command.startswith("#"):
                found.append(command)
    return found


def runnable(text: str) -> list[str]:
    """What is left of the commands to run here."""
    bare = (INSTALLS.sub("", command) for command in commands(text))
    return [command for command in bare if command and command not in TESTED_ELSEWHERE]


def files(text: str) -> dict[str, str]:
    """Python blocks that begin with the name of a file, by that name."""
    named = {}
    for fence in fences(text):
        first = fence.lines[0] if fence.lines else ""
        if fence.language == "python" and (name := re.match(r"# (\w+\.py)\b", first)):
            named[name[1]] = "\n".join(fence.lines) + "\n"
    return named


@pytest.fixture(scope="module")
def sandbox(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the checkout, where commands may write; without the package, so that the installed one is used."""
    place = tmp_path_factory.mktemp("readme") / "checkout"
    shutil.copytree(ROOT, place, ignore=shutil.ignore_patterns("autoplan", ".*", "__pycache__"))
    for name, text in files(README).items():
        (place / name).write_text(text, encoding="utf-8")
    return place


@pytest.mark.parametrize(
    "command",
    [pytest.param(c, marks=pytest.mark.slow if c in SLOW else (), id=c) for c in runnable(README)],
)
def test_a_command_of_the_readme_runs(command: str, sandbox: Path) -> None:
    assert "pip " not in command, "an install would change the environment of the tests; see INSTALLS"
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-c", command],
        cwd=sandbox,
        env={**os.environ, "PATH": path},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=False,
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"


def test_the_parser_of_commands() -> None:
    text = (
        "```console\n$ autoplan search x \\\n    --nodes 2\nstep 8 s\n$ autoplan --help   # quick\n```\n"
        "```bash\n# a comment\npip install .\n\n```\n```python\n# train.py\nx = 1\n```\n```\n$ not this\n```\n"
    )
    assert commands(text) == ["autoplan search x --nodes 2", "autoplan --help", "pip install ."]
    assert runnable(text) == ["autoplan search x --nodes 2", "autoplan --help"]
    assert runnable(
        "```bash\npip install '.[test]' && python -m pytest -n 2 --dist loadfile\npip install . && ls\n```\n"
    ) == ["ls"]
    assert files(text) == {"train.py": "# train.py\nx = 1\n"}


def test_options_of_the_readme_exist() -> None:
    """A misspelt option in running text would not be run above; every `--option` it names must be known."""
    from autoplan.cli.main import build_parser

    commands = build_parser()._subparsers._group_actions[0].choices.values()  # type: ignore[union-attr]
    known = {option for parser in commands for action in parser._actions for option in action.option_strings}
    named = set(re.findall(r"`(--[a-z][a-z-]*)", README))
    assert named <= known | {"--version"}
