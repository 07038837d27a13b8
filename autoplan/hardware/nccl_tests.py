"""Output of nccl-tests, as text or as ``-J`` JSON, read into message sizes and times.

The formats are those of nccl-tests 2.0 to 2.17 (src/common.cu, src/util.cu). Its sizes are ours: the
whole output of an all-gather, the whole input of a reduce-scatter, what one rank holds of an
all-to-all. Out-of-place times are taken, in-place ones where there are none.
"""

from __future__ import annotations

import json
import math
import re
import statistics
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from autoplan.errors import ProfileError
from autoplan.hardware.level import bus_factor

__all__ = ["NcclRun", "Sample", "read_nccl_tests"]

PROGRAMS = {
    "all_reduce_perf": "all_reduce",
    "all_gather_perf": "all_gather",
    "reduce_scatter_perf": "reduce_scatter",
    "alltoall_perf": "all_to_all",
    "sendrecv_perf": "send_recv",
}
_RANK = re.compile(
    r"^#\s+Rank\s+(\d+)(?:\s+Group\s+(\d+))?\s+Pid\s+\d+\s+on\s+(\S+)\s+device\s+(\d+)\s+\[[^\]]*\]\s*(.*)$"
)
_STARTED = re.compile(r"^# Collective test starting: (\S+)")
_VERSION = re.compile(r"^# nccl-tests version (\S+).*?nccl-library=(\d+)")
_CLOCK = re.compile(r"^\d{4}-\d\d-\d\d$|^\d\d:\d\d:\d\d$")


@dataclass(frozen=True, slots=True)
class Sample:
    """One message size: the median time of its rows, their spread, and how many rows there were."""

    nbytes: int
    time_s: float
    spread: float
    rows: int


@dataclass(frozen=True, slots=True)
class NcclRun:
    """One run of one test.

    Args:
        collective: in our words; empty where the output does not say.
        ranks: of one group.
        groups: that ran at once (NCCL_TESTS_SPLIT).
        ranks_per_host: of one group; 0 where the output does not say.
        device: name of the first GPU.
    """

    collective: str
    ranks: int
    groups: int
    ranks_per_host: int
    samples: tuple[Sample, ...]
    device: str = ""
    date: str = ""
    versions: dict[str, str] = field(default_factory=dict)


@dataclass(slots=True)
class _Seen:
    """What has been read so far: ranks as (group, host), times by message size."""

    where: str
    program: str = ""
    ranks: list[tuple[int, str]] = field(default_factory=list)
    times: dict[int, list[float]] = field(default_factory=dict)
    buses: dict[int, float] = field(default_factory=dict)
    device: str = ""
    date: str = ""
    versions: dict[str, str] = field(default_factory=dict)

    def add(self, place: str, size: Any, time_us: Any, bus_gb_s: Any, wrong: Any) -> None:
        """One row; one of no bytes (a count too small to cut) is passed over."""
        nbytes = _number(place, "size", size)
        time = _number(place, "time", time_us)
        bus = _number(place, "busbw", bus_gb_s)
        if str(wrong) not in ("N/A", "None") and _number(place, "#wrong", wrong) > 0:
            raise ProfileError(
                place, wrong, "0 wrong values", "a run whose results are wrong is no measurement"
            )
        if nbytes == 0:
            return
        if nbytes != int(nbytes) or nbytes > 2**53 or not 0 < time < 1e11:
            raise ProfileError(place, [size, time_us], "a size in bytes and a time in us", "correct the file")
        self.times.setdefault(int(nbytes), []).append(time * 1e-6)
        self.buses[int(nbytes)] = bus * 1e9


def read_nccl_tests(path: Path, *, collective: str | None = None, ranks: int | None = None) -> NcclRun:
    """The run in ``path``.

    Args:
        collective: which one it was, where the output does not say (or says otherwise).
        ranks: of a group, where the output does not list them.

    Raises:
        ProfileError: the file cannot be read, is not such output, or contradicts itself.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ProfileError(str(path), str(error), "a readable text file", "correct the path") from error
    seen = _Seen(path.name)
    if text.lstrip().startswith("{"):
        _read_json(text, seen)
    else:
        _read_text(text, seen)
    return _run(seen, collective, ranks)


def _run(seen: _Seen, collective: str | None, ranks: int | None) -> NcclRun:
    kind = collective or PROGRAMS.get(seen.program, "")
    if not kind:
        known = ", ".join(sorted(PROGRAMS))
        got = seen.program or None
        raise ProfileError(seen.where, got, f"the name of a test ({known})", "say which with --collective")
    if not seen.times:
        raise ProfileError(seen.where, None, "rows of results", "is this the whole output of nccl-tests?")
    counts: dict[int, int] = {}
    for group, _ in seen.ranks:
        counts[group] = counts.get(group, 0) + 1
    sizes = set(counts.values()) or ({ranks} if ranks else set())
    if not sizes:
        raise ProfileError(seen.where, None, "lines that list the ranks", "give their number with --ranks")
    if len(sizes) > 1 or (ranks is not None and sizes != {ranks}):
        raise ProfileError(
            seen.where,
            sorted(sizes),
            f"groups of {ranks} ranks" if ranks else "groups of one size",
            "correct it",
        )
    size = sizes.pop()
    if size < 2:
        raise ProfileError(seen.where, size, "at least two ranks", "measure with more GPUs")
    _check_bus(seen, kind, size)
    return NcclRun(
        collective=kind,
        ranks=size,
        groups=max(1, len(counts)),
        ranks_per_host=_per_host(seen),
        samples=tuple(_sample(nbytes, times) for nbytes, times in sorted(seen.times.items())),
        device=seen.device,
        date=seen.date,
        versions=seen.versions,
    )


def _per_host(seen: _Seen) -> int:
    """Ranks of a group on each host; 0 where that is not the same everywhere, or not known."""
    counts: dict[tuple[int, str], int] = {}
    for place in seen.ranks:
        counts[place] = counts.get(place, 0) + 1
    numbers = set(counts.values())
    return numbers.pop() if len(numbers) == 1 else 0


def _sample(nbytes: int, times: list[float]) -> Sample:
    middle = statistics.median(times)
    quarters = statistics.quantiles(times, n=4) if len(times) > 1 else [middle, middle, middle]
    return Sample(nbytes, middle, max(0.0, quarters[2] - quarters[0]) / middle, len(times))


def _check_bus(seen: _Seen, kind: str, ranks: int) -> None:
    """The printed bus bandwidth follows from size, time and ranks; if not, one of them is misread."""
    for nbytes, printed in seen.buses.items():
        expected = bus_factor(kind, ranks) * nbytes / seen.times[nbytes][-1]
        if abs(printed - expected) > 0.02 * expected + 0.02e9:
            raise ProfileError(
                f"{seen.where}: busbw of {nbytes} B",
                f"{printed / 1e9:g} GB/s",
                f"{expected / 1e9:.3g} GB/s by the time of {kind} over {ranks} ranks",
                "correct --collective or --ranks",
            )


def _read_text(text: str, seen: _Seen) -> None:
    columns: list[str] = []
    for number, line in enumerate(text.splitlines(), 1):
        words = line.split()
        if match := _RANK.match(line):
            seen.ranks.append((int(match[2] or 0), match[3]))
            seen.device = seen.device or match[5].strip()
        elif match := _STARTED.match(line):
            if columns:
                raise ProfileError(
                    f"{seen.where}:{number}", match[1], "the output of one test", "cut the file in two"
                )
            seen.program = match[1]
        elif match := _VERSION.match(line):
            seen.versions = {"nccl-tests": match[1], "nccl": _nccl(int(match[2]))}
        elif line.startswith("#") and "size" in words and "busbw" in words:
            columns = words[1:]
        elif words and words[0].isdecimal() and columns:
            _row(seen, number, words, columns)


def _row(seen: _Seen, number: int, words: list[str], columns: list[str]) -> None:
    """One row of the table. Columns left of the times may be blank, so that what follows counts from the right."""
    place = f"{seen.where}:{number}"
    while words and _CLOCK.match(words[-1]):
        words = words[:-1]
    names = [name for name in columns if name != "timestamp"]
    if "cputime" in names:
        raise ProfileError(place, "cputime", "times of the GPU", "run without -C")
    first = names.index("time") if "time" in names else len(names)
    values = dict(
        zip(reversed(names[first:]), reversed(words), strict=False)
    )  # of two, the first is kept last
    if len(words) < len(names) - first + 3 or not {"time", "busbw"} <= values.keys():
        raise ProfileError(place, " ".join(words), f"columns {' '.join(names)}", "correct the line")
    wrong = values.get("#wrong", values.get("error", "N/A"))
    if "error" in values and "#wrong" not in values:
        wrong = "N/A"  # the error of older versions is a rounding error, not a count
    seen.add(place, words[0], values["time"], values["busbw"], wrong)


def _read_json(text: str, seen: _Seen) -> None:
    try:
        data = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ProfileError(seen.where, str(error), "well-formed JSON", "is the file complete?") from error
    args = _list(data, "args")
    seen.program = str(args[0]).replace("\\/", "/").rpartition("/")[2] if args else ""
    seen.date = str(data.get("start_time", ""))[:10]
    version = data.get("nccl_version")
    seen.versions = {"nccl": _nccl(version)} if isinstance(version, int) else {}
    config = data.get("config")
    config = config if isinstance(config, dict) else {}
    # Each process lists its first GPU only.
    local = _count(config.get("nthreads")) * _count(config.get("ngpus"))
    for entry in _list(config, "devices"):
        entry = entry if isinstance(entry, dict) else {}
        group = entry.get("group", 0)
        place = (group if isinstance(group, int) else 0, str(entry.get("hostname", "")))
        seen.ranks.extend([place] * local)
        seen.device = seen.device or str(entry.get("device_info", ""))
    for index, row in enumerate(_list(data, "results")):
        place = f"{seen.where}: results[{index}]"
        row = row if isinstance(row, dict) else {}
        body = row.get("out_of_place") or row.get("in_place")
        if not isinstance(body, dict) or "time" not in body:
            raise ProfileError(place, body, "out_of_place or in_place with a time", "run without -C")
        seen.add(place, row.get("size"), body["time"], body.get("bus_bw"), body.get("nwrong"))


def _list(data: Any, key: str) -> list[Any]:
    value = data.get(key) if isinstance(data, dict) else None
    return value if isinstance(value, list) else []


def _count(value: Any) -> int:
    return min(value, 4096) if isinstance(value, int) and value > 0 else 1


def _number(place: str, name: str, value: Any) -> float:
    try:
        number = float(value) if isinstance(value, str | int | float) else math.nan
    except (ValueError, OverflowError):
        number = math.nan
    if not math.isfinite(number) or number < 0:
        raise ProfileError(f"{place}: {name}", value, "a number of at least 0", "correct the line")
    return number


def _nccl(code: int) -> str:
    """``22703`` → ``2.27.3``; before 2.9 the minor version had one digit (``2804``)."""
    if code >= 10000:
        return f"{code // 10000}.{code // 100 % 100}.{code % 100}"
    return f"{code // 1000}.{code // 100 % 10}.{code % 100}"
