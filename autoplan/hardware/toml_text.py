"""Just enough of a TOML writer for profiles (the standard library only reads)."""

from __future__ import annotations

import json
import math
import re
from typing import Any

__all__ = ["toml_text"]


def toml_text(data: dict[str, Any]) -> str:
    """``data`` as TOML: plain values first, then tables, then arrays of tables, in the given order.

    Values are strings, booleans, finite numbers, lists and dicts of such. None is left out.

    Raises:
        ValueError: a number is not finite.
        TypeError: any other value.
    """
    lines: list[str] = []
    _table(data, (), lines)
    return "\n".join(lines).strip() + "\n"


def _table(data: dict[str, Any], path: tuple[str, ...], lines: list[str]) -> None:
    tables: list[tuple[str, Any]] = []
    for key, value in data.items():
        if value is None:
            continue
        if _is_table(value) or _is_table_array(value):
            tables.append((key, value))
        else:
            lines.append(f"{_key(key)} = {_value(value)}")
    for key, value in tables:
        inner = (*path, key)
        header = ".".join(_key(part) for part in inner)
        for item in value if isinstance(value, list | tuple) else (value,):
            brackets = f"[[{header}]]" if isinstance(value, list | tuple) else f"[{header}]"
            lines.extend(("", brackets))
            _table(item, inner, lines)


def _is_table(value: Any) -> bool:
    """Dicts of plain values are written inline; only deeper ones get a header of their own."""
    return isinstance(value, dict) and any(isinstance(v, dict | list | tuple) for v in value.values())


def _is_table_array(value: Any) -> bool:
    return isinstance(value, list | tuple) and bool(value) and all(isinstance(v, dict) for v in value)


def _value(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return str(value)
    if isinstance(value, float):
        if not math.isfinite(value):
            raise ValueError(f"{value} has no place in a profile")
        return _float(value)
    if isinstance(value, str):
        return _string(value)
    if isinstance(value, dict):
        pairs = ", ".join(f"{_key(k)} = {_value(v)}" for k, v in value.items() if v is not None)
        return "{ " + pairs + " }" if pairs else "{}"
    if isinstance(value, list | tuple):
        rows = [_value(item) for item in value]
        if any(isinstance(item, list | tuple) for item in value):
            return "[\n" + "".join(f"  {row},\n" for row in rows) + "]"
        return "[" + ", ".join(rows) + "]"
    raise TypeError(f"{type(value).__name__} has no place in a profile")


def _float(value: float) -> str:
    text = repr(value)
    return text if any(c in text for c in ".e") else f"{text}.0"


def _string(text: str) -> str:
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")


def _key(text: str) -> str:
    return text if re.fullmatch(r"[A-Za-z0-9_-]+", text) else _string(text)
