"""Why each decision of a plan is as it is: what it does on this cluster, and what the next best costs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from autoplan.hardware import AnyCluster, Cluster
from autoplan.plan import Plan, Schedule
from autoplan.search.result import Candidate
from autoplan.units import bytes_binary

__all__ = ["Reason", "decision_reasons", "percent", "signed_percent"]


@dataclass(frozen=True, slots=True)
class Reason:
    """One decision: its name, its value, a sentence, and the fastest plan seen that decides otherwise."""

    name: str
    value: str
    text: str
    otherwise: str


def decision_reasons(best: Candidate, runners_up: Sequence[Candidate], cluster: AnyCluster) -> list[Reason]:
    """The decisions of ``best``, outermost mesh axis first."""
    plan = best.plan
    sentences = {
        "pp": _pipeline(best, cluster),
        "dp": _replicas(plan, cluster),
        "fsdp": _sharding(plan, cluster),
        "cp": _sequence(best, runners_up, cluster),
        "tp": _tensor(plan, cluster),
        "ep": _experts(best, runners_up, cluster),
        "micro-batch": f"{plan.num_micro_batches} in turn, on {plan.data_ranks} data rank{'s' * (plan.data_ranks > 1)}",
        "recompute": _recompute(best),
    }
    return [
        Reason(name, str(_DECISIONS[name](plan)), text, _otherwise(name, best, runners_up))
        for name, text in sentences.items()
        if text
    ]


def percent(share: float) -> str:
    """``0.1234`` → ``12.3 %``."""
    return f"{share * 100:.1f} %"


def signed_percent(share: float) -> str:
    """``0.1234`` → ``+12.3 %``."""
    return f"{'-' if share < 0 else '+'}{percent(abs(share))}"


_DECISIONS: dict[str, Callable[[Plan], object]] = {
    "pp": lambda plan: plan.pp,
    "dp": lambda plan: plan.dp,
    "fsdp": lambda plan: plan.fsdp,
    "cp": lambda plan: plan.cp,
    "tp": lambda plan: plan.tp,
    "ep": lambda plan: plan.ep,
    "micro-batch": lambda plan: plan.micro_batch,
    "recompute": lambda plan: plan.recompute,
}

_SHARDED = {
    1: "optimizer state",
    2: "optimizer state and gradients",
    3: "parameters, gradients, optimizer",
}


def _pipeline(best: Candidate, cluster: AnyCluster) -> str:
    plan = best.plan
    if plan.pp == 1:
        return "every rank runs the whole depth"
    lengths = sorted({len(stage.units) for stage in plan.stages})
    units = str(lengths[0]) if len(lengths) == 1 else f"{lengths[0]} to {lengths[-1]}"
    bubble = best.estimate.parts.get("bubble", 0.0) / best.estimate.step_time_s
    sends = _link(cluster, plan.pp, plan.world_size // plan.pp)
    held = f", {plan.vpp} a rank," if plan.vpp > 1 else ""
    order = "" if plan.schedule is Schedule.ONE_F_ONE_B else f"{plan.schedule}, "
    return f"{order}stages of {units} units{held} over {sends}; bubble {percent(bubble)}"


def _replicas(plan: Plan, cluster: AnyCluster) -> str:
    if plan.dp == 1:
        return "one copy of the training state"
    return (
        f"copies of the state; gradients summed over {_link(cluster, plan.dp, plan.fsdp * plan.cp * plan.tp)}"
    )


def _sharding(plan: Plan, cluster: AnyCluster) -> str:
    if plan.shard_ranks == 1:
        return "nothing of the state is sharded"
    return f"ZeRO-{plan.zero}: {_SHARDED[plan.zero]} over {_link(cluster, plan.shard_ranks, plan.tp)}"


def _sequence(best: Candidate, runners_up: Sequence[Candidate], cluster: AnyCluster) -> str:
    """How attention meets a cut sequence; nothing where no plan in sight cuts one."""
    plan = best.plan
    if plan.cp == 1:
        return "sequences stay whole" if any(r.plan.cp > 1 for r in runners_up) else ""
    taken = {name for names in plan.cp_layouts.values() for name in names.values()}
    how = "cut by heads inside attention"
    if taken & {"cut q", "ring q"}:
        how = "keys and values " + ("round a ring" if "ring q" in taken else "gathered")
    order = " in zigzag order" if plan.cp_order == "zigzag" else ""
    return f"sequences cut over {_link(cluster, plan.cp, plan.tp)}{order}, {how}"


def _tensor(plan: Plan, cluster: AnyCluster) -> str:
    if plan.tp == 1:
        return "ops stay whole"
    between = "sequence parallel" if plan.boundary.startswith("S") else "whole"
    return f"ops cut over {_link(cluster, plan.tp, 1)}, {between} between blocks"


def _experts(best: Candidate, runners_up: Sequence[Candidate], cluster: AnyCluster) -> str:
    """Who has which experts; nothing where no plan in sight shares them out."""
    plan = best.plan
    if plan.ep == 1:
        return "every data rank has all experts" if any(r.plan.ep > 1 for r in runners_up) else ""
    link = _link(cluster, plan.ep, plan.tp)
    return f"experts shared out over {link}, tokens sent there and back"


def _recompute(best: Candidate) -> str:
    plan, estimate = best.plan, best.estimate
    free = bytes_binary(max(0.0, estimate.memory_limit_bytes - estimate.peak_memory_bytes))
    if plan.recompute == "none":
        return f"every activation is kept; {free} to spare"
    units = sum(len(stage.units) for stage in plan.stages)
    again = sum(len(stage.recompute) for stage in plan.stages)
    some = Counter(policy for stage in plan.stages for policy in stage.policies.values())
    said = [f"{again} of {units} units run forward twice"] if again else []
    for index, (policy, count) in enumerate(sorted(some.items())):
        verb = "park tensors on the host" if policy == "offload" else f"run some ops twice ({policy})"
        said.append(f"{count} {verb}" if said or index else f"{count} of {units} units {verb}")
    return f"{', '.join(said)}; {free} to spare"


def _link(cluster: AnyCluster, size: int, stride: int) -> str:
    """The outermost level that a group of ``size`` ranks, ``stride`` apart, crosses."""
    return " or ".join(dict.fromkeys(_level(only, size, stride) for only in cluster.types))


def _level(cluster: Cluster, size: int, stride: int) -> str:
    inside = 1
    for level in cluster.levels:
        inside *= level.size
        if size * stride <= inside:
            return level.name
    return cluster.levels[-1].name


def _otherwise(name: str, best: Candidate, runners_up: Sequence[Candidate]) -> str:
    mine = _DECISIONS[name](best.plan)
    others = [runner for runner in runners_up if _DECISIONS[name](runner.plan) != mine]
    if not others:
        return ""
    nearest = min(others, key=lambda runner: runner.estimate.step_time_s)
    loss = nearest.estimate.step_time_s / best.estimate.step_time_s - 1
    return f"{name} {_DECISIONS[name](nearest.plan)}: {signed_percent(loss)}"
