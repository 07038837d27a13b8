"""The space of plans of one job, with everything about it that is worth computing only once."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from autoplan.cost.degrees import Degrees
from autoplan.cost.keep import FULL, NONE
from autoplan.cost.memory import limit_bytes
from autoplan.cost.step import Assignment, simulated, stage_prices, step_estimate
from autoplan.cost.unit import StrategiesOf, UnitCost
from autoplan.errors import InputError, PlanError
from autoplan.plan import Schedule
from autoplan.search.candidates import candidates, other_shapes, variants
from autoplan.search.graphs import Graphs
from autoplan.search.layout_bound import LayoutBound
from autoplan.search.layout_choice import LayoutChoice, layout_choices
from autoplan.search.layout_problem import LayoutsOf
from autoplan.search.optimist import Optimist
from autoplan.search.pins import Pins
from autoplan.search.pipeline_bound import pipeline_bound_s
from autoplan.search.places import hiding, least_of_each, staging_question
from autoplan.search.plan_of import plan_of
from autoplan.search.remembered import as_key, digest, remembered
from autoplan.search.result import Candidate
from autoplan.search.run import least_optimizer_s
from autoplan.search.scheduled import Scheduled
from autoplan.search.sequence_choice import SEQUENCE, cuts_sequence, sequence_choices
from autoplan.search.shared_cores import relieved_s
from autoplan.search.splits import Splits
from autoplan.search.stages import Staging, StagingQuestion
from autoplan.search.staging import best_of_allowed, solve_staging
from autoplan.search.staging_bound import staging_bound_s
from autoplan.search.whole_chain import WholeChain

if TYPE_CHECKING:
    from autoplan.graph.ir import ModelGraph
    from autoplan.hardware import AnyCluster, Cluster
    from autoplan.plan import Job

__all__ = ["Space"]


class Space:
    """Candidates, graphs, layouts and the questions that bound and price a candidate."""

    def __init__(
        self,
        graphs: Graphs,
        job: Job,
        cluster: AnyCluster,
        pins: Pins,
        strategies_of: StrategiesOf,
        layouts_of: LayoutsOf,
    ) -> None:
        self.job, self.cluster, self.pins = job, cluster, pins.on(cluster)
        self._types = cluster.types
        self.slack = 0.0  # of any choice of layouts that was asked for
        self._graphs, self._known_ways = graphs, (strategies_of, layouts_of)
        self._strategies_of = strategies_of = pins.rules.strategies(strategies_of)
        self._layouts_of = pins.rules.layouts(layouts_of)
        # Layouts and optimistic costs depend on nothing else, and may be known from another search.
        on = (digest(cluster), pins.rules.ways, *map(id, self._known_ways))
        self._choices: dict[tuple[int, int, int, int], tuple[LayoutChoice, ...]] = graphs.kept.setdefault(
            ("choices", on), {}
        )
        rules = pins.rules
        asked = on, digest(job), pins.recompute, rules.recompute, rules.without, rules.boundary
        self.answers: dict[Hashable, Any] = graphs.kept.setdefault(("answers", asked), {})
        self._least: dict[tuple[int, int, int, int], tuple[Mapping[str, UnitCost], ...]] = {}
        self._best: dict[tuple[int, int, int, int, bool], Mapping[str, UnitCost]] = {}
        self._work: dict[tuple[int, int, int, int, bool, int | None], tuple[float, float, float]] = {}
        self.chain = graphs.trace(pins.micro_batch or 1)
        self.pins, self.candidates = self._candidates(self.pins, self.chain.meetings)
        sizes = sorted({degrees.micro_batch for degrees in self.candidates})
        for size in sizes[:2]:
            # of one sample it is not always clear that it would meet others
            if (met := graphs.trace(size).meetings) and not self.chain.meetings:
                self.pins, self.candidates = self._candidates(self.pins, met)
                break
        self.candidates = self._with_ways(self.candidates)
        self._optimists = [
            Optimist(
                graphs,
                self.chain,
                only,
                strategies_of,
                graphs.kept.setdefault(("costs", digest(only), *on[1:]), {}),
            )
            for only in self._types
        ]
        self._whole = WholeChain(self.chain, job, self._types, self._optimists, self.pins.recompute)
        self._scheduled = Scheduled(  # asked on clusters of one type alone (``Pins.on``)
            self.chain, job, self._types[0], self.pins.recompute, self.pins.rules.without
        )

    def _with_ways(self, found: list[Degrees]) -> list[Degrees]:
        """Candidates whose tp leaves every op a way that the rules allow."""
        rules = self.pins.rules
        if not rules.ways:
            return found
        rules.check(self.chain)
        refused = {tp: rules.refused(self.chain, *self._known_ways, tp) for tp in {d.tp for d in found}}
        left = [degrees for degrees in found if not refused[degrees.tp]]
        if not left:
            tp = min(refused)
            raise PlanError(
                "pin or forbid",
                refused[tp],
                f"one of {rules.offers(self.chain, *self._known_ways, tp)}",
                "name one of these, or change tp",
            )
        return left

    def _candidates(self, pins: Pins, meetings: Sequence[str]) -> tuple[Pins, list[Degrees]]:
        pins = pins.with_whole_batch(meetings, self.job.global_batch)
        try:
            return pins, candidates(
                self.job, self.cluster, len(self.chain.units), pins, self._cuts_sequence, self._shares_experts
            )
        except InputError as error:
            if not meetings:
                raise
            raise PlanError(
                "ranks",
                self.cluster.world_size,
                f"as many as tp can use, since samples of the batch meet ({meetings[0]}) and it stays in one piece",
                "plan for fewer ranks, or let each sample go its own way to the loss's mean",
            ) from error

    def changed(self, cluster: AnyCluster, pins: Pins) -> Space:
        """The space of the same model and job on another cluster or under other pins."""
        return Space(self._graphs, self.job, cluster, pins, *self._known_ways)

    @cached_property
    def _splits(self) -> dict[tuple[int, ...], Splits]:
        found: dict[tuple[int, ...], dict[tuple[int, int, int], Degrees]] = {}
        for degrees in self.candidates:
            shape = degrees.pp, *_layouts_key(degrees)
            found.setdefault(shape, {}).setdefault((degrees.dp, degrees.fsdp, degrees.zero), degrees)
        return {shape: Splits(tuple(members.values())) for shape, members in found.items()}

    @cached_property
    def meshes(self) -> dict[Degrees, list[Degrees]]:
        """The candidates, those together that differ only in what data ranks share; under the first of them."""
        found: dict[tuple[object, ...], list[Degrees]] = {}
        for degrees in self.candidates:
            key = degrees.pp, *_layouts_key(degrees), degrees.schedule, degrees.vpp
            found.setdefault(key, []).append(degrees)
        return {alike[0]: alike for alike in found.values()}

    @property
    def repeats(self) -> frozenset[int]:
        """Positions in the chain of the units that may be recomputed."""
        kinds, units = self.chain.kinds, self.chain.units
        return frozenset(index for index, unit in enumerate(units) if kinds[unit.kind].path)

    def variants(self, degrees: Degrees) -> list[Degrees]:
        """What else than the candidate ``degrees`` itself it stands for: other schedules and stages a rank."""
        return variants(degrees, len(self.chain.units), self.pins) if self.stands_for(degrees) else []

    def stands_for(self, degrees: Degrees) -> int:
        """How many variants there are of ``degrees``."""
        pinned = self.pins.schedule is not None or self.pins.vpp is not None
        if pinned or not _searched(degrees) or degrees.cp > 1 or not self.pins.rules.free_schedules:
            return 0
        return len(other_shapes(degrees.pp, degrees.num_micro_batches, len(self.chain.units), None, None))

    @property
    def count(self) -> int:
        """How many combinations of degrees, state sharding, micro-batch size and schedule there are."""
        return sum(1 + self.stands_for(degrees) for degrees in self.candidates)

    def known_of(self, degrees: Degrees) -> tuple[bool, bool, int]:
        """What bounds of ``degrees`` rest on: whether its layouts are solved, whether its graph is at hand, and what is
        known of what changes of layout take."""
        knows = self.knows(degrees)
        at_hand = self._graphs.at_hand(degrees.micro_batch) is not None
        return knows, at_hand, 0 if knows else self._together.level(degrees)

    def knows(self, degrees: Degrees) -> bool:
        """True if the layouts for these degrees have been solved already."""
        return _layouts_key(degrees) in self._choices

    def choices(self, degrees: Degrees) -> tuple[LayoutChoice, ...]:
        """The layouts to choose from for these degrees; solved once for a micro-batch size, cp, tp and ep."""
        key = _layouts_key(degrees)
        if key not in self._choices:
            graph = self._graphs.at(degrees.micro_batch)
            self._choices[key] = tuple(self._solved(graph, degrees.cp, degrees.tp, degrees.ep))
        self.slack = max([self.slack, *(choice.slack for choice in self._choices[key])])
        self._check_way(self._choices[key])
        allows = self.pins.rules.allows_boundary
        return tuple(c for c in self._choices[key] if allows(str(c.boundary), degrees.tp))

    def _check_way(self, choices: Sequence[LayoutChoice]) -> None:
        way = self.pins.recompute
        if way in (None, NONE, FULL) or any(way in found for c in choices for found in c.policies.values()):
            return
        expected = "a way that some block of this model on this cluster has: none, full, or "
        names = sorted({name for c in choices for found in c.policies.values() for name in found})
        raise PlanError("recompute", way, expected + ", ".join(names), "change it, or leave it to the search")

    def _solved(self, graph: ModelGraph, cp: int, tp: int, ep: int) -> Iterator[LayoutChoice]:
        """The layouts that are best on some type of device; all stages have the same."""
        graph = self._graphs.sharing_experts(graph, ep)
        if len(self._types) == 1:
            yield from self._solved_on(self._types[0], graph, cp, tp)
            return
        known: list[tuple[object, ...]] = []
        for only in self._types:
            for choice in self._solved_on(only, graph, cp, tp):
                if choice.decided not in known:
                    known.append(choice.decided)
                    yield choice.priced_on(self._types, tp, self._strategies_of)

    def _solved_before(self, cluster: Cluster) -> dict[Hashable, Any]:
        """What is known of layouts of blocks on one type of device."""
        on = digest(cluster), self.pins.rules.ways, *map(id, self._known_ways)
        return self._graphs.kept.setdefault(("layouts", on), {})

    def _solved_on(self, cluster: Cluster, graph: ModelGraph, cp: int, tp: int) -> Iterator[LayoutChoice]:
        if cp == 1:
            known = self._solved_before(cluster)
            yield from layout_choices(graph, tp, cluster, self._strategies_of, self._layouts_of, known)
            return
        from autoplan.graph.cut import cut_graph

        for way in sequence_choices(graph, cp, tp, cluster):
            local = cut_graph(graph, way.layouts, SEQUENCE, cp, way.order)
            if self.pins.rules.refused(local, *self._known_ways, tp):
                continue
            for choice in layout_choices(local, tp, cluster, self._strategies_of, self._layouts_of):
                yield replace(choice, cp_layouts=way.layouts, cp_order=way.order)

    def _shares_experts(self, ep: int) -> bool:
        if any(block.graph is None for block in self.chain.kinds.values()):
            return False
        from autoplan.graph.expert_cut import shares_experts

        return shares_experts(self.chain, ep)

    def _cuts_sequence(self, cp: int) -> bool:
        traced = all(block.graph is not None for block in self.chain.kinds.values())
        return traced and cuts_sequence(self.chain, cp)

    def mesh_bound_s(self, degrees: Degrees) -> float:
        """What the mean rank computes and waits for on its tp, cp and ep axes, whatever the schedule, and however data
        ranks share state and batch."""
        total_s = self._together.total_s(degrees, self._whole.total_s(degrees))
        return degrees.num_micro_batches * total_s / degrees.pp

    def joined_bounds_s(self, degrees: Degrees) -> Iterator[float]:
        """Bounds that know what changes of layout take at least, as others of these layouts do from then on."""
        for _ in () if self.knows(degrees) else self._together.learn(degrees):
            bounds = self.mesh_bound_s(degrees), self.first_bound_s(degrees)
            yield max(*bounds, self.optimistic_bound_s(degrees))

    @cached_property
    def _together(self) -> LayoutBound:
        shares = sorted({degrees.ep for degrees in self.candidates})
        ways, known = (self._strategies_of, self._layouts_of), self._solved_before(self._types[0])
        return LayoutBound(self._graphs, self.chain, shares, self._types, ways, known)

    def first_bound_s(self, degrees: Degrees, any_schedule: bool = False) -> float:
        """A bound that costs microseconds; infinite if the state and what must be kept do not fit.

        ``any_schedule``: whatever the schedule and the stages a rank.
        """
        passes: tuple[float, float, float] | None = self._of_splits(self._passes_s, degrees, whatever=True)
        if passes is None:
            return math.inf
        forward_s, backward_s, tail_s = passes
        # no term below counts a forward pass more often than its backward pass
        forward_s += self._together.total_s(degrees, alone_s := self._whole.total_s(degrees)) - alone_s
        own_s = (degrees.num_micro_batches * (forward_s + backward_s) + tail_s) / degrees.pp
        if any_schedule:
            return own_s
        if _searched(degrees):
            bound_s = pipeline_bound_s(forward_s, backward_s, tail_s, degrees.pp, degrees.num_micro_batches)
        else:
            bound_s = max(own_s, self._of_splits(self._scheduled_s, degrees))
        return relieved_s(self.cluster, degrees, bound_s, lambda _: own_s)

    def _passes_s(self, degrees: Degrees, splits: Splits) -> list[tuple[float, float, float] | None]:
        """``WholeChain.passes_s`` of each split, if it fits."""
        limit = self.limit_bytes
        return [
            None if self._whole.least_bytes(split) > limit else self._whole.passes_s(split)
            for split in splits.members
        ]

    def _scheduled_s(self, degrees: Degrees, splits: Splits) -> list[float]:
        return self._of_any_layout(self._scheduled.bounds_s, degrees, splits)

    def _of_splits(
        self,
        asked: Callable[..., Sequence[Any]],
        degrees: Degrees,
        *rest: LayoutChoice,
        whatever: bool = False,
    ) -> Any:
        """What ``asked`` says of ``degrees``; asked once about all candidates that share data in another way.

        ``whatever``: whatever the schedule.
        """
        shape = degrees.pp, *_layouts_key(degrees)
        splits = self._splits[shape]
        order = () if whatever else (degrees.schedule, degrees.vpp)
        key = asked.__name__, shape, order, splits.names, self.known_of(degrees), as_key(rest)
        if key not in self.answers:
            self.answers[key] = asked(degrees, splits, *rest)
        return self.answers[key][splits.places[degrees.dp, degrees.fsdp, degrees.zero]]

    def least_busy_s(
        self, degrees: Degrees, choice: LayoutChoice | None = None, passes_alone: bool = False
    ) -> float:
        """How long of a step the mean rank computes at least, with the layouts of ``choice`` or with any;
        ``passes_alone``: however data ranks share state, so without the optimizer's step."""
        known = self.knows(degrees)
        key = *_layouts_key(degrees), known, None if choice is None else id(choice)
        if key not in self._work:
            costs = self._best_costs(degrees) if choice is None else choice.costs
            units = [costs[unit.kind] for unit in self.chain.units]
            times_s = sum(unit.times.forward_s + unit.times.backward_s for unit in units)
            kind_of = {unit.name: unit.kind for unit in self.chain.units}
            copies = (
                costs[kind_of[unit]].sizes[name] for group in self.chain.tied for unit, name in group[1:]
            )
            trainable = max(sum(unit.trainable for unit in units) - sum(copies), 0.0)
            self._work[key] = times_s, trainable, max(unit.trainable for unit in units)
        times_s, trainable, largest = self._work[key]
        passes_s = degrees.num_micro_batches * times_s / degrees.pp
        if passes_alone:
            return passes_s
        element_s = least_optimizer_s((largest, trainable), degrees, self.job, self._types[0])
        return passes_s + element_s * trainable / degrees.pp

    def work_bound_s(self, degrees: Degrees) -> float:
        """A bound for any schedule that uses the layouts where they are known already."""
        return self._of_splits(self._work_s, degrees)

    def _work_s(self, degrees: Degrees, splits: Splits) -> list[float]:
        costs = self._raised(degrees) or self._best_costs(degrees)
        return self._scheduled.work_s(degrees, splits, costs).tolist()

    def _least_costs(self, degrees: Degrees) -> tuple[Mapping[str, UnitCost], ...]:
        """On each type of device, the least of each cost of units over the choices of layouts, once they are solved;
        before, over any."""
        if not self.knows(degrees):
            asked = degrees.micro_batch, degrees.tp, degrees.cp, degrees.ep
            return tuple(optimist.costs(*asked) for optimist in self._optimists)
        key = _layouts_key(degrees)
        if key not in self._least:
            on = zip(*(choice.costs_on for choice in self.choices(degrees)), strict=True)
            self._least[key] = tuple(map(least_of_each, on))
        return self._least[key]

    def _raised(self, degrees: Degrees) -> Mapping[str, UnitCost] | None:
        """``_best_costs`` with what changes of layout take at least, where that is known and layouts are not.

        No bound of 1F1B counts a forward pass more often than its backward pass, if it does not make all again, and no
        other bound a backward pass more often than its forward pass.
        """
        free = self.pins.recompute in (None, NONE)
        if self.knows(degrees) or not free or not self._together.level(degrees):
            return None
        return self._together.raised(degrees, self._best_costs(degrees), forward=_searched(degrees))

    def _best_costs(self, degrees: Degrees) -> Mapping[str, UnitCost]:
        """The same with each unit on the device that is best for it."""
        on = self._least_costs(degrees)
        if len(on) == 1:
            return on[0]
        key = *_layouts_key(degrees), self.knows(degrees)
        if key not in self._best:
            self._best[key] = least_of_each(on)
        return self._best[key]

    @remembered
    def optimistic_bound_s(self, degrees: Degrees) -> float:
        """A bound that knows memory, recomputation and stages, but searches no layouts."""
        if _searched(degrees):
            bound_s = staging_bound_s(self._question(degrees, self._least_costs(degrees), ()))
            if (raised := self._raised(degrees)) is not None:
                bound_s = max(bound_s, staging_bound_s(hiding(self._question(degrees, (raised,), ()))))
        else:
            bound_s = self._of_splits(self._any_layout_s, degrees)
        return relieved_s(self.cluster, degrees, bound_s)

    @remembered
    def choice_bound_s(self, degrees: Degrees, choice: LayoutChoice, closely: bool = True) -> float:
        """The same, with the layouts that it would run with. Not ``closely``: of ranks, only the first one's memory."""
        if _searched(degrees):
            bound_s = staging_bound_s(self._question(degrees, choice.costs_on, choice.sent_bytes))
        else:
            bound_s = self._of_splits(self._all_ranks_s if closely else self._first_rank_s, degrees, choice)
        return relieved_s(self.cluster, degrees, bound_s, self.work_bound_s)

    def _any_layout_s(self, degrees: Degrees, splits: Splits) -> list[float]:
        return self._of_any_layout(self._scheduled.fullest_ranks_bounds_s, degrees, splits)

    def _of_any_layout(self, asked: Callable[..., Any], degrees: Degrees, splits: Splits) -> list[float]:
        bounds = asked(degrees, splits, self._best_costs(degrees))
        if (raised := self._raised(degrees)) is not None:
            bounds = np.maximum(bounds, asked(degrees, splits, raised, hides=True))
        return bounds.tolist()

    def _first_rank_s(
        self, degrees: Degrees, splits: Splits, choice: LayoutChoice, ranks: int = 1
    ) -> list[float]:
        asked = degrees, splits, choice.costs, choice.sent_bytes, ranks
        return self._scheduled.close_bounds_s(*asked).tolist()

    def _all_ranks_s(self, degrees: Degrees, splits: Splits, choice: LayoutChoice) -> list[float]:
        return self._first_rank_s(degrees, splits, choice, degrees.pp)

    def has_closer_bound(self, degrees: Degrees) -> bool:
        """True if ``choice_bound_s`` has a bound to give that takes longer."""
        return not _searched(degrees)

    @remembered
    def solve(
        self,
        degrees: Degrees,
        choice: LayoutChoice,
        excluded: tuple[tuple[Assignment, ...], ...] = (),
    ) -> Staging | None:
        """The best stages but ``excluded``; None if nothing fits."""
        if not _searched(degrees):
            return self._evenly(degrees, choice)
        question = self._question(degrees, choice.costs_on, choice.sent_bytes)
        question = replace(question, excluded=excluded)
        if self.pins.recompute is not None or len(self.pins.rules.recompute) == 3:
            best = solve_staging(question)
        else:
            best = best_of_allowed(question, self.pins.rules.recompute)
        asked = self.cluster, degrees
        return best and replace(best, bound_s=relieved_s(*asked, best.bound_s, self.work_bound_s))

    def _evenly(self, degrees: Degrees, choice: LayoutChoice) -> Staging | None:
        """The even stages with the least made again that fits, in the best way; None if nothing fits."""
        best: Staging | None = None
        for bound_s, stages in self._scheduled.fitting(degrees, choice.costs, choice.sent_bytes):
            if best is not None and relieved_s(self.cluster, degrees, bound_s) >= best.bound_s:
                break
            if self._recomputed(stages) not in self.pins.rules.recompute:
                continue
            asked = (choice.costs_on, choice.sent_bytes, stages, degrees, self.job, self.cluster)
            prices = stage_prices(self._graphs.at(degrees.micro_batch), *asked)
            step_s = simulated(prices, degrees, self.cluster).step_s
            if best is None or step_s < best.bound_s:
                best = Staging(tuple(stages), step_s)
        return best

    def _recomputed(self, stages: Sequence[Assignment]) -> str:
        """``none``, ``full``, or ``mixed`` for anything else."""
        again = sum(len(stage.recompute) for stage in stages)
        if not again and not any(stage.policies for stage in stages):
            return "none"
        return "full" if again >= len(self.repeats) else "mixed"

    @remembered
    def candidate(self, degrees: Degrees, choice: LayoutChoice, stages: Sequence[Assignment]) -> Candidate:
        """The plan in full, with its price."""
        graph, job = choice.graph, self.job
        asked = (choice.costs_on, choice.sent_bytes, stages, degrees, job, self.cluster)
        estimate = step_estimate(graph, *asked)
        return Candidate(plan_of(degrees, choice, stages, job, self.cluster), estimate)

    @property
    def limit_bytes(self) -> float:
        """What a plan may use of the mean device."""
        return sum(s * limit_bytes(t.device) for s, t in zip(self.cluster.shares, self._types, strict=True))

    def least_bytes(self, degrees: Degrees) -> float:
        """Bytes that the mean rank needs at least."""
        return self._whole.least_bytes(degrees)

    def _question(
        self, degrees: Degrees, costs_on: Sequence[Mapping[str, UnitCost]], sent_bytes: Sequence[float]
    ) -> StagingQuestion:
        """How to cut the chain into stages."""
        return staging_question(self.cluster, self.chain, self.job, self.pins, degrees, costs_on, sent_bytes)


def _layouts_key(degrees: Degrees) -> tuple[int, int, int, int]:
    """What layouts depend on."""
    return degrees.micro_batch, degrees.cp, degrees.tp, degrees.ep


def _searched(degrees: Degrees) -> bool:
    """True for 1F1B, whose stages are searched one by one; for others they are cut evenly."""
    return degrees.schedule is Schedule.ONE_F_ONE_B
