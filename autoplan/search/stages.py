"""Which units each pipeline stage runs, and how many of them it recomputes in which way, as an integer program.

The chain is a row of *runs*: g stands for ``count[g]`` units of one kind, one after another. With p
stages, m micro-batches, w_s = min(m, p - s) of them in flight on stage s, and c the seconds to send,

    n[g,s]  how many units of run g stage s runs;  r[g,o,s], Σ_o r[g,o,s] ≤ n[g,s], how many of them in way o:
            recomputed in full, or under a policy (``cost.keep``)
    d[g,s]  1 if run g ends by the end of stage s;  q[g,o,s] 1 if stage s has any of run g in way o
    F_s, B_s    seconds of a micro-batch's passes, what is not hidden of its state traffic included
    L_s         seconds of the last backward, with what follows it: gradients reduced, optimizer
    A_s, R_s    seconds before the first forward; a round trip from s through the later stages
    G_s         seconds from the start of the last backward of s to the end of the step

    minimise   z
    such that  z ≥ A_s + m F_s + (m - 1) B_s + G_s                       all the work of s          _bound_step
               z ≥ A_s + F_s + R_s + (m - w_s) F_s + (m - 1) B_s + G_s   w_s forwards, then wait    _bound_step
               z ≥ A_s + (b + 1) R_s + (m - b (w_s - 1)) (F_s + B_s) - B_s + G_s  b more round trips _bound_step
               A_0 ≥ head_0, A_s ≥ head_s, A_s ≥ A_{s-1} + F_{s-1} + c                              _chain
               G_s ≥ L_s,    G_s ≥ B_s + c + G_{s-1}                                                _chain
               R_s ≥ R_{s+1} + F_{s+1} + B_{s+1} + 2c                                               _chain
               F_s, B_s, L_s, head_s ≥ compute + the two pieces of what is exposed                  _passes
               Σ_s n[g,s] = count[g],  Σ_g n[g,s] ≥ 1,  runs in order                               _place
               memory_s ≤ limit                                                                     _remember

z is never above the simulated step. Each right-hand side is the length of a path through the events
of ``cost.pipeline``: stage s cannot start before its first input has come through the stages before
it, and its last gradient must still go back through them; it does all its own work; under 1F1B its
first backward waits for a round trip, by when it has run w_s forwards and no more. After B(i) it runs
F(i + w_s), and then either B(i + 1), or, once that micro-batch has made its round trip, B(i + w_s): b
counts those, which is worth the most at 1 or at its largest, ⌊(m - 1) / w_s⌋. What is exposed of communication t beside
compute u is max((1 - overlap) t, t - u), so both pieces bound it.

In a cluster of several types of device, a stage's seconds and memory are those of its own (``Place``).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from autoplan.cost.keep import FULL, NONE, Keep, hull
from autoplan.cost.memory import ALLOCATOR_SLACK, StateRates, in_flight
from autoplan.cost.step import Assignment
from autoplan.search.largest import Held, LargestTerm
from autoplan.search.run import Run
from autoplan.search.solver import solve

if TYPE_CHECKING:
    from ortools.math_opt.python import mathopt


__all__ = [
    "Place",
    "Staging",
    "StagingQuestion",
    "assignments",
    "solve_program",
]


@dataclass(frozen=True, slots=True)
class Place:
    """The chain and the memory on one stage's device; as in ``StagingQuestion``. ``send_s``: to send at this one's pace."""

    runs: tuple[Run, ...]
    send_s: float
    overlap: float
    limit_bytes: float
    reserve_bytes: float


@dataclass(frozen=True, slots=True)
class StagingQuestion:
    """A chain to be cut.

    Where devices differ, ``places`` says of each stage what its own give, and what the fields below say of the chain is
    the best that any of them gives.

    Args:
        runs: the chain.
        stages, micro_batches: p and m.
        send_s, sent_bytes: the least that any cut costs.
        overlap: ``Cluster.overlap``.
        rates: bytes of state per element.
        limit_bytes, reserve_bytes: memory of a device, and what of it is not for tensors of ours.
        recompute: None to choose, or the way of every unit that may be recomputed (``none``: keep all).
        some, not_all: at least one of them does something again; at least one is not recomputed in full.
        without: ways that no unit takes.
        excluded: assignments that are known already, and are no answer.
    """

    runs: tuple[Run, ...]
    stages: int
    micro_batches: int
    send_s: float
    sent_bytes: float
    overlap: float
    rates: StateRates
    limit_bytes: float
    reserve_bytes: float
    recompute: str | None = None
    some: bool = False
    not_all: bool = False
    without: frozenset[str] = frozenset()
    excluded: tuple[tuple[Assignment, ...], ...] = ()
    places: tuple[Place, ...] = ()

    def at(self, stage: int) -> Place:
        """What the devices of ``stage`` give."""
        if self.places:
            return self.places[stage]
        return Place(self.runs, self.send_s, self.overlap, self.limit_bytes, self.reserve_bytes)

    @property
    def sends_s(self) -> list[float]:
        """Seconds that each stage but the last takes at least to send to the next: the slower sets the pace."""
        if not self.places:
            return [self.send_s] * (self.stages - 1)
        return [max(one.send_s, other.send_s) for one, other in pairwise(self.places)]

    def surely(self, stage: int) -> list[bool | None]:
        """Of each run, whether ``stage`` surely holds a unit of it; None if it holds none."""
        if self.stages == 1:
            return [True] * len(self.runs)
        held: list[bool | None] = [False] * len(self.runs)
        for g, home in ((0, 0), (-1, self.stages - 1)):
            if self.runs[g].count == 1:
                held[g] = True if stage == home else None
        may = [g for g, surely in enumerate(held) if surely is not None]
        if len(may) == 1:
            held[may[0]] = True
        return held

    def ways_anywhere(self, index: int) -> list[str]:
        """The ways of the run ``index`` that ``ways`` gives on some stage's device."""
        found = {id(place): place.runs[index] for place in self.places} or {0: self.runs[index]}
        return list(dict.fromkeys(name for run in found.values() for name, _ in self.ways(run)))

    def ways(self, run: Run) -> list[tuple[str, Keep]]:
        """What units of ``run`` may do but keep everything: of what nothing forbids, the lower hull."""
        if not run.repeats or self.recompute == NONE:
            return []
        known = {name: run.cost.keep(name) for name in (FULL, *run.cost.keeps)}
        if self.recompute is not None:
            return [(name, keep) for name, keep in known.items() if name == self.recompute]
        free = {n: k for n, k in known.items() if n not in self.without and not k.host_bytes}
        points = hull([(run.cost.saved_bytes, 0.0), *((k.kept_bytes, k.rerun_s) for k in free.values())])
        best = {(keep.kept_bytes, keep.rerun_s): (name, keep) for name, keep in reversed(free.items())}
        return [best[point] for point in points if point in best]


@dataclass(frozen=True, slots=True)
class Staging:
    """An assignment that fits, and a time that no assignment of the question beats."""

    stages: tuple[Assignment, ...]
    bound_s: float


def solve_program(question: StagingQuestion) -> Staging | None:
    """The best cut of the chain by the integer program, or None if none fits in memory."""
    from ortools.math_opt.python import mathopt

    program = _Program(question, mathopt.Model(name="stages"))
    result = solve(program.model, gap=1e-4)
    if not result.has_primal_feasible_solution():
        return None
    values = result.variable_values()
    counts = [[round(values[v]) for v in row] for row in program.n]
    again = [[(name, [round(values[v]) for v in row]) for name, _, row in ways] for ways in program.r]
    bound = max(result.best_objective_bound(), 0.0) * program.unit_s
    return Staging(assignments(question, counts, again), bound)


class _Program:
    """The integer program; ``n[g][s]`` and ``r[g]``, for each way its name, what it keeps on the device of each s, and a row of s, are its decisions; time counts in
    ``unit_s``."""

    def __init__(self, question: StagingQuestion, model: mathopt.Model) -> None:
        self.question, self.model = question, model
        self.unit_s = sum(run.count * run.cost.times.total_s for run in question.runs) or 1.0
        indices = range(question.stages)
        self.n = [[model.add_integer_variable(lb=0, ub=run.count) for _ in indices] for run in question.runs]
        self.r = [
            [
                (
                    name,
                    [question.at(stage).runs[g].cost.keep(name) for stage in indices],
                    [model.add_integer_variable(lb=0, ub=run.count) for _ in indices],
                )
                for name in question.ways_anywhere(g)
            ]
            for g, run in enumerate(question.runs)
        ]
        self._place()
        self._recompute()
        for stages in question.excluded:
            self._exclude(stages)
        for stage in indices:
            self._remember(stage)
        passes = [self._passes(stage) for stage in indices]
        self._bound_step(passes)

    def _place(self) -> None:
        """Each run's units are somewhere, no stage is empty, and runs follow each other."""
        for run, row in zip(self.question.runs, self.n, strict=True):
            self.model.add_linear_constraint(sum(row) == run.count)
        for stage in range(self.question.stages):
            self.model.add_linear_constraint(sum(row[stage] for row in self.n) >= 1)
        runs = self.question.runs
        for g in range(len(runs) - 1):
            if g == 0 and runs[0].count == 1:
                self.model.add_linear_constraint(self.n[0][0] == 1)
            elif g == len(runs) - 2 and runs[-1].count == 1:
                self.model.add_linear_constraint(self.n[-1][-1] == 1)
            else:
                self._follow(g)

    def _follow(self, g: int) -> None:
        """Run g + 1 has nothing before the stage where run g ends, and run g nothing after it."""
        ended = [self.model.add_binary_variable() for _ in range(self.question.stages)]
        before, after = self.question.runs[g].count, self.question.runs[g + 1].count
        for stage, end in enumerate(ended):
            self.model.add_linear_constraint(self.n[g + 1][stage] <= after * end)
            if stage:
                self.model.add_linear_constraint(self.n[g][stage] <= before * (1 - ended[stage - 1]))
                self.model.add_linear_constraint(end >= ended[stage - 1])

    def _recompute(self) -> None:
        forced = self.question.recompute is not None
        everything: list[Any] = []
        full: list[Any] = []
        for n, ways in zip(self.n, self.r, strict=True):
            for stage, count in enumerate(n if ways else ()):
                again = sum(row[stage] for _, _, row in ways)
                if forced:
                    self.model.add_linear_constraint(again == count)
                else:
                    self.model.add_linear_constraint(again <= count)
                everything.append(again)
            full += [variable for name, _, row in ways if name == FULL for variable in row]
        if self.question.some:
            nothing = self.model.add_variable(lb=0.0, ub=0.0)
            self.model.add_linear_constraint(sum(everything, nothing) >= 1)
        if self.question.not_all and full:
            may = sum(run.count for run in self.question.runs if run.repeats)
            self.model.add_linear_constraint(sum(full) <= may - 1)

    def _exclude(self, stages: Sequence[Assignment]) -> None:
        """Some stage has more units of a run than in ``stages``, or more or fewer of them in some way."""
        nothing = self.model.add_variable(lb=0.0, ub=0.0)  # of no terms there is no sum to compare
        differs: list[Any] = [nothing]
        for run, n, ways in zip(self.question.runs, self.n, self.r, strict=True):
            for index, stage in enumerate(stages):
                held = range(max(run.start, stage.start), min(run.start + run.count, stage.stop))
                differs.append(self._above(n[index], len(held), run.count))
                for name, _, row in ways:
                    rerun = sum(stage.way(unit) == name for unit in held)
                    differs += [
                        self._above(row[index], rerun, run.count), self._below(row[index], rerun, run.count)
                    ]  # fmt: skip
        self.model.add_linear_constraint(sum(differs) >= 1)

    def _above(self, variable: Any, value: int, most: int) -> Any:
        """A binary that can be 1 only if ``variable`` is above ``value``; 0 if it cannot be."""
        if value >= most:
            return 0
        above = self.model.add_binary_variable()
        self.model.add_linear_constraint(variable >= (value + 1) * above)
        return above

    def _below(self, variable: Any, value: int, most: int) -> Any:
        """A binary that can be 1 only if ``variable`` is below ``value``; 0 if it cannot be."""
        if value <= 0:
            return 0
        below = self.model.add_binary_variable()
        self.model.add_linear_constraint(variable <= most - (most - value + 1) * below)
        return below

    def _remember(self, stage: int) -> None:
        """The stage's memory, in units of the device's."""
        q, place = self.question, self.question.at(stage)
        held = in_flight(stage, q.stages, q.micro_batches)
        runs = zip(place.runs, self.n, q.surely(stage), strict=True)
        there = [Held(run.cost, n[stage], run.count, surely) for run, n, surely in runs if surely is not None]
        largest = LargestTerm(self.model, there, q.rates, place.limit_bytes, q.stages == 1)
        terms: list[Any] = []
        if stage + 1 < q.stages:
            terms.append(held * q.sent_bytes)
        for run, n, ways in zip(place.runs, self.n, self.r, strict=True):
            cost = run.cost
            kept = run.taken_bytes(held * cost.saved_bytes)
            terms.append((run.state_bytes + kept) * n[stage])
            for _, keeps, row in ways:
                keep = keeps[stage]
                terms.append((run.taken_bytes(held * keep.kept_bytes) - kept) * row[stage])
                works = cost.workspace_bytes + keep.again_bytes
                largest.works(works, row[stage], run.count, last=run is place.runs[-1])
        total = sum(term * (1 / place.limit_bytes) for term in terms) + largest.total
        room = (place.limit_bytes - place.reserve_bytes) / (1 + ALLOCATOR_SLACK) / place.limit_bytes
        self.model.add_linear_constraint(total <= room)

    def _passes(self, stage: int) -> tuple[Any, Any, Any, Any]:
        """Variables F, B, head and L of the stage."""
        q = self.question.at(stage)

        def total(of_unit: Callable[[Run], float], of_rerun: Callable[[Keep], float] | None = None) -> Any:
            terms = [of_unit(run) / self.unit_s * n[stage] for run, n in zip(q.runs, self.n, strict=True)]
            if of_rerun is not None:
                terms += [
                    of_rerun(keeps[stage]) / self.unit_s * row[stage]
                    for ways in self.r
                    for _, keeps, row in ways
                ]
            return sum(terms)

        def at_least(base: Any, of_unit: Callable[[Run], float], window: Any) -> Any:
            if not any(map(of_unit, q.runs)):
                return base
            traffic = total(of_unit)
            variable = self.model.add_variable(lb=0.0)
            self.model.add_linear_constraint(variable >= base + (1 - q.overlap) * traffic)
            self.model.add_linear_constraint(variable >= base + traffic - window)
            return variable

        forward_window = total(lambda run: run.cost.times.forward_s)
        backward_window = total(lambda run: run.cost.times.backward_s, lambda keep: keep.again_s)
        backward = total(_backward_s, lambda keep: keep.rerun_s)
        last = backward + total(lambda run: run.optimizer_s)
        return (
            at_least(total(_forward_s), lambda run: run.traffic.forward_s, forward_window),
            at_least(backward, lambda run: run.traffic.backward_s, backward_window),
            at_least(0.0, lambda run: run.traffic.head_s, forward_window),
            at_least(last, _last_s, backward_window),
        )

    def _bound_step(self, passes: Sequence[tuple[Any, Any, Any, Any]]) -> None:
        """Minimise z, which no path through the schedule exceeds."""
        m, p = self.question.micro_batches, self.question.stages
        arrive, finish, trip = self._chain(passes)
        z = self.model.add_variable(lb=0.0)
        for s, (forward, backward, _, _) in enumerate(passes):
            w = in_flight(s, p, m)
            ends = arrive[s] + finish[s]
            work = [m * forward + (m - 1) * backward]
            if s + 1 < p:
                work.append(forward + trip[s] + (m - w) * forward + (m - 1) * backward)
                for b in sorted({1, (m - 1) // w} if m > w else ()):
                    work.append((b + 1) * trip[s] + (m - b * (w - 1)) * (forward + backward) - backward)
            for path in work:
                self.model.add_linear_constraint(z >= ends + path)
        self.model.minimize(z)

    def _chain(self, passes: Sequence[tuple[Any, Any, Any, Any]]) -> tuple[list[Any], list[Any], list[Any]]:
        """Variables A, G and R of every stage."""
        sends = [send / self.unit_s for send in self.question.sends_s]
        arrive, finish = [], []
        for s, (_, backward, head, last) in enumerate(passes):
            arrive.append(self.model.add_variable(lb=0.0))
            finish.append(self.model.add_variable(lb=0.0))
            self.model.add_linear_constraint(arrive[s] >= head)
            self.model.add_linear_constraint(finish[s] >= last)
            if s:
                self.model.add_linear_constraint(arrive[s] >= arrive[s - 1] + passes[s - 1][0] + sends[s - 1])
                self.model.add_linear_constraint(finish[s] >= backward + sends[s - 1] + finish[s - 1])
        trip: list[Any] = [0.0]
        for (forward, backward, _, _), send in zip(reversed(passes[1:]), reversed(sends), strict=True):
            following = self.model.add_variable(lb=0.0)
            self.model.add_linear_constraint(following >= trip[0] + forward + backward + 2 * send)
            trip.insert(0, following)
        return arrive, finish, trip


def _forward_s(run: Run) -> float:
    return run.cost.times.forward_s + run.cost.times.forward_comm_s


def _backward_s(run: Run) -> float:
    return run.cost.times.backward_s + run.cost.times.backward_comm_s


def _last_s(run: Run) -> float:
    """What travels beside the last backward."""
    return run.traffic.backward_s + run.traffic.tail_fsdp_s + run.traffic.tail_dp_s


def assignments(
    question: StagingQuestion,
    counts: Sequence[Sequence[int]],
    again: Sequence[Sequence[tuple[str, Sequence[int]]]],
) -> tuple[Assignment, ...]:
    """Ranges of the chain, from ``counts`` of units of each run on each stage, and of those that go each of its ways; of the units of a run in a stage, the first ones do something again."""
    stages, start = [], 0
    for s in range(question.stages):
        chosen, position = {}, start
        for row, ways in zip(counts, again, strict=True):
            names = [name for name, of_stage in ways for _ in range(of_stage[s])]
            chosen |= dict(zip(range(position, position + row[s]), names, strict=False))
            position += row[s]
        stages.append(Assignment.of(start, position, chosen))
        start = position
    return tuple(stages)
