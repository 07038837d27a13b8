"""Where profiles lie: shipped with the package, or measured into the user's cache."""

from __future__ import annotations

import os
import tomllib
from pathlib import Path

from autoplan.errors import ProfileError

__all__ = ["cache_dir", "find_profile", "known_aliases", "known_profiles", "shipped_dir"]


def shipped_dir() -> Path:
    """``hardware/profiles`` of an installed wheel, or ``hardware_profiles`` of a checkout."""
    here = Path(__file__).resolve().parent
    packed = here / "profiles"
    return packed if packed.is_dir() else here.parents[1] / "hardware_profiles"


def cache_dir() -> Path:
    """Where measured profiles are kept: ``$AUTOPLAN_CACHE/profiles``, or ``~/.cache/autoplan/profiles``."""
    root = os.environ.get("AUTOPLAN_CACHE")
    return (Path(root).expanduser() if root else Path.home() / ".cache" / "autoplan") / "profiles"


def known_profiles() -> dict[str, Path]:
    """Every profile by name; a measured one hides a shipped one of the same name."""
    found: dict[str, Path] = {}
    for folder in (shipped_dir(), cache_dir()):
        if folder.is_dir():
            found |= {path.stem: path for path in sorted(folder.glob("*.toml"))}
    return found


def known_aliases() -> dict[str, str]:
    """The other names that profiles go by, in lower case, each with the profile's name.

    Files that cannot be read have none: what is wrong with them is told when they are loaded.
    """
    found: dict[str, str] = {}
    for name, path in known_profiles().items():
        try:
            aliases = tomllib.loads(path.read_text(encoding="utf-8")).get("aliases", [])
        except (OSError, ValueError, RecursionError):
            continue
        if isinstance(aliases, list):
            found |= {alias.lower(): name for alias in aliases if isinstance(alias, str)}
    return found


def find_profile(name_or_path: str | Path) -> Path:
    """The file of a profile given by name or by path.

    A text with a slash or ending in ``.toml`` is a path; any other is a name or an alias of one
    (``H100-SXM-80GB``; capitals do not matter), or the beginning of a name up to a hyphen when
    that tells it from all but its own variants (``h100`` for ``h100-sxm``, before ``h100-sxm-efa``).

    Raises:
        ProfileError: there is no such profile; lists the known names.
    """
    text = os.fspath(name_or_path)
    looks_like_path = text.endswith(".toml") or os.sep in text or isinstance(name_or_path, Path)
    if looks_like_path:
        if "\0" not in text and Path(text).expanduser().is_file():
            return Path(text).expanduser()
        raise ProfileError("--cluster", text, "a profile that exists", "correct the path")
    known = known_profiles()
    if text in known:
        return known[text]
    lower = text.lower()
    if (alias := known_aliases().get(lower)) is not None:
        return known[alias]
    begun = [name for name in known if name.lower() == lower or name.lower().startswith(f"{lower}-")]
    shortest = min(begun, key=len, default="")
    if text and begun and all(name == shortest or name.startswith(f"{shortest}-") for name in begun):
        return known[shortest]
    names = ", ".join(sorted(known)) or "none"
    raise ProfileError(
        "--cluster",
        text,
        f"a known profile ({names}) or a path to a TOML file",
        "choose one of these, or measure this machine with `autoplan profile`",
    )
