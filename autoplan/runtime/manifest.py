"""What a checkpoint says about itself, beside the tensors: enough to refuse a wrong one before reading it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Literal

import msgspec

from autoplan.errors import CheckpointError

__all__ = ["FILE", "Manifest", "Saved", "read_manifest", "write_manifest"]

FILE = "autoplan.json"


class Saved(msgspec.Struct, frozen=True):
    """A tensor of the optimizer's state: its whole shape, and torch's name of its dtype."""

    shape: tuple[int, ...]
    dtype: str


class Manifest(msgspec.Struct, frozen=True, kw_only=True):
    """``parameters`` and ``buffers`` map the model's names to whole shapes, ``states`` and ``groups`` parameters'
    names to what the optimizer keeps for each and to its hyperparameters. ``files`` gives every other file's
    bytes. ``extra`` is the caller's."""

    format: Literal["autoplan.checkpoint/1"] = "autoplan.checkpoint/1"
    torch: str
    model: str
    plan: str
    step: int
    optimizer: str
    parameters: dict[str, tuple[int, ...]]
    buffers: dict[str, tuple[int, ...]]
    states: dict[str, dict[str, Saved]]
    groups: dict[str, dict[str, Any]]
    files: dict[str, int] = {}
    extra: dict[str, Any] = {}


def write_manifest(directory: Path, manifest: Manifest) -> None:
    """Write it as the last file of ``directory``, with the sizes of the others."""
    files = {file.name: file.stat().st_size for file in sorted(directory.iterdir())}
    data = msgspec.json.encode(msgspec.structs.replace(manifest, files=files))
    with (directory / FILE).open("wb") as out:
        out.write(data)
        out.flush()
        os.fsync(out.fileno())


def read_manifest(directory: Path) -> Manifest:
    """Read the manifest and check that every file is there, whole. Raises CheckpointError."""
    remedy = "load another checkpoint; one written by program.save is a directory"
    try:
        manifest = msgspec.json.decode((directory / FILE).read_bytes(), type=Manifest)
    except OSError as error:
        raise CheckpointError(
            str(directory), error.strerror, f"a directory that holds {FILE}", remedy
        ) from None
    except msgspec.DecodeError as error:
        raise CheckpointError(
            f"{directory}/{FILE}", str(error), "a manifest of autoplan.checkpoint/1", remedy
        ) from None
    for name, size in manifest.files.items():
        file = directory / name
        got = file.stat().st_size if file.is_file() else None
        if got != size:
            raise CheckpointError(
                f"{directory}/{name}",
                "no file" if got is None else f"{got} bytes",
                f"{size} bytes, as when it was saved",
                "the checkpoint is damaged: load an earlier one",
            )
    return manifest
