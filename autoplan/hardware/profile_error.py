"""msgspec's complaints about a profile as errors of ours."""

from __future__ import annotations

import copy
import re
from typing import Any

import msgspec

from autoplan.errors import ProfileError
from autoplan.hardware.check import Place
from autoplan.hardware.source import SourceKind

__all__ = ["readable"]


def readable(error: msgspec.ValidationError, data: Any, kind: type[Any], place: Place) -> ProfileError:
    """The path without ``$.``, the line, the value that was there, and what was expected in words.

    Args:
        data: the tables that could not be converted to ``kind``.
    """
    text, _, path = str(error).partition(" - at `")
    path = path.removeprefix("key` in `").rstrip("`").removeprefix("$").removeprefix(".")
    path = _with_key(path, data, kind)
    if unknown := re.search(r"unknown field `(.+)`", text):
        full = f"{path}.{unknown[1]}" if path else unknown[1]
        return ProfileError(place.name(full), unknown[1], "a known field", "remove it or correct its name")
    if missing := re.search(r"missing required field `(.+)`", text):
        full = f"{path}.{missing[1]}" if path else missing[1]
        return ProfileError(place.name(full), None, "a value", "add it (see the shipped profiles)")
    value = _value_at(data, path)
    if path == "format":
        remedy = "measure again with `autoplan profile`, or see `autoplan profile schema`"
        return ProfileError(place.name(path), value, "2", remedy)
    if choice := re.search(r"matching regex '\^\((.+)\)\$'", text):
        return _not_a_choice(choice[1], path, data, place)
    if "Invalid enum value" in text:
        words = tuple(SourceKind) if path.startswith("sources") else ("cuda", "cpu")
        return _not_a_choice("|".join(words), path, data, place)
    remedy = "correct the profile"
    if path.endswith(("_bytes_per_s", "_flops", "_s")) or "peak_flops" in path:
        remedy = "give it in seconds, bytes/s or FLOP/s, without a prefix (450 GB/s is 450e9)"
    return ProfileError(place.name(path), value, _expected(text), remedy)


def _with_key(path: str, data: Any, kind: type[Any]) -> str:
    """msgspec says ``sources[...].kind``: find the key, by trying each alone."""
    outer, hidden, rest = path.partition("[...]")
    table = _value_at(data, outer)
    if not hidden or not isinstance(table, dict):
        return path
    for key in table:
        alone = copy.deepcopy(data)
        _value_at(alone, outer).clear()
        _value_at(alone, outer)[key] = copy.deepcopy(table[key])
        try:
            msgspec.convert(alone, kind)
        except msgspec.ValidationError as error:
            if f"{outer}[...]{rest}" in str(error):
                return f"{outer}.{key}{rest}"
        except (OverflowError, RecursionError, ValueError):
            continue
    return path


def _not_a_choice(words: str, path: str, data: Any, place: Place) -> ProfileError:
    """A word that is not one of a list, as a value or as a key of a table."""
    choices = words.split("|")
    found = _value_at(data, path)
    if isinstance(found, dict):
        found = next((key for key in found if key not in choices), None)
        path = f"{path}.{found}"
    return ProfileError(place.name(path), found, f"one of {', '.join(choices)}", "correct the name")


def _expected(text: str) -> str:
    """``Expected `float` > 0.0`` → ``a positive number``."""
    expected = text.removeprefix("Expected ").partition(", got")[0]
    number = "a whole number" if "`int`" in expected else "a number"
    if "> 0" in expected:
        return "a positive number"
    if match := re.search(r"(>=|<=|<|>) ?([-+.e0-9]+)", expected):
        sign = {">=": "of at least", "<=": "of at most", "<": "below", ">": "above"}[match[1]]
        return f"{number} {sign} {float(match[2]):g}"
    return expected or "another value"


def _value_at(data: Any, path: str) -> Any:
    """The value at ``level[1].latency_s``; as deep as the path can be followed."""
    for name, index in re.findall(r"([^.\[\]]+)|\[(\d+|\.\.\.)\]", path):
        try:
            data = data[name] if name else data[int(index)]
        except (KeyError, IndexError, TypeError, ValueError):
            break
    return data
