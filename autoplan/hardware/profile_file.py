"""Profiles as TOML files: read with every value checked, written in one piece.

Three forms: a whole profile; ``extends = "h100-sxm"``, which changes what it names of another; and
``part = [{ profile = "a100-80-sxm", nodes = 2 }, …]``, a cluster of several types of device.
"""

from __future__ import annotations

import os
import tempfile
import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from autoplan.errors import ProfileError
from autoplan.hardware.check import Place, check_profile
from autoplan.hardware.cluster import Cluster
from autoplan.hardware.mixed import MixedCluster
from autoplan.hardware.noise import with_noise_marked
from autoplan.hardware.profile_error import readable
from autoplan.hardware.profile_path import find_profile
from autoplan.hardware.source import Count
from autoplan.hardware.toml_text import toml_text

__all__ = [
    "Mix",
    "Part",
    "parse_profile",
    "profile_from_dict",
    "profile_text",
    "read_any",
    "read_profile",
    "write_profile",
]

_OWN = ("name", "aliases", "description")  # what a file that extends another does not inherit


class Part(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """``nodes`` nodes of a profile, by its name or file."""

    profile: str
    nodes: Count


class Mix(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """A cluster of several types of device, as a file."""

    format: Literal[2] = 2
    name: str
    aliases: tuple[str, ...] = ()
    description: str = ""
    part: Annotated[tuple[Part, ...], Meta(min_length=2, max_length=64)]


def read_any(path: Path) -> Cluster | MixedCluster:
    """The profile or the mixed cluster in ``path``. Raises ProfileError."""
    data, place = _data(_text(path), path.name)
    if "part" in data:
        mix: Mix = _converted(data, Mix, place)
        return MixedCluster.of([(part.profile, part.nodes) for part in mix.part], mix.name)
    return _profile(data, place)


def read_profile(path: Path) -> Cluster:
    """The profile in ``path``. Raises ProfileError naming the file, the line and the field."""
    return parse_profile(_text(path), path.name)


def parse_profile(text: str, where: str) -> Cluster:
    """The profile in TOML ``text``; ``where`` names it in errors."""
    data, place = _data(text, where)
    return _profile(data, place)


def profile_from_dict(data: dict[str, Any], where: str) -> Cluster:
    """A checked profile from the tables of a TOML file. Raises ProfileError."""
    return _profile(data, Place(where))


def profile_text(cluster: Cluster) -> str:
    """``cluster`` as TOML."""
    return toml_text({"format": cluster.format} | msgspec.to_builtins(cluster))


def write_profile(cluster: Cluster, path: Path) -> None:
    """Write ``cluster`` to ``path``; a reader sees the old file or the whole new one.

    Points that loading would refuse as noise are marked as noisy.

    Raises:
        ProfileError: the profile is not valid, or the place cannot be written.
    """
    text = profile_text(with_noise_marked(cluster))
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


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ProfileError(
            str(path), str(error), "a readable TOML file in UTF-8", "correct the file or its path"
        ) from error


def _data(text: str, where: str) -> tuple[dict[str, Any], Place]:
    try:
        return tomllib.loads(text), Place(where, text)
    except (ValueError, RecursionError) as error:
        raise ProfileError(where, str(error), "well-formed TOML", "correct the file at that place") from error


def _profile(data: dict[str, Any], place: Place) -> Cluster:
    if "part" in data:
        raise ProfileError(
            place.name("part"),
            data.get("name"),
            "a profile of one type of device",
            "use one of its parts, or load it with autoplan.hardware.read_any",
        )
    if "extends" in data:
        data = _extended(data, place)
    cluster: Cluster = _converted(data, Cluster, place)
    check_profile(cluster, place)
    return cluster


def _converted(data: dict[str, Any], kind: type[Any], place: Place) -> Any:
    try:
        return msgspec.convert(data, kind)
    except msgspec.ValidationError as error:
        raise readable(error, data, kind, place) from error
    except (OverflowError, RecursionError, ValueError) as error:
        raise ProfileError(
            place.name(""), str(error), "a profile (see the shipped ones)", "correct the value"
        ) from error


def _extended(data: dict[str, Any], place: Place) -> dict[str, Any]:
    """``data`` over the profile that it extends: tables are merged, all else is replaced."""
    name = data["extends"]
    if not isinstance(name, str):
        raise ProfileError(place.name("extends"), name, "the name of a profile", "correct the name")
    path = find_profile(name)
    base, _ = _data(_text(path), path.name)
    if "extends" in base or "part" in base:
        raise ProfileError(
            place.name("extends"), name, "a profile that stands alone", "extend the one that it extends"
        )
    inherited = {key: value for key, value in base.items() if key not in _OWN}
    own = {key: value for key, value in data.items() if key != "extends"}
    merged = _merged(inherited, own)
    _check_sources_of_changes(own, merged, place)
    return merged


def _check_sources_of_changes(own: dict[str, Any], merged: dict[str, Any], place: Place) -> None:
    """A changed figure of the device does not pass as one of the source that the old one had."""
    changed, device, sources = own.get("device"), merged.get("device"), own.get("sources", {})
    cited = device.get("source") if isinstance(device, dict) else None
    if not isinstance(changed, dict) or not isinstance(cited, dict) or not isinstance(sources, dict):
        return  # of a wrong type: said by what converts it
    told = changed.get("source")
    for figure in changed:
        key = cited.get(figure)
        if isinstance(key, str) and key not in sources and not (isinstance(told, dict) and figure in told):
            raise ProfileError(
                place.name(f"device.{figure}"),
                changed[figure],
                "its own source",
                f"add device.source.{figure}, or say anew what [sources.{key}] is",
            )


def _merged(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in over.items():
        before = merged.get(key)
        inside = isinstance(before, dict) and isinstance(value, dict)
        merged[key] = _merged(before or {}, value) if inside else value
    return merged
