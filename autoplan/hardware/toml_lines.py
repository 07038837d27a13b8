"""On which line of a TOML text a value stands: the standard library's reader does not tell."""

from __future__ import annotations

import re
from typing import Any

__all__ = ["line_of"]

Path = tuple[str | int, ...]

_KEY = re.compile(r'[ \t]*("(?:[^"\\]|\\.)*"|\'[^\']*\'|[A-Za-z0-9_-]+)[ \t]*')
_SPACE = re.compile(r"(?:[ \t\r\n]|#[^\n]*)*")
_BARE = re.compile(r"[^,\]\}\n#]*")
_STRINGS = tuple(
    re.compile(pattern, re.DOTALL)
    for pattern in (r'"""(?:[^\\]|\\.)*?"{3,5}', r"'''.*?'{3,5}", r'"(?:[^"\\]|\\.)*"', r"'[^']*'")
)


def line_of(text: str, path: str) -> int | None:
    """The line, from 1, of ``level[1].latency_s`` in well-formed TOML; of the nearest table around it
    where there is no such key; None where nothing of the path is there."""
    lines = _Reader(text).lines
    steps: list[str | int] = []
    for name, index in re.findall(r"([^.\[\]]+)|\[(\d+)\]", path):
        steps.append(name or int(index))
    while steps:
        if (line := lines.get(tuple(steps))) is not None:
            return line
        steps.pop()
    return None


class _Reader:
    """Walks well-formed TOML once and notes the line of every key and element."""

    def __init__(self, text: str) -> None:
        self.text, self.at, self.lines = text, 0, {}
        self._line, self._counted = 1, 0
        self._arrays: dict[Path, int] = {}
        table: Path = ()
        while self._skip_space():
            if text.startswith("[", self.at):
                table = self._header()
            else:
                self._pair(table)

    def _skip_space(self) -> bool:
        """Move to the next sign of interest; False at the end."""
        match = _SPACE.match(self.text, self.at)
        assert match is not None
        self.at = match.end()
        return self.at < len(self.text)

    def _here(self) -> int:
        self._line += self.text.count("\n", self._counted, self.at)
        self._counted = self.at
        return self._line

    def _key(self) -> list[str]:
        """A key, dotted or not; moves past it."""
        parts = []
        while match := _KEY.match(self.text, self.at):
            parts.append(_unquoted(match[1]))
            self.at = match.end()
            if not self.text.startswith(".", self.at):
                return parts
            self.at += 1
        self.at += 1  # not TOML: move on rather than stand still
        return parts

    def _header(self) -> Path:
        double = self.text.startswith("[[", self.at)
        line = self._here()
        self.at += 2 if double else 1
        path: Path = ()
        parts = self._key()
        for place, part in enumerate(parts):
            path = (*path, part)
            if double and place == len(parts) - 1:
                self._arrays[path] = self._arrays.get(path, -1) + 1
                self.lines.setdefault(path, line)
            if path in self._arrays:
                path = (*path, self._arrays[path])
            self.lines.setdefault(path, line)
        self.at += 2 if double else 1
        return path

    def _pair(self, table: Path) -> None:
        line = self._here()
        path = table
        for part in self._key():
            path = (*path, part)
            self.lines.setdefault(path, line)
        self.at += 1  # the sign =
        self._value(path)

    def _value(self, path: Path) -> None:
        while self.text[self.at : self.at + 1] in (" ", "\t"):
            self.at += 1
        for string in _STRINGS:
            if match := string.match(self.text, self.at):
                self.at = match.end()
                return
        if self.text.startswith("[", self.at):
            self._list(path)
        elif self.text.startswith("{", self.at):
            self._inline(path)
        else:
            bare = _BARE.match(self.text, self.at)
            assert bare is not None
            self.at = bare.end()

    def _list(self, path: Path) -> None:
        self.at += 1
        index = 0
        while self._skip_space() and not self.text.startswith("]", self.at):
            self.lines[(*path, index)] = self._here()
            self._value((*path, index))
            index += 1
            self._comma()
        self.at += 1

    def _inline(self, path: Path) -> None:
        self.at += 1
        while self._skip_space() and not self.text.startswith("}", self.at):
            self._pair(path)
            self._comma()
        self.at += 1

    def _comma(self) -> None:
        self._skip_space()
        if self.text.startswith(",", self.at):
            self.at += 1


def _unquoted(key: str) -> Any:
    if key.startswith('"'):
        import json

        try:
            return json.loads(key)
        except ValueError:  # an escape that only TOML has
            return key[1:-1]
    return key.strip("'")
