"""Leave one table out: each table of published runs priced with figures fitted on the others.

What a table nobody has seen would meet. A kind of cluster that only the table left out has is priced with
the figures of its nearest relative (``Kind.like``), fitted without the table too.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from prediction_fit import KINDS, Kind, figures_of, has_rows, priced_with
from prediction_rows import Run

__all__ = ["cross_validated"]


def cross_validated(runs: Sequence[Run]) -> list[tuple[Run, float]]:
    """Runs with a measured time on a kind of cluster that is fitted, and predicted seconds of each."""
    timed = [run for run in runs if run.step_s is not None]
    found: list[tuple[Run, float]] = []
    for table in sorted({run.table for run in timed}):
        others = [run for run in timed if run.table != table and run.evidence]
        left = [run for run in timed if run.table == table]
        for kind in KINDS:
            if not has_rows(kind, left):
                continue
            found += priced_with(kind, left, figures_of(_nearest(kind, others), others))
    return [(run, step_s) for run, step_s in found if np.isfinite(step_s)]


def _nearest(kind: Kind, runs: Sequence[Run]) -> Kind:
    """``kind``, or its nearest relative that ``runs`` have rows of."""
    by_profile = {k.profile: k for k in KINDS}
    while not has_rows(kind, runs) and kind.like:
        kind = by_profile[kind.like]
    return kind
