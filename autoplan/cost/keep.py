"""What a unit keeps for its backward pass under a policy, and what making the rest again or fetching it takes.

A policy names steps (``cost.storages``) and says of each ``recompute`` or ``offload``. A storage that somebody needs
in the backward pass, an op or a step that runs again, is

    made again     if the step that made it is to be recomputed, from what that step reads;
    on the host    if it is to be offloaded;
    kept           otherwise.

So a step runs again once at most, and only if what it makes is needed; a policy can make more be kept than none does
(what a recomputed step reads, and no backward pass). Copies to the host run beside the forward pass, and back beside
the backward pass of the unit after it; what they take beyond it is waited for.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from autoplan.cost.storages import Storages
from autoplan.errors import PlanError, ProfileError

if TYPE_CHECKING:
    from autoplan.hardware import Cluster

__all__ = ["FULL", "NONE", "Keep", "attention_core", "hull", "keep_of", "needed", "on_or_above"]

NONE, FULL = "none", "full"
"""The two ways that every unit knows: keep all that backward reads, or the unit's inputs alone."""


@dataclass(frozen=True, slots=True)
class Keep:
    """Of one unit and one micro-batch, on one rank.

    Args:
        kept_bytes: what stays on the device until the backward pass.
        again_s, again_comm_s: computing, and waiting for tp and cp, a second time.
        again_bytes: what is there again, at most, while the unit's backward runs.
        host_bytes: what waits in the host's memory.
        away_s, back_s: to copy that there, and back.
    """

    kept_bytes: float
    again_s: float = 0.0
    again_comm_s: float = 0.0
    again_bytes: float = 0.0
    host_bytes: float = 0.0
    away_s: float = 0.0
    back_s: float = 0.0

    @property
    def rerun_s(self) -> float:
        return self.again_s + self.again_comm_s


def keep_of(where: str, found: Storages, policy: Mapping[str, str], cluster: Cluster) -> Keep:
    """What ``policy`` comes to. Raises PlanError (naming ``where``) for a step that there is not or that cannot run
    again, and ProfileError for an offload where the profile has no link to the host."""
    _check(where, found, policy)
    again = {name for name, action in policy.items() if action == "recompute" and name in found.steps}
    away = {name for name, action in policy.items() if action == "offload"}
    runs, held = needed(found, again)
    kept = host = 0.0
    for index in held:
        storage = found.storages[index]
        name = storage.maker or _input_name(found, index)
        if name in away:
            host += storage.nbytes
        else:
            kept += storage.nbytes
    for step in found.steps.values():
        if step.name in away:
            host += step.inside_bytes
        elif step.name not in runs:
            kept += step.inside_bytes
    steps = [step for step in found.steps.values() if step.name in runs]
    return Keep(
        kept_bytes=kept,
        again_s=sum(step.forward_s for step in steps),
        again_comm_s=sum(step.comm_s for step in steps),
        again_bytes=max(found.kept_bytes - kept, 0.0),
        host_bytes=host,
        away_s=_copy_s(cluster, host, "to_host"),
        back_s=_copy_s(cluster, host, "from_host"),
    )


def needed(found: Storages, again: Iterable[str]) -> tuple[set[str], set[int]]:
    """Which of the steps ``again`` do run again, and which storages are held for that and for backward."""
    again = set(again)
    runs: set[str] = set()
    held: set[int] = set()
    seen: set[int] = set()
    waiting = [index for index, storage in enumerate(found.storages) if storage.needed]

    def run(name: str) -> None:
        if name not in runs:
            runs.add(name)
            waiting.extend(found.steps[name].reads)

    for name in sorted(again):
        if found.steps[name].inside_bytes:
            run(name)
    while waiting:
        index = waiting.pop()
        if index in seen:
            continue
        seen.add(index)
        maker = found.storages[index].maker
        if maker in again:
            run(maker)
        else:
            held.add(index)
    return runs, held


def attention_core(found: Storages) -> dict[str, str]:
    """The policy called selective: what lies between the products of queries, keys and values is made again
    (Korthikanti et al., 2022, section 5). That is a fused attention, or every step on a way from one product of
    two activations to another. Empty if there is none, or none that can run again."""
    products = [step.name for step in found.steps.values() if step.meets]
    made = {storage.maker: index for index, storage in enumerate(found.storages)}
    after: set[str] = set()
    for step in found.steps.values():
        read = {found.storages[index].maker for index in step.reads}
        if step.meets or read & after:
            after.add(step.name)
    before: set[str] = set()
    wanted: set[int] = set()
    for step in reversed(found.steps.values()):
        if step.name in products or made.get(step.name) in wanted:
            before.add(step.name)
            wanted |= set(step.reads)
    return {name: "recompute" for name in found.steps if name in after & before and found.steps[name].again}


def _check(where: str, found: Storages, policy: Mapping[str, str]) -> None:
    for name, action in policy.items():
        step = found.steps.get(name)
        if name in found.views:
            continue
        remedy = "search again for this model"
        if action == "offload" and (step is not None or name in found.inputs):
            continue
        if step is None:
            raise PlanError(f"{where}.{name}", action, "an op or change of layout of this block", remedy)
        if action == "recompute" and not step.again:
            expected = (
                "an op that gives the same when it runs again: no random numbers, no change of buffers, "
            )
            raise PlanError(f"{where}.{name}", action, expected + "one result of its own", remedy)


def _input_name(found: Storages, index: int) -> str:
    return next((name for name, at in found.inputs.items() if at == index), "")


def _copy_s(cluster: Cluster, nbytes: float, direction: str) -> float:
    if not nbytes:
        return 0.0
    host = cluster.device.host
    if host is None:
        expected = "a link to the host's memory, over which activations are offloaded"
        raise ProfileError(
            "device.host", None, expected, "add [device.host] to the profile, or do not offload"
        )
    return float(host.time_s(nbytes, "to_host" if direction == "to_host" else "from_host"))


def hull(points: Sequence[tuple[float, float]]) -> tuple[tuple[float, float], ...]:
    """The lower convex hull of (bytes kept, seconds), from the fewest bytes that cost nothing on, bytes falling."""
    found: list[tuple[float, float]] = []
    for kept, seconds in sorted(points, key=lambda point: (point[1], point[0])):
        if found and kept >= found[-1][0]:
            continue
        while len(found) > 1 and on_or_above(found[-2], found[-1], (kept, seconds)):
            found.pop()
        found.append((kept, seconds))
    return tuple(found)


def on_or_above(a: tuple[float, float], b: tuple[float, float], c: tuple[float, float]) -> bool:
    """True if ``b`` lies on or above the line from ``a`` to ``c``."""
    return (b[1] - a[1]) * (a[0] - c[0]) >= (c[1] - a[1]) * (a[0] - b[0])
