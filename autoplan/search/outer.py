"""``search``: the fastest plan for a model on a cluster, with a bound that proves it."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from autoplan.cost.unit import StrategiesOf
from autoplan.search.branch_and_bound import BranchAndBound, mesh_of
from autoplan.search.certificate import certified
from autoplan.search.garbage import seldom_collected
from autoplan.search.goal import Goal
from autoplan.search.graphs import GraphAt, Graphs
from autoplan.search.infeasible import explain
from autoplan.search.layout_problem import LayoutsOf
from autoplan.search.pins import Pins
from autoplan.search.result import Candidate, Cure, SearchResult, Status
from autoplan.search.space import Space

if TYPE_CHECKING:
    from autoplan.graph.ir import ModelGraph
    from autoplan.graph.unruled import UnruledOp
    from autoplan.hardware import AnyCluster
    from autoplan.plan import Job

__all__ = ["search"]

_FASTEST = Goal()
_OPTIMAL = 1e-6  # a relative gap that is no gap


@seldom_collected()
def search(
    graph_at: GraphAt | Graphs,
    job: Job,
    cluster: AnyCluster,
    *,
    pin: Mapping[str, Any] | None = None,
    forbid: Iterable[tuple[str, Any]] = (),
    gap: float = 0.01,
    time_limit_s: float | None = None,
    progress: Callable[[str], object] | None = None,
    top: int = 5,
    cures: bool = True,
    strategies_of: StrategiesOf | None = None,
    layouts_of: LayoutsOf | None = None,
    goal: Goal = _FASTEST,
) -> SearchResult:
    """Search every combination of degrees, state sharding, micro-batch, stages, recomputation and layouts.

    Args:
        graph_at: from a micro-batch size to the model traced for it; called for few sizes, once each. Or ``Graphs``
            of such a function, which keep what a search learns for the next one.
        pin: decisions to hold fixed: ``pp``, ``dp``, ``fsdp``, ``cp``, ``tp``, ``ep``, ``zero``, ``micro_batch``,
            ``recompute`` (one of ``rules.WAYS``), ``schedule`` (a name), ``vpp``,
            ``boundary`` (a layout), or ``BLOCK.OP`` (a strategy; see
            ``search.rules``).
        forbid: pairs of a decision, named likewise, and a value that it must not have.
        gap: stop once no plan can be faster by more than this share.
        time_limit_s: stop then with what bound there is, and with the best plan found, if there is one; a trace, and
            the check of that plan, still come to their ends.
        progress: told in a sentence how far the search has come.
        top: plans to return, the best included.
        cures: if nothing fits, say what would mend it.
        strategies_of, layouts_of: ``graph.axes``, unless a test brings its own.
        goal: what to have least of, and what no plan may exceed.

    On a cluster of several types of device, a pipeline's stages have devices of one type each, with more units where
    these are faster; plans without such stages, and schedules other than 1F1B, are not in the space.

    Raises InputError or PlanError for a pin or a batch that cannot be; that nothing fits is a status.
    """
    started = time.monotonic()
    forbid = tuple(forbid)
    pins = Pins.parse(pin, job, cluster, forbid)
    ours = strategies_of is None or layouts_of is None
    if strategies_of is None or layouts_of is None:
        from autoplan.graph.axes import strategies, value_layouts

        strategies_of, layouts_of = strategies, value_layouts
    graphs = graph_at if isinstance(graph_at, Graphs) else Graphs(graph_at)
    stop_at = started + time_limit_s if time_limit_s is not None else math.inf
    while True:
        space = Space(graphs, job, cluster, pins, strategies_of, layouts_of)
        tree = BranchAndBound(space, gap, stop_at, progress, goal=goal)
        tree.run()
        if not tree.found and tree.open:
            return _out_of_time(tree, time.monotonic() - started, time_limit_s or 0.0)
        if not tree.found:
            found = _result(tree, Status.INFEASIBLE, time.monotonic() - started)
            if goal.limited:
                free = BranchAndBound(space, gap, stop_at, progress)
                free.run()
                if free.found:
                    return _beyond_limits(found, free, goal)
                if free.open:
                    return replace(found, conflict="no plan is within the limits of the run")
            if not cures:
                return found
            conflict, mended, core = explain(space, pin or {}, forbid, stop_at)
            return replace(found, conflict=conflict, cures=mended, conflicting=core)
        tree.more(top)
        best = tree.found[0].plan.micro_batch
        if graphs.confirm(best):
            result = _result(tree, _status(tree, gap), time.monotonic() - started, top)
            return _told(certified(result, graphs, job, cluster), graphs.trace(best)) if ours else result


def _told(result: SearchResult, graph: ModelGraph) -> SearchResult:
    """The result with what its graph says beside the plan."""
    assumed = () if graph.routing is None else (str(graph.routing),)
    return replace(result, unruled=_unruled(graph), assumptions=assumed)


def _unruled(graph: ModelGraph) -> tuple[UnruledOp, ...]:
    from autoplan.graph.unruled import unruled_ops

    return tuple(unruled_ops(graph))


def _status(tree: BranchAndBound, wanted: float) -> Status:
    if not tree.found:
        return Status.INFEASIBLE
    reached = _gap(tree)
    if reached <= _OPTIMAL:
        return Status.OPTIMAL
    return Status.WITHIN_GAP if reached <= wanted / (1 - wanted) + _OPTIMAL else Status.LIMIT


def _gap(tree: BranchAndBound) -> float:
    """How much more of the goal the best plan has than any plan must."""
    value = tree.goal.value(tree.found[0].estimate)
    return value / min(tree.least, value) - 1


def _bound_s(tree: BranchAndBound) -> float:
    return min(tree.bound_s, *(candidate.estimate.step_time_s for candidate in tree.found))


def _beyond_limits(found: SearchResult, free: BranchAndBound, goal: Goal) -> SearchResult:
    """``found`` no plan within the limits, though there are plans."""
    step_s = free.found[0].estimate.step_time_s
    conflict, cures = [], []
    for option, most, each in (
        ("--max-days", goal.max_days, goal.days_of_s),
        ("--max-cost", goal.max_cost, goal.cost_of_s),
    ):
        if step_s * each > most:
            conflict.append(
                f"the fastest plan needs {option} {step_s * each:.4g}, no plan less than {_bound_s(free) * each:.4g}"
            )
            cures.append(Cure(option, f"{step_s * each:.4g}", f"allow {option} {step_s * each:.4g}", step_s))
    return replace(found, conflict="; ".join(conflict), cures=tuple(cures))


def _out_of_time(tree: BranchAndBound, seconds: float, limit_s: float) -> SearchResult:
    """No plan yet; the bound holds all the same."""
    conflict = f"none of {tree.space.count:,} candidates was priced within {limit_s:.4g} s"
    cure = Cure(
        "--time-limit", "", "allow the search more time, or hold some decisions fixed, such as --tp and --pp"
    )
    found = _result(tree, Status.LIMIT, seconds)
    return replace(found, gap=math.inf, bound_s=tree.bound_s, conflict=conflict, cures=(cure,))


def _leaders(found: Sequence[Candidate], top: int) -> tuple[Candidate, ...]:
    """The fastest plan of each of the ``top`` fastest sets of degrees."""
    first: dict[tuple[int, ...], Candidate] = {}
    for candidate in found:
        first.setdefault(mesh_of(candidate.plan), candidate)
    return tuple(first.values())[:top]


def _result(
    tree: BranchAndBound,
    status: Status,
    seconds: float,
    top: int = 0,
) -> SearchResult:
    leaders = _leaders(tree.found, top)
    bound_s = _bound_s(tree) if leaders else 0.0
    return SearchResult(
        status=status,
        gap=_gap(tree) if leaders else 0.0,
        bound_s=bound_s,
        best=leaders[0] if leaders else None,
        runners_up=leaders[1:],
        seconds=seconds,
        candidates=tree.space.count,
        pruned=tree.pruned,
        objective=tree.goal.objective.value,
    )
