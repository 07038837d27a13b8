"""Profiles as TOML files: read with every value checked, written in one piece."""

from __future__ import annotations

import os
import re
import tempfile
import tomllib
from pathlib import Path
from typing import Any

import msgspec

from autoplan.errors import ProfileError
from autoplan.hardware.check import check_profile
from autoplan.hardware.cluster import Cluster
from autoplan.hardware.toml_text import toml_text

__all__ = ["parse_profile", "profile_from_dict", "profile_text", "read_profile", "write_profile"]


def read_profile(path: Path) -> Cluster:
    """The profile in ``path``. Raises ProfileError naming the file and the field."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ProfileError(
            str(path), str(error), "a readable TOML file in UTF-8", "correct the file or its path"
        ) from error
    return parse_profile(text, path.name)


def parse_profile(text: str, where: str) -> Cluster:
    """The profile in TOML ``text``; ``where`` names it in errors."""
    try:
        data = tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        raise ProfileError(where, str(error), "well-formed TOML", "correct the file at that place") from error
    return profile_from_dict(data, where)


def profile_from_dict(data: dict[str, Any], where: str) -> Cluster:
    """A checked profile from the tables of a TOML file. Raises ProfileError."""
    try:
        cluster = msgspec.convert(data, Cluster)
    except msgspec.ValidationError as error:
        raise _readable(error, data, where) from error
    except (OverflowError, RecursionError, ValueError) as error:
        raise ProfileError(
            where, str(error), "a profile (see the shipped ones)", "correct the value"
        ) from error
    check_profile(cluster, where)
    return cluster


def profile_text(cluster: Cluster) -> str:
    """``cluster`` as TOML."""
    return toml_text({"format": cluster.format} | msgspec.to_builtins(cluster))


def write_profile(cluster: Cluster, path: Path) -> None:
    """Write ``cluster`` to ``path``; a reader sees the old file or the whole new one.

    Raises:
        ProfileError: the profile is not valid, or the place cannot be written.
    """
    text = profile_text(cluster)
    parse_profile(text, path.name)
    temporary = ""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(
            "w", encoding="utf-8", dir=path.parent, prefix=f".{path.name}.", delete=False
        ) as file:
            temporary = file.name
            file.write(text)
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except OSError as error:
        if temporary:
            Path(temporary).unlink(missing_ok=True)
        raise ProfileError("--out", str(path), f"a writable place ({error})", "choose another") from error


def _readable(error: msgspec.ValidationError, data: Any, where: str) -> ProfileError:
    """msgspec's message as ours: the path without ``$.``, and the value that was there."""
    text, _, path = str(error).partition(" - at `$")
    path = path.rstrip("`").removeprefix(".")
    if unknown := re.search(r"unknown field `(.+)`", text):
        full = f"{path}.{unknown[1]}" if path else unknown[1]
        return ProfileError(f"{where}: {full}", unknown[1], "a known field", "remove it or correct its name")
    if missing := re.search(r"missing required field `(.+)`", text):
        full = f"{path}.{missing[1]}" if path else missing[1]
        return ProfileError(f"{where}: {full}", None, "a value", "add it (see the shipped profiles)")
    field = f"{where}: {path}" if path else where
    return ProfileError(field, _value_at(data, path), _expected(text), "correct the profile")


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
