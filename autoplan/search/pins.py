"""Decisions that the caller holds fixed; the search completes the rest."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any

from autoplan.errors import InputError, PlanError
from autoplan.plan.schedule import SCHEDULE_NEEDS, Schedule
from autoplan.search.rules import NO_RULES, WAYS, Rules

if TYPE_CHECKING:
    from autoplan.hardware import AnyCluster
    from autoplan.plan import Job

__all__ = ["Pins"]


@dataclass(frozen=True, slots=True)
class Pins:
    """None where the search is free to choose. ``recompute``: the way of every repeated block (``WAYS``). ``rules`` are what
    is held or forbidden beside that."""

    pp: int | None = None
    dp: int | None = None
    fsdp: int | None = None
    cp: int | None = None
    tp: int | None = None
    zero: int | None = None
    micro_batch: int | None = None
    recompute: str | None = None
    rules: Rules = NO_RULES
    schedule: Schedule | None = None
    vpp: int | None = None
    ep: int | None = None

    @classmethod
    def parse(
        cls,
        pin: Mapping[str, Any] | None,
        job: Job,
        cluster: AnyCluster,
        forbid: Iterable[tuple[str, Any]] = (),
    ) -> Pins:
        """Check what the caller gave. Raises InputError for an unknown decision or an impossible value."""
        known = [field.name for field in fields(cls) if field.name != "rules"]
        plain, rules = Rules.parse(pin, forbid, known)
        chosen: dict[str, Any] = {"rules": rules}
        for name, value in plain.items():
            if name == "recompute":
                chosen[name] = _recompute(value)
            elif name == "schedule":
                chosen[name] = _schedule(value)
            elif name in known:
                chosen[name] = _number(name, value)
            else:
                known_text = ", ".join((*known, "boundary", "BLOCK.OP"))
                raise InputError("pin", name, f"one of {known_text}", "hold fixed only these decisions")
        pins = cls(**chosen)
        pins._check_sizes(job, cluster)
        pins._check_schedule()
        return pins

    def on(self, cluster: AnyCluster) -> Pins:
        """The same for ``cluster``. With devices of several types stages are uneven, which 1F1B's alone may be."""
        if len(cluster.types) == 1:
            return self
        for name, value, only in (("schedule", self.schedule, Schedule.ONE_F_ONE_B), ("vpp", self.vpp, 1)):
            if value not in (None, only):
                expected = f"{only}, whose stages may be uneven, on {cluster.devices_text}"
                raise PlanError(name, str(value), expected, "leave it out, or use one type of device")
        return replace(self, schedule=Schedule.ONE_F_ONE_B, vpp=1)

    def _check_schedule(self) -> None:
        needs = SCHEDULE_NEEDS[self.schedule] if self.schedule is not None else None
        if needs is not None and needs.vpp is not None and self.vpp not in (None, needs.vpp):
            expected = f"{needs.vpp}, the stages that each rank holds under {self.schedule}"
            raise PlanError("vpp", self.vpp, expected, "change one of the two, or leave one out")
        alone = self.schedule in (None, Schedule.ONE_F_ONE_B) and self.vpp in (None, 1)
        if self.pp == 1 and not alone:
            name = "vpp" if self.vpp not in (None, 1) else "schedule"
            raise PlanError(
                name, str(getattr(self, name)), "left out, as pp is 1", "pin another pp, or leave it out"
            )

    def with_whole_batch(self, meetings: Sequence[str], global_batch: int) -> Pins:
        """The same with the batch in one piece if samples meet before the loss's mean, as ``meetings`` tell."""
        if not meetings:
            return self
        whole = {"dp": 1, "fsdp": 1, "micro_batch": global_batch}
        for name, value in whole.items():
            if getattr(self, name) not in (None, value):
                raise PlanError(
                    name,
                    getattr(self, name),
                    f"{value}, since samples of the batch meet ({meetings[0]})",
                    "leave it to the search, or let each sample go its own way to the loss's mean",
                )
        return replace(self, **whole)

    def _check_sizes(self, job: Job, cluster: AnyCluster) -> None:
        world, node, batch = cluster.world_size, cluster.node_size, job.global_batch
        product = 1
        for name in ("pp", "dp", "fsdp", "cp", "tp"):
            value = getattr(self, name) or 1
            product *= value
            _require(world % value == 0, name, value, f"a divisor of the {world} ranks")
        if self.pp is not None:
            multiple = cluster.stage_multiple
            expected = f"a multiple of {multiple}, so that no stage has devices of two types"
            _require(self.pp % multiple == 0, "pp", self.pp, expected)
        if self.tp is not None:
            _require(node % self.tp == 0, "tp", self.tp, f"a divisor of the {node} ranks of a node")
        _require(world % product == 0, "pp · dp · fsdp · cp · tp", product, f"a divisor of the {world} ranks")
        if self.micro_batch is not None:
            _require(
                batch % self.micro_batch == 0,
                "micro_batch",
                self.micro_batch,
                f"a divisor of the global batch, {batch}",
            )
        if self.zero is None or self.fsdp is None:
            return
        if (self.zero == 0 and self.fsdp > 1) or (self.zero and self.fsdp == 1 and self.cp in (None, 1)):
            expected = "0 where fsdp is 1" if self.fsdp == 1 else f"1, 2 or 3 where fsdp is {self.fsdp}"
            raise PlanError("zero", self.zero, expected, "change one of the two, or leave one out")


def _number(name: str, value: Any) -> int:
    whole = isinstance(value, int) and not isinstance(value, bool)
    if name == "zero":
        _require(whole and 0 <= value <= 3, name, value, "0, 1, 2 or 3")
    else:
        _require(whole and value >= 1, name, value, "an integer of at least 1")
    return value


def _schedule(value: Any) -> Schedule:
    try:
        return Schedule(value)
    except ValueError:
        raise InputError(
            "schedule", value, f"one of {', '.join(Schedule)}", "choose one, or leave it to the search"
        ) from None


def _recompute(value: Any) -> str:
    if value not in WAYS:
        expected = f"{', '.join(WAYS[:-1])} or {WAYS[-1]}"
        raise InputError("recompute", value, expected, "choose one, or leave it to the search")
    return value


def _require(holds: bool, name: str, value: Any, expected: str) -> None:
    if not holds:
        raise PlanError(name, value, expected, "change it, or leave it to the search")
