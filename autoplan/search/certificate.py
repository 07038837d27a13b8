"""Every plan of a result, derived again by ``autoplan.verify`` before anyone sees it."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from typing import TYPE_CHECKING

import msgspec

from autoplan.errors import CertificateError
from autoplan.search.graphs import Graphs
from autoplan.search.result import Candidate, SearchResult

if TYPE_CHECKING:
    from autoplan.cost.estimate import Estimate
    from autoplan.graph.ir import ModelGraph
    from autoplan.hardware import AnyCluster
    from autoplan.plan import Job
    from autoplan.verify import Claim, Verdict

__all__ = ["certified", "check_candidate"]


def certified(result: SearchResult, graphs: Graphs, job: Job, cluster: AnyCluster) -> SearchResult:
    """``result`` with what was checked of all its plans. Raises CertificateError if one of them does not hold."""
    if result.best is None:
        return result
    verdicts = [
        _known_verdict(graphs, candidate, job, cluster) for candidate in (result.best, *result.runners_up)
    ]
    checked = [name for name in verdicts[0].checked if all(name in verdict.checked for verdict in verdicts)]
    unchecked = dict.fromkeys(name for verdict in verdicts for name in verdict.unchecked)
    return replace(result, checked=tuple(checked), unchecked=tuple(unchecked))


def _known_verdict(graphs: Graphs, candidate: Candidate, job: Job, cluster: AnyCluster) -> Verdict:
    """The verdict on one plan, which is checked once for a model, job and cluster."""
    said = candidate.plan, candidate.estimate, job, cluster
    key = "verdict", hashlib.sha256(b"".join(map(msgspec.json.encode, said))).hexdigest()
    if key not in graphs.kept:
        graph = graphs.at(candidate.plan.micro_batch)
        graphs.kept[key] = check_candidate(graph, candidate, job, cluster)
    return graphs.kept[key]


def check_candidate(graph: ModelGraph, candidate: Candidate, job: Job, cluster: AnyCluster) -> Verdict:
    """The verdict on one plan. Raises CertificateError if it does not hold."""
    from autoplan.verify import verify_plan

    verdict = verify_plan(graph, candidate.plan, job, cluster, _claim(candidate.estimate))
    if not verdict.holds:
        raise CertificateError(
            f"plan {candidate.plan.hash()}",
            "; ".join(map(str, verdict.findings[:3])),
            "a plan that its independent check confirms",
            "report this with the command that you ran",
        )
    return verdict


def _claim(estimate: Estimate) -> Claim:
    from autoplan.verify import Claim

    return Claim(
        step_s=estimate.step_time_s,
        parts_s=estimate.parts,
        stage_bytes=[stage.memory.total for stage in estimate.stages],
        limit_bytes=[stage.memory_limit_bytes for stage in estimate.stages],
        fits=estimate.fits,
        busy_s=estimate.busy_s,
    )
