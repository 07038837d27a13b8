"""The answer as data: every decision, and nothing that must be computed from them again."""

from __future__ import annotations

import hashlib
from typing import Literal

import msgspec

from autoplan.plan.mesh_sizes import MeshSizes
from autoplan.plan.schedule import Schedule
from autoplan.precision import Precision

__all__ = ["Plan", "StagePlan"]


class StagePlan(msgspec.Struct, frozen=True, kw_only=True):
    """One pipeline stage: the units it runs, in order, and those whose forward it runs again in backward.

    ``policies`` names, for other units, one of ``Plan.policies`` of their block kind. ``device`` is the profile of its ranks'
    devices in a cluster of several types; of one type nothing is said.
    """

    units: tuple[str, ...]
    recompute: tuple[str, ...] = ()
    policies: dict[str, str] = {}
    device: str = ""

    def way(self, unit: str) -> str:
        """What ``unit`` does of its forward pass again: ``none`` of it, ``full``, or the name of its policy."""
        return "full" if unit in self.recompute else self.policies.get(unit, "none")


class Plan(msgspec.Struct, MeshSizes, frozen=True, kw_only=True):
    """How to train one model on one number of ranks.

    ``world size = pp · dp · fsdp · cp · tp``; ranks are numbered with tp innermost, then cp, fsdp, dp,
    pp. ``dp`` counts whole replicas of the state and ``fsdp`` the ranks that share one,
    so HSDP is both above 1 and ``dp · fsdp`` ranks each take their share of the batch:
    ``global_batch = micro_batch · num_micro_batches · dp · fsdp``.

    ``zero`` says what a rank keeps between uses, along ``fsdp`` and ``cp`` together: 0 everything (fsdp is
    1), 1 shards of the optimizer state, 2 also of gradients, 3 also of parameters. Ranks that differ in cp alone
    train on the same samples.

    ``ep`` consecutive data ranks share out the experts of each routed layer, evenly and in order; rows travel to their
    expert's rank and back. All else is data parallel as before. It divides ``dp · fsdp``, and one of ``ep`` and
    ``fsdp`` divides the other: the state of experts is sharded among ``fsdp / ep`` ranks.

    ``stages`` are ``pp · vpp``, in the order of the model: with ``vpp`` above 1 a rank holds several, and
    ``stage_ranks`` says which.

    ``asked`` is the question that the plan answers, as options of ``autoplan search``, so that other commands
    can ask it again; it decides nothing and is no part of ``hash``.

    ``layouts`` maps a block kind and the name of an op or parameter to the name of its strategy on the
    tp axis (see ``graph.axes``; with ``ep``, in the graph that ``graph.expert_cut`` leaves); ``boundary`` is the layout of what passes between units. ``cp_layouts`` and
    ``cp_boundary`` are the same for the cp axis, where parameters are whole; it cuts first, so that ``layouts`` are
    those of one cp rank's graph (``graph.cut``). ``cp_order``: of what cp cuts, a rank has one range (``plain``), or of
    2 · cp pieces the one at its place and the one at its place from the end (``zigzag``).

    ``policies`` says by block kind and name of a policy what a unit under it does not keep for its backward pass:
    the results of ops, and changes of layout (``value:layout``), that are made again (``recompute``) or wait in the
    host's memory (``offload``, of which an input of the unit can be too). See ``cost.keep``.
    """

    format: Literal["autoplan.plan/1"] = "autoplan.plan/1"
    model: str
    fingerprint: str
    global_batch: int
    precision: Precision
    pp: int = 1
    dp: int = 1
    fsdp: int = 1
    cp: int = 1
    tp: int = 1
    ep: int = 1
    vpp: int = 1
    schedule: Schedule = Schedule.ONE_F_ONE_B
    micro_batch: int
    num_micro_batches: int
    zero: int = 0
    stages: tuple[StagePlan, ...]
    boundary: str = "R"
    layouts: dict[str, dict[str, str]] = {}
    cp_boundary: str = "R"
    cp_layouts: dict[str, dict[str, str]] = {}
    cp_order: Literal["plain", "zigzag"] = "plain"
    policies: dict[str, dict[str, dict[str, str]]] = {}
    asked: dict[str, int | float | str] = {}

    @property
    def keeps_whole(self) -> bool:
        """True if each data rank keeps all of its state in the dtype that it computes with, and so has no need of
        FSDP; gradients are averaged over ``replicas``."""
        return self.zero == 0 and self.ep == 1 and self.precision is not Precision.BF16

    @property
    def recompute(self) -> str:
        """``none``, ``full`` or the name of a policy where all units that repeat do the same, else ``mixed``."""
        ways = [(unit, stage.way(unit)) for stage in self.stages for unit in stage.units]
        inner = [way for unit, way in ways if unit not in ("prologue", "epilogue")]
        if all(way == "none" for _, way in ways):
            return "none"
        return inner[0] if len(set(inner)) == 1 and inner[0] != "none" else "mixed"

    def hash(self) -> str:
        """A digest of every decision; ranks compare it before their first collective."""
        decided = msgspec.to_builtins(self)
        del decided["asked"]
        for part in (decided, *decided["stages"]):  # plans from before there were any keep their hash
            for name in ("policies", "device"):
                if not part.get(name, True):
                    del part[name]
        if self.cp_order == "plain":
            del decided["cp_order"]
        return hashlib.sha256(msgspec.json.encode(decided, order="sorted")).hexdigest()[:16]
