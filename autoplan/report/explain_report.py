"""What a plan's decisions are worth, as tables for people and as data."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import msgspec
from rich import box
from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from autoplan.cost.estimate import Estimate
from autoplan.hardware import AnyCluster
from autoplan.plan import Plan
from autoplan.report.reasons import percent
from autoplan.search.counterfactual import Otherwise, difference
from autoplan.search.result import Candidate, SearchResult
from autoplan.units import bytes_binary, seconds

__all__ = ["explain_json", "explain_report", "plan_words", "why_not_json", "why_not_report"]

_CAUSES = 2  # named for each difference
_SMALL = 0.0005  # of a step: not worth naming


def explain_report(
    mine: Candidate, best: SearchResult, others: Sequence[Otherwise], cluster: AnyCluster
) -> RenderableType:
    """The plan's price, how near to the best it is, and for each decision the best plan without it."""
    return Group(*_explained(mine, best, others, cluster))


def why_not_report(mine: Candidate, asked: str, found: SearchResult, cluster: AnyCluster) -> RenderableType:
    """The plan beside the best one under ``asked``: where the seconds and the bytes go."""
    return Group(*_compared(mine, asked, found, cluster))


def explain_json(mine: Candidate, best: SearchResult, others: Sequence[Otherwise]) -> dict[str, Any]:
    """The same as data."""
    return {
        **_candidate_json(mine),
        "best": _found_json(mine, best),
        "decisions": [
            {
                "name": other.name,
                "value": other.value,
                "otherwise": None if other.result is None else _found_json(mine, other.result),
            }
            for other in others
        ],
    }


def why_not_json(mine: Candidate, asked: str, found: SearchResult) -> dict[str, Any]:
    """The same as data."""
    return {**_candidate_json(mine), "why_not": {"asked": asked, **_found_json(mine, found)}}


def _candidate_json(candidate: Candidate) -> dict[str, Any]:
    plan = msgspec.to_builtins(candidate.plan)
    return {
        "plan": {**plan, "recompute": candidate.plan.recompute},
        "estimate": msgspec.to_builtins(candidate.estimate),
    }


def _found_json(mine: Candidate, found: SearchResult) -> dict[str, Any]:
    data: dict[str, Any] = {"status": found.status.value, "bound_s": found.bound_s, "gap": found.gap}
    if found.best is None:
        cures = found.to_json()
        return {**data, **{name: cures[name] for name in ("conflict", "conflicting", "cures")}}
    parts, owners = difference(mine.estimate, found.best.estimate)
    more_s = found.best.estimate.step_time_s - mine.estimate.step_time_s
    more = {"step_time_s": more_s, "parts": parts, "memory": owners}
    return {**data, **_candidate_json(found.best), "difference": more}


def _explained(
    mine: Candidate, best: SearchResult, others: Sequence[Otherwise], cluster: AnyCluster
) -> Iterator[RenderableType]:
    step_s = mine.estimate.step_time_s
    yield _heading(mine.plan, cluster)
    yield _price("this plan", mine.estimate)
    if best.best is not None:
        ahead = step_s / best.best.estimate.step_time_s - 1
        if ahead > _SMALL:
            yield _price("the best ", best.best.estimate)
            yield Text(f"  {plan_words(best.best.plan)}; this plan is {percent(ahead)} slower")
        yield Text(
            f"no plan of the space is below {seconds(best.bound_s)}: this one is within "
            f"{percent(step_s / best.bound_s - 1)} of that"
        )
    yield Text()
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1), pad_edge=False, show_edge=False)
    for name, justify in (("decision", "left"), ("otherwise", "left"), ("step", "right"), ("", "right")):
        table.add_column(name, justify=justify, no_wrap=True)  # type: ignore[arg-type]
    table.add_column("where it goes")
    for other in others:
        if other.result is not None:  # where there was anything to decide
            table.add_row(f"{other.name}={other.value}", *_otherwise(mine, other.result))
    yield table


def _otherwise(mine: Candidate, found: SearchResult) -> tuple[str, str, str, str]:
    if found.best is None:
        return "nothing fits", "", "", ""
    theirs = found.best
    change = theirs.estimate.step_time_s / mine.estimate.step_time_s - 1
    parts, _ = difference(mine.estimate, theirs.estimate)
    return (
        plan_words(theirs.plan),
        seconds(theirs.estimate.step_time_s),
        _signed(change),
        _causes(parts, mine.estimate.step_time_s),
    )


def _compared(
    mine: Candidate, asked: str, found: SearchResult, cluster: AnyCluster
) -> Iterator[RenderableType]:
    yield _heading(mine.plan, cluster)
    if found.best is None:
        yield Text(f"{asked}: {found.conflict}")
        if found.conflicting:
            yield Text(f"in conflict: {', '.join(found.conflicting)} (any one of them released, a plan fits)")
        for cure in found.cures:
            yield Padding(Text(cure.text), (0, 0, 0, 2))
        return
    theirs = found.best
    more_s = theirs.estimate.step_time_s - mine.estimate.step_time_s
    word = "slower" if more_s > 0 else "faster"
    share = abs(more_s) / mine.estimate.step_time_s
    verdict = f"{seconds(abs(more_s))} a step {word} ({percent(share)})" if share > _SMALL else "as fast"
    yield Text.assemble((f"{asked}: ", "bold cyan"), f"{plan_words(theirs.plan)} is {verdict}")
    yield Text()
    parts, owners = difference(mine.estimate, theirs.estimate)
    yield _table("seconds a step", mine.estimate.parts, theirs.estimate.parts, parts, seconds)
    yield Text()
    yield _table("bytes, worst rank", _owners(mine.estimate), _owners(theirs.estimate), owners, bytes_binary)


def _table(
    title: str, mine: dict[str, float], theirs: dict[str, float], more: dict[str, float], shown: Any
) -> Table:
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1), pad_edge=False, show_edge=False)
    table.add_column(title, no_wrap=True)
    for name in ("this plan", "that plan", "difference"):
        table.add_column(name, justify="right", no_wrap=True)
    whole = sum(mine.values()) or 1.0
    for name, change in sorted(more.items(), key=lambda item: -abs(item[1])):
        if max(mine.get(name, 0.0), theirs.get(name, 0.0)) > _SMALL * whole:
            label = name.replace("_comm", " communication")
            table.add_row(
                label, shown(mine.get(name, 0.0)), shown(theirs.get(name, 0.0)), _more(change, shown)
            )
    totals = sum(mine.values()), sum(theirs.values())
    table.add_row(
        "in all", shown(totals[0]), shown(totals[1]), _more(totals[1] - totals[0], shown), style="bold"
    )
    return table


def _owners(estimate: Estimate) -> dict[str, float]:
    memory = max(estimate.stages, key=lambda stage: stage.filled).memory
    return {name: getattr(memory, name) for name in memory.__struct_fields__}


def _causes(parts: dict[str, float], step_s: float) -> str:
    named = sorted(parts.items(), key=lambda item: -abs(item[1]))[:_CAUSES]
    return ", ".join(
        f"{name.replace('_comm', ' communication')} {_more(change, seconds)}"
        for name, change in named
        if abs(change) > _SMALL * step_s
    )


def _more(change: float, shown: Any) -> str:
    return f"{'−' if change < 0 else '+'}{shown(abs(change))}"


def _signed(share: float) -> str:
    return f"{'−' if share < 0 else '+'}{percent(abs(share))}"


def plan_words(plan: Plan) -> str:
    """A plan in a few words."""
    names = ("pp", "vpp", "dp", "fsdp", "cp", "tp", "ep")
    shown = " ".join(f"{name} {getattr(plan, name)}" for name in names if getattr(plan, name) > 1)
    sharding = f", ZeRO-{plan.zero}" if plan.zero else ""
    schedule = "" if str(plan.schedule) == "1f1b" else f", {plan.schedule}"
    again = "" if plan.recompute == "none" else f", recompute {plan.recompute}"
    return f"{shown or 'one rank'}{sharding}{schedule}, {plan.micro_batch} × {plan.num_micro_batches}{again}"


def _heading(plan: Plan, cluster: AnyCluster) -> Text:
    return Text.assemble(
        (plan.model, "bold"),
        f" on {cluster.devices_text}, batch {plan.global_batch:,}: {plan_words(plan)}",
    )


def _price(who: str, estimate: Estimate) -> Text:
    return Text(
        f"{who} takes {seconds(estimate.step_time_s)} a step, MFU {percent(estimate.mfu)}, "
        f"{bytes_binary(estimate.peak_memory_bytes)} on the worst rank"
    )
