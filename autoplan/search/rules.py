"""Pins and bans beyond the plain degrees: any number of a candidate, and ways to run single ops.

tp, micro_batch, num_micro_batches, ...   a number of the plan: held at a value, or kept from it
recompute                                 none, full or mixed: what all stages together do; or the name of a
                                          policy, which no unit then follows
boundary                                  the layout between units, where tp is above 1
BLOCK.OP                                  the strategy of an op, or the layout of a parameter, where tp is
                                          above 1; BLOCK is a block kind as plans name it, OP an op, a
                                          parameter or a module path inside the block; both may hold * and ?
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any

from autoplan.cost.degrees import Degrees
from autoplan.errors import InputError, PlanError

if TYPE_CHECKING:
    from autoplan.cost.unit import StrategiesOf
    from autoplan.graph.ir import Block, ModelGraph, Op
    from autoplan.search.layout_problem import LayoutsOf

__all__ = ["NO_RULES", "NUMBERS", "WAYS", "Rules"]

NUMBERS = tuple(field.name for field in fields(Degrees))
_RECOMPUTE = ("none", "full", "mixed")
WAYS = ("none", "full", "selective", "ops1", "ops2", "offload")
"""What a unit may do: keep all that backward reads, its input alone, or what a policy says (``keep_choice``)."""
_RELEASE = "change it, or leave it to the search"


@dataclass(frozen=True, slots=True)
class _WayRule:
    """``name`` is the only one for what ``pattern`` matches, or is not for it."""

    pattern: str
    name: str
    wanted: bool

    @property
    def text(self) -> str:
        return f"{self.pattern}={self.name}"

    def covers(self, block: Block, op_name: str, module: str = "") -> bool:
        """True if the pattern names this op or parameter, or a module that holds the op."""
        names = [f"{block.kind}.{op_name}"]
        inside = module[len(block.path) + 1 :] if block.path and module.startswith(block.path) else module
        steps = inside.split(".") if inside else []
        names += [f"{block.kind}.{'.'.join(steps[:n])}" for n in range(1, len(steps) + 1)]
        return any(fnmatchcase(name, self.pattern) for name in names)


@dataclass(frozen=True, slots=True)
class Rules:
    """What a candidate, its boundary and its ops may be; empty allows everything."""

    held: tuple[tuple[str, str], ...] = ()
    banned: tuple[tuple[str, str], ...] = ()
    boundary: tuple[tuple[str, bool], ...] = ()
    recompute: frozenset[str] = frozenset(_RECOMPUTE)
    ways: tuple[_WayRule, ...] = ()
    without: frozenset[str] = frozenset()

    @classmethod
    def parse(
        cls, pin: Mapping[str, Any] | None, forbid: Iterable[tuple[str, Any]], known: Sequence[str]
    ) -> tuple[dict[str, Any], Rules]:
        """The pins that are among ``known``, and the rest with what is forbidden as rules.

        Raises InputError for a name that is no decision.
        """
        left: dict[str, Any] = {}
        held, banned, boundary, ways = [], [], [], []
        allowed, without = set(_RECOMPUTE), set()
        for name, value in (pin or {}).items():
            if name == "boundary":
                boundary.append((str(value), True))
            elif "." in name:
                ways.append(_WayRule(name, str(value), True))
            elif name in known or name not in NUMBERS:
                left[name] = value
            else:
                held.append((name, str(value)))
        for name, value in forbid:
            if name == "boundary":
                boundary.append((str(value), False))
            elif "." in name:
                ways.append(_WayRule(name, str(value), False))
            elif name == "recompute":
                if value not in (*_RECOMPUTE, *WAYS):
                    expected = f"mixed, {', '.join(WAYS[:-1])} or {WAYS[-1]}"
                    raise InputError("forbid", f"recompute={value}", expected, _RELEASE)
                allowed.discard(value)
                without |= {value} - set(_RECOMPUTE)
            elif name in NUMBERS:
                banned.append((name, str(value)))
            else:
                expected = f"one of {', '.join(NUMBERS)}, recompute, boundary or BLOCK.OP"
                raise InputError("forbid", name, expected, "forbid only these decisions")
        if not allowed:
            raise PlanError("forbid", "recompute", "one of none, full or mixed left to choose", _RELEASE)
        return left, cls(
            tuple(held), tuple(banned), tuple(boundary), frozenset(allowed), tuple(ways), frozenset(without)
        )

    @property
    def free_schedules(self) -> bool:
        """True if nothing here tells one schedule from another."""
        names = {name for name, _ in (*self.held, *self.banned)}
        return not names & {"schedule", "vpp"} and len(self.recompute) == len(_RECOMPUTE)

    def allows(self, degrees: Degrees) -> bool:
        """True if no number of ``degrees`` is ruled out."""
        return all(str(getattr(degrees, name)) == value for name, value in self.held) and not any(
            str(getattr(degrees, name)) == value for name, value in self.banned
        )

    def allows_boundary(self, boundary: str, tp: int) -> bool:
        """True if what passes between units may lie so; without tp there is nothing to lay out."""
        return tp == 1 or all((boundary == name) == wanted for name, wanted in self.boundary)

    def check(self, graph: ModelGraph) -> None:
        """Raises PlanError for a pattern that names nothing of ``graph``."""
        for rule in self.ways:
            names = [name for name, _ in _named(graph, rule)]
            if not names:
                kinds = ", ".join(graph.kinds)
                raise PlanError(
                    rule.pattern, rule.name, f"BLOCK.OP, of the blocks {kinds}", "see `autoplan graph MODEL`"
                )

    def strategies(self, known: StrategiesOf) -> StrategiesOf:
        """``known`` less what is ruled out."""
        if not self.ways:
            return known
        kept: dict[
            tuple[int, str, int], tuple[Block, tuple[Any, ...]]
        ] = {}  # a block kept has an id of its own

        def allowed(block: Block, op: Op, degree: int) -> tuple[Any, ...]:
            key = id(block), op.name, degree
            if key not in kept:
                left = self._left(
                    known(block, op, degree), block, op.name, op.module_path, lambda way: way.name
                )
                kept[key] = block, left
            return kept[key][1]

        return allowed

    def layouts(self, known: LayoutsOf) -> LayoutsOf:
        """``known`` less what is ruled out."""
        if not self.ways:
            return known

        def allowed(block: Block, name: str, degree: int) -> tuple[Any, ...]:
            return self._left(tuple(known(block, name, degree)), block, name, "", str)

        return allowed

    def refused(self, graph: ModelGraph, strategies: StrategiesOf, layouts: LayoutsOf, degree: int) -> str:
        """Which rule leaves some op nothing on ``degree`` ranks; empty if none does."""
        if degree == 1:
            return ""
        for rule in self.ways:
            found = _named(graph, rule)
            if rule.wanted and not any(
                rule.name in _names(block, op, strategies, layouts, degree) for (_, (block, op)) in found
            ):
                return rule.text
            for _, (block, op) in found:
                if not (
                    self.layouts(layouts)(block, op, degree)
                    if isinstance(op, str)
                    else self.strategies(strategies)(block, op, degree)
                ):
                    return rule.text
        return ""

    def offers(self, graph: ModelGraph, strategies: StrategiesOf, layouts: LayoutsOf, degree: int) -> str:
        """What could have been chosen for the ops that the rules name."""
        found: dict[str, None] = {}
        for rule in self.ways:
            for _, (block, op) in _named(graph, rule):
                found |= dict.fromkeys(_names(block, op, strategies, layouts, degree))
        return ", ".join(found)

    def _left(
        self,
        ways: tuple[Any, ...],
        block: Block,
        name: str,
        module: str,
        named: Callable[[Any], str],
    ) -> tuple[Any, ...]:
        for rule in self.ways:
            if not rule.covers(block, name, module):
                continue
            chosen = tuple(way for way in ways if (named(way) == rule.name) == rule.wanted)
            exact = rule.covers(block, name)
            # of a whole module's ops, those that know the strategy take it
            ways = chosen if chosen or exact or not rule.wanted else ways
        return ways


NO_RULES = Rules()


def _named(graph: ModelGraph, rule: _WayRule) -> list[tuple[str, tuple[Block, Op | str]]]:
    """Ops and parameters that the rule's pattern names."""
    found: list[tuple[str, tuple[Block, Op | str]]] = []
    for block in graph.kinds.values():
        found += [(op.name, (block, op)) for op in block.ops if rule.covers(block, op.name, op.module_path)]
        found += [(name, (block, name)) for name in block.parameters if rule.covers(block, name)]
    return found


def _names(
    block: Block, op: Op | str, strategies: StrategiesOf, layouts: LayoutsOf, degree: int
) -> list[str]:
    if isinstance(op, str):
        return [str(layout) for layout in layouts(block, op, degree)]
    return [way.name for way in strategies(block, op, degree)]
