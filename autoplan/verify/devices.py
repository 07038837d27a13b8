"""What a pipeline rank runs on, in a cluster of several parts: found by counting ranks."""

from __future__ import annotations

from typing import TYPE_CHECKING

from autoplan.verify.verdict import Finding, Verdict

if TYPE_CHECKING:
    from autoplan.hardware import AnyCluster
    from autoplan.plan import Plan

__all__ = ["parts_of_ranks"]


def parts_of_ranks(verdict: Verdict, plan: Plan, cluster: AnyCluster) -> list[int]:
    """Of each pipeline rank, the part of the cluster (its place in ``cluster.types``) that all its ranks are in.

    Ranks of two parts are a finding.
    """
    parts = getattr(cluster, "parts", (cluster,))
    owner = [index for index, part in enumerate(parts) for _ in range(part.world_size)]
    each = len(owner) // plan.pp
    found = []
    for rank in range(plan.pp):
        mine = owner[rank * each : (rank + 1) * each]
        if mine[0] != mine[-1]:
            verdict.findings.append(Finding(f"devices of rank {rank}", "of one type", "of two types"))
        found.append(mine[0])
    return found
