"""Steps that were taken and timed, part by part, beside what a profile predicted: data, and its file.

``Program.measure`` makes one; ``hardware.calibrate`` folds it into a profile.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from autoplan.errors import ProfileError
from autoplan.hardware.cluster import Cluster
from autoplan.hardware.tables import COLLECTIVES

__all__ = [
    "BOUNDS",
    "Computed",
    "Measurement",
    "Part",
    "Sent",
    "StageParts",
    "profile_digest",
    "read_measurement",
]

BOUNDS = ("gemm", "attention", "memory", "launch")
"""What sets the pace of compute: the device's rate of matrix products, its rate of attention, its memory, or the
time between two ops."""

Seconds = Annotated[float, Meta(ge=0, le=1e7)]
Count = Annotated[float, Meta(ge=0, le=1e15)]


class Part(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Seconds of a step by cause."""

    name: str
    measured_s: Seconds
    predicted_s: Seconds


class StageParts(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One rank of the pipeline (the mean over the ranks that share its stages).

    Args:
        parts: by cause; what was measured adds up to the step.
        memory_bytes: the most that tensors took at once, on the worst of these ranks.
        predicted_memory_bytes: the same of the cost model, without its reserve.
    """

    pp_rank: int
    parts: tuple[Part, ...]
    memory_bytes: Count
    predicted_memory_bytes: Count


class Computed(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One pass of one kind of unit over a micro-batch, or the optimizer of a rank.

    Args:
        name: the kind of unit, or ``optimizer``.
        phase: ``forward``, ``backward``, ``recompute`` or ``step``.
        count: how often a rank does it in a step, on average.
        measured_s: of one, without what it sends; the median.
        predicted_s: of one, by what bounds it (``BOUNDS``).
        spread: between the quartiles of the samples, over their median.
    """

    name: str
    phase: str
    count: Count
    measured_s: Seconds
    predicted_s: dict[str, Seconds]
    spread: Count = 0.0
    samples: int = 0


class Sent(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Collectives of one size over one mesh axis.

    Args:
        kind, nbytes, size, stride: as ``Cluster.collective_time_s`` takes them.
        axis: of the mesh (``tp``, ``cp``, ``fsdp``, ``dp``, ``pp``), or ``other``.
        count: how many a rank takes part in in a step, on average.
        measured_s: of one, from when the last of its ranks came to it; the median. Of ``send_recv``, between two
            ranks that do nothing else.
        predicted_s: of one.
    """

    kind: str
    axis: str
    size: Annotated[int, Meta(ge=2, le=2**24)]
    stride: Annotated[int, Meta(ge=1, le=2**24)]
    nbytes: Annotated[int, Meta(ge=1, le=2**53)]
    count: Count
    measured_s: Seconds
    predicted_s: Seconds
    spread: Count = 0.0
    samples: int = 0


class Measurement(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Some steps of a program beside their prediction. ``print`` shows tables; ``to_dict`` and ``save`` keep it all.

    Args:
        plan: its hash.
        device: the name of what a rank computed on.
        levels: (name, size) of the profile's levels, innermost first, for this number of ranks.
        profile, profile_digest: what predicted.
        date, tool, versions: when and with what.
        steps: how many were timed.
        step_s: the median step, of the slowest rank; ``step_spread`` between the quartiles, over it.
        stages: a step's parts on each rank of the pipeline.
        computed, sent: what the parts consist of.
    """

    format: Literal["autoplan.measurement/1"] = "autoplan.measurement/1"
    model: str
    plan: str
    device: str
    world_size: Annotated[int, Meta(ge=1, le=2**24)]
    levels: tuple[tuple[str, int], ...]
    profile: str
    profile_digest: str
    date: str
    tool: str
    versions: dict[str, str]
    dtype: str
    steps: Annotated[int, Meta(ge=1, le=2**31)]
    step_s: Seconds
    step_spread: Count
    predicted_step_s: Seconds
    stages: tuple[StageParts, ...]
    computed: tuple[Computed, ...]
    sent: tuple[Sent, ...]

    def to_dict(self) -> dict[str, object]:
        """All of it as JSON can hold it."""
        return msgspec.to_builtins(self)

    def to_json(self) -> str:
        """The text of a file that ``autoplan calibrate`` reads."""
        return msgspec.json.format(msgspec.json.encode(self), indent=1).decode() + "\n"

    def save(self, path: str | Path) -> None:
        """Write it to a file. Raises ProfileError where that cannot be."""
        try:
            Path(path).write_text(self.to_json())
        except OSError as error:
            raise ProfileError(
                str(path), error.strerror, "a file that can be written", "choose another"
            ) from None

    def __str__(self) -> str:
        from autoplan.hardware.measurement_text import measurement_text

        return measurement_text(self)


def profile_digest(cluster: Cluster) -> str:
    """A short hash of a cluster's figures, whatever it is called."""
    from autoplan.hardware.profile_file import profile_text

    text = profile_text(msgspec.structs.replace(cluster, name="any", description="", aliases=()))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def read_measurement(path: str | Path) -> Measurement:
    """A file that ``Measurement.save`` wrote.

    Raises:
        ProfileError: it cannot be read, or is not a measurement.
    """
    remedy = "pass a file that program.measure(…).save(…) wrote"
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise ProfileError(str(path), error.strerror, "a file that can be read", remedy) from None
    try:
        found = msgspec.json.decode(data, type=Measurement)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise ProfileError(str(path), str(error), "a measurement", remedy) from None
    for index, sent in enumerate(found.sent):
        if sent.kind not in COLLECTIVES:
            raise ProfileError(
                f"{path}: sent[{index}].kind", sent.kind, f"one of {', '.join(COLLECTIVES)}", remedy
            )
    for index, computed in enumerate(found.computed):
        unknown = set(computed.predicted_s) - set(BOUNDS)
        if unknown:
            where = f"{path}: computed[{index}].predicted_s"
            raise ProfileError(where, sorted(unknown)[0], f"one of {', '.join(BOUNDS)}", remedy)
    return found
