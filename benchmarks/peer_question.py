"""One question that every planner is asked, and what a planner's answer costs under our model.

An answer is ``Decided``: the numbers that any planner of transformers decides. What it leaves open (layouts of single ops,
where the embedding and the loss lie) is completed for it as well as our search can, without a limit to memory, so that a
plan that does not fit by our count has a price too, beside the word that it does not fit.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from calculon_model import MEGATRON, NotSaid
from msgspec.structs import replace
from search_quality import with_endless_memory

from autoplan.errors import AutoplanError
from autoplan.graph.sources.sizes import ALIASES, SIZES, DecoderConfig
from autoplan.hardware import Cluster
from autoplan.plan import Job, Plan

if TYPE_CHECKING:
    from autoplan.cost.estimate import Estimate

__all__ = ["Decided", "Question", "from_calculon"]


@dataclass(frozen=True)
class Decided:
    """What a planner chose.

    Args:
        recompute: for each block whether its forward runs again, or one word for all of them.
        layers: blocks of each stage, where the planner says.
        sequence: tensor ranks share the sequence between products (Korthikanti et al., 2022).
    """

    pp: int
    tp: int
    data: int
    zero: int
    micro_batch: int
    sequence: bool
    recompute: tuple[bool, ...] | bool = False
    vpp: int = 1
    layers: tuple[int, ...] = ()

    @property
    def pins(self) -> dict[str, Any]:
        """The same as decisions that our search holds fixed."""
        sharded = self.zero > 0 and self.data > 1
        pins: dict[str, Any] = {"pp": self.pp, "tp": self.tp, "cp": 1, "micro_batch": self.micro_batch}
        pins |= (
            {"dp": 1, "fsdp": self.data, "zero": self.zero}
            if sharded
            else {"dp": self.data, "fsdp": 1, "zero": 0}
        )
        if self.pp > 1:
            pins |= {"schedule": "interleaved", "vpp": self.vpp} if self.vpp > 1 else {"schedule": "1f1b"}
        if self.tp > 1:
            pins["boundary"] = "S(1)" if self.sequence else "R"
        same = self.recompute if isinstance(self.recompute, bool) else all(self.recompute)
        return pins | {"recompute": "full" if same else "none"}


@dataclass
class Question:
    """``gpus`` of ``profile`` train the built-in ``model`` in bf16 on ``batch`` samples a step."""

    model: str
    profile: str
    gpus: int
    batch: int
    _graphs: dict[int, Any] = field(default_factory=dict)

    @property
    def size(self) -> DecoderConfig:
        return SIZES[ALIASES.get(self.model, self.model)]

    @cached_property
    def cluster(self) -> Cluster:
        return Cluster.of(self.profile, gpus=self.gpus)

    @property
    def job(self) -> Job:
        return Job(global_batch=self.batch, tokens_per_sample=self.size.seq)

    def graph(self, samples: int) -> Any:
        """The model, traced for so many samples; each number once."""
        import torch

        from autoplan.graph.sources import load_source
        from autoplan.graph.trace import trace

        if samples not in self._graphs:
            source = load_source(self.model, None)
            with torch.device("meta"):
                model = source.build()
            self._graphs[samples] = trace(
                model, source.example_batch(samples), source.loss, self.job.precision, source.name,
                device=self.cluster.device.kind,
            )  # fmt: skip
        return self._graphs[samples]

    def completed(self, decided: Decided) -> tuple[Plan, Estimate]:
        """The plan with those decisions, and its price. Raises NotSaid where no program could run it."""
        from autoplan.cost.price import price
        from autoplan.search import search

        roomy = with_endless_memory(self.cluster)
        pins = decided.pins | (MEGATRON[self.size.family] if decided.tp > 1 else {})
        try:
            found = search(self.graph, self.job, roomy, pin=pins, gap=0.0, top=1, cures=False)
            if found.plan is None:
                raise NotSaid(f"none of our programs runs it: {found.conflict}")
            plan = _with_stages(found.plan, decided)
            return plan, price(self.graph(plan.micro_batch), plan, self.job, self.cluster)
        except AutoplanError as error:
            raise NotSaid(f"none of our programs runs it: {error}") from None


def _with_stages(plan: Plan, decided: Decided) -> Plan:
    """``plan`` with the blocks of each stage, and those recomputed, that the planner chose."""
    blocks = [unit for stage in plan.stages for unit in stage.units]
    first, *inner, last = blocks
    if decided.layers:
        cuts = [sum(decided.layers[:index]) for index in range(len(decided.layers) + 1)]
        units = [tuple(inner[start:stop]) for start, stop in pairwise(cuts)]
        units[0] = (first, *units[0])
        units[-1] = (*units[-1], last)
    else:
        units = [stage.units for stage in plan.stages]
    if isinstance(decided.recompute, bool):
        again = set(inner) if decided.recompute else set()
    else:
        again = {unit for unit, runs in zip(inner, decided.recompute, strict=True) if runs}
    stages = tuple(
        replace(stage, units=own, recompute=tuple(unit for unit in own if unit in again), policies={})
        for stage, own in zip(plan.stages, units, strict=True)
    )
    return replace(plan, stages=stages)


def from_calculon(execution: dict[str, Any]) -> Decided:
    """What Calculon's search found. Its ``attn_only`` is what fused attention does anyway."""
    return Decided(
        pp=execution["pipeline_par"],
        tp=execution["tensor_par"],
        data=execution["data_par"],
        zero=1 if execution["optimizer_sharding"] else 0,
        micro_batch=execution["microbatch_size"],
        sequence=execution["tensor_par_comm_type"] == "rs_ag",
        recompute=execution["activation_recompute"] == "full",
        vpp=execution["pipeline_interleaving"],
    )
