"""A journal of what was measured: a run that was killed goes on from it, with at most one measurement lost.

One JSON object a line, appended and flushed to the disk before the next measurement begins:

    {"journal": 1, "run": {…}}                            what is measured, and on what
    {"begin": "gemm float32 1 x 64 x 64 x 64", "visit": 0}
    {"done": "gemm float32 1 x 64 x 64 x 64", "visit": 0, "samples": [1.1e-05, 1.0e-05]}
    {"fail": "message 0 all_reduce …", "reason": "out of memory: …"}

A last line without its end was being written when the process died, and is cut off. A point that was
begun ``DEATHS`` times and never done kills whoever measures it: it counts as failed from then on.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from pathlib import Path
from typing import Annotated, Any, BinaryIO

import msgspec
from msgspec import Meta

from autoplan.errors import ProfileError

__all__ = ["DEATHS", "Journal", "journal_path"]

DEATHS = 3
VERSION = 1

Value = Annotated[float, Meta(ge=0, le=1e9)]


def journal_path(profile: Path) -> Path:
    """Where the journal of a measurement that will be written to ``profile`` lies: beside it."""
    return profile.with_name(f"{profile.name}.journal")


class _Header(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    journal: int
    run: dict[str, Any]


class _Entry(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    begin: str = ""
    done: str = ""
    fail: str = ""
    visit: Annotated[int, Meta(ge=0, le=1000)] = 0
    samples: Annotated[tuple[Value, ...], Meta(max_length=10_000)] = ()
    reason: str = ""


class Journal:
    """The journal at ``path`` for ``run``; its lock keeps a second run from writing to it.

    Args:
        path: of the file; None keeps nothing on disk.
        run: what the measurements depend on, as JSON. A journal of another run is written anew.
        fresh: begin anew, whatever is there.

    ``samples`` holds them by (point, visit), ``failed`` the reasons by point.

    Raises:
        ProfileError: the file cannot be read or written, holds a malformed line, or another process
            writes to it.
    """

    def __init__(self, path: Path | None, run: dict[str, Any], *, fresh: bool = False) -> None:
        run = msgspec.json.decode(msgspec.json.encode(run))
        self.path = path
        self.samples: dict[tuple[str, int], list[float]] = {}
        self.failed: dict[str, str] = {}
        self._begun: dict[str, int] = {}
        self._file: BinaryIO | None = None
        if path is None:
            return
        try:
            self._open(path, run, fresh)
        except OSError as error:
            raise ProfileError(
                "--out", str(path), f"a place where a journal can be kept ({error})", "choose another"
            ) from error

    def begin(self, point: str, visit: int) -> None:
        """``point`` is about to be measured."""
        self._write(_Entry(begin=point, visit=visit))

    def done(self, point: str, visit: int, samples: list[float]) -> None:
        """``point`` was measured: its samples in seconds."""
        self.samples[point, visit] = samples
        self._write(_Entry(done=point, visit=visit, samples=tuple(samples)))

    def fail(self, point: str, reason: str) -> None:
        """``point`` cannot be measured, which is a result too."""
        self.failed[point] = reason
        self._write(_Entry(fail=point, reason=reason))

    def close(self) -> None:
        """Let go of the file; the next run goes on from it."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def _open(self, path: Path, run: dict[str, Any], fresh: bool) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = open(path, "a+b", buffering=0)  # noqa: SIM115 (kept open; closed by close())
        try:
            with contextlib.suppress(OSError):  # some network file systems have no locks
                _lock(file, path)
            file.seek(0)
            data = file.read()
            kept = 0 if fresh else self._replay(data, run, path.name)
            if kept < len(data):
                file.truncate(kept)
        except BaseException:
            file.close()
            raise
        self._file = file
        if not kept:
            self._write(_Header(VERSION, run))
        for point, count in self._begun.items():
            if count >= DEATHS and point not in self.failed:
                self.fail(point, f"the process died here {count} times")

    def _replay(self, data: bytes, run: dict[str, Any], name: str) -> int:
        """Take in the whole lines of ``data``; returns how many bytes of it stay."""
        lines = data.split(b"\n")[:-1]
        if not lines:
            return 0
        if _decoded(lines[0], _Header, f"{name}: line 1") != _Header(VERSION, run):
            return 0
        for number, line in enumerate(lines[1:], start=2):
            entry = _decoded(line, _Entry, f"{name}: line {number}")
            if entry.done:
                self.samples[entry.done, entry.visit] = list(entry.samples)
                self._begun.pop(entry.done, None)
            elif entry.fail:
                self.failed[entry.fail] = entry.reason
            else:
                self._begun[entry.begin] = self._begun.get(entry.begin, 0) + 1
        return sum(len(line) + 1 for line in lines)

    def _write(self, entry: _Header | _Entry) -> None:
        if self._file is None:
            return
        line = msgspec.json.encode(entry) + b"\n"
        try:
            if self._file.write(line) < len(line):
                raise OSError("the disk is full")
            os.fsync(self._file.fileno())
        except OSError as error:
            raise ProfileError(
                "--out", str(self.path), f"room for a journal ({error})", "make room, and run again"
            ) from error


def _decoded(line: bytes, kind: type[Any], where: str) -> Any:
    try:
        return msgspec.json.decode(line, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ProfileError(
            where,
            line[:100].decode(errors="replace").strip(),
            f"an entry of a measurement's journal ({error})",
            "remove the file, or measure again with --fresh",
        ) from error


def _lock(file: BinaryIO, path: Path) -> None:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise ProfileError(
            "--out",
            str(path),
            "a journal that no other run writes to",
            "wait for the other run, or choose another",
        ) from error
