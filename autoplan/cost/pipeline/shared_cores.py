"""Ranks that share cores: while some wait, those that work have more of them.

All that is at work is faster by one factor, which follows from how many ranks work. So the events keep their order, and
the step is the same on a clock that runs faster or slower:

    τ(t) = ∫ r(k(u)) du from 0 to t,   k(u) ranks at work at u,   r(k) the share of its seconds that work then takes

(``Cluster.relief``). With as many ranks a stage as there are cores, the cores never idle, and a bubble costs nothing. Messages
on their way while no rank works take the time that they take.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from autoplan.cost.pipeline.simulation import Simulation

__all__ = ["relieved"]

Floats = NDArray[np.float64]


def relieved(run: Simulation, relief: Callable[[Floats], Floats]) -> Simulation:
    """``run`` on cores that its ranks share; ``relief`` of numbers of pipeline ranks at work, shape (intervals,)."""
    program = run.program
    work = np.concatenate([*program.passes, program.heads, program.tails])
    times = np.unique(np.concatenate((run.start_s, run.end_s, (0.0,))))
    steps = np.zeros(len(times))
    np.add.at(steps, np.searchsorted(times, run.start_s[work]), 1.0)
    np.add.at(steps, np.searchsorted(times, run.end_s[work]), -1.0)
    busy = np.cumsum(steps)[:-1]
    shares = np.where(busy > 0, relief(busy), 1.0)
    clock = np.concatenate(((0.0,), np.cumsum(np.diff(times) * shares)))

    def there(at: Floats) -> Floats:
        return np.interp(at, times, clock)

    return replace(
        run,
        step_s=float(there(np.array([run.step_s]))[0]),
        start_s=there(run.start_s),
        end_s=there(run.end_s),
    )
