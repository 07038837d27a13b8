"""A linear program with binaries, kept as the arrays that the solver reads.

OR-Tools' own model objects are pleasant for a few hundred terms; for the thousands of a block's layouts,
building them takes longer than solving.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from autoplan.search.solver import solve

__all__ = ["SparseProgram", "Sum"]


class Sum(NamedTuple):
    """The sum of some variables and a constant."""

    variables: tuple[int, ...]
    constant: float = 0.0


@dataclass(slots=True)
class SparseProgram:
    """Minimise a linear cost over variables from 0 to 1, some of them binary, under linear equations."""

    _binary: list[bool] = field(default_factory=list)
    _cost: list[float] = field(default_factory=list)
    _rows: list[list[tuple[int, float]]] = field(default_factory=list)
    _least: list[float] = field(default_factory=list)
    _most: list[float] = field(default_factory=list)

    def variable(self, *, binary: bool) -> int:
        """A new variable between 0 and 1."""
        self._binary.append(binary)
        self._cost.append(0.0)
        return len(self._cost) - 1

    def charge(self, price: float, what: Sum) -> None:
        """Add ``price`` for each unit of ``what`` to the cost; its constant makes no difference."""
        for variable in what.variables:
            self._cost[variable] += price

    def equal(self, left: Sequence[Sum], right: Sum) -> None:
        """The sum of ``left`` is ``right``."""
        constant = right.constant - sum(term.constant for term in left)
        self._row(left, right, constant, constant)

    def at_least(self, left: Sum, right: Sum) -> None:
        """``left`` is ``right`` or more."""
        self._row((left,), right, right.constant - left.constant, float("inf"))

    def _row(self, left: Sequence[Sum], right: Sum, least: float, most: float) -> None:
        row: dict[int, float] = {}
        for term in left:
            for variable in term.variables:
                row[variable] = row.get(variable, 0.0) + 1.0
        for variable in right.variables:
            row[variable] = row.get(variable, 0.0) - 1.0
        self._rows.append(sorted((variable, factor) for variable, factor in row.items() if factor))
        self._least.append(least)
        self._most.append(most)

    def solve(self) -> list[float]:
        """The value of every variable in a cheapest solution. The program must have one."""
        from ortools.math_opt import model_pb2
        from ortools.math_opt.python import mathopt

        proto = model_pb2.ModelProto()
        count = len(self._cost)
        proto.variables.ids.extend(range(count))
        proto.variables.lower_bounds.extend([0.0] * count)
        proto.variables.upper_bounds.extend([1.0] * count)
        proto.variables.integers.extend(self._binary)
        charged = [variable for variable in range(count) if self._cost[variable]]
        proto.objective.linear_coefficients.ids.extend(charged)
        proto.objective.linear_coefficients.values.extend(self._cost[variable] for variable in charged)
        proto.linear_constraints.ids.extend(range(len(self._rows)))
        proto.linear_constraints.lower_bounds.extend(self._least)
        proto.linear_constraints.upper_bounds.extend(self._most)
        for index, row in enumerate(self._rows):
            proto.linear_constraint_matrix.row_ids.extend([index] * len(row))
            proto.linear_constraint_matrix.column_ids.extend(variable for variable, _ in row)
            proto.linear_constraint_matrix.coefficients.extend(factor for _, factor in row)
        model = mathopt.Model.from_model_proto(proto)
        result = solve(model, gap=0.0)
        if not result.has_primal_feasible_solution():
            raise AssertionError(f"this program always has a solution, yet: {result.termination}")
        return result.variable_values(list(model.variables()))
