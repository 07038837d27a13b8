"""Gradients cut to a global norm under any plan, as one process cuts them; and what accumulating them sends."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
from equality import Case, difference, make, make_batch, optimizer_for, program_of
from ranks import Ranks
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

MAX_NORM = 0.3


def _clipped_by_torch(case: Case, steps: int) -> tuple[list[float], dict[str, Tensor]]:
    """(norms, weights afterwards) of the plain model."""
    model, loss = make(case.model, case.dtype)
    optimizer = optimizer_for(case.dtype)(model.parameters())
    norms = []
    for step in range(steps):
        batch = make_batch(case.model, case.global_batch, step)
        optimizer.zero_grad()
        loss(model(**batch), batch).backward()
        norms.append(torch.nn.utils.clip_grad_norm_(model.parameters(), MAX_NORM).item())
        optimizer.step()
    return norms, {name: p.detach() for name, p in model.named_parameters()}


def _clips(case: Case, direct: bool) -> None:
    program = program_of(case)
    norms = []
    for step in range(2):
        share = program.shard(make_batch(case.model, case.global_batch, step))
        if direct:
            program.optimizer.zero_grad()
            program(share).backward()
            program.clip_grad_norm_(MAX_NORM)
            program.optimizer.step()
        else:
            program.step(share, max_grad_norm=MAX_NORM)
        assert program.grad_norm is not None
        norms.append(program.grad_norm.item())
    expected, weights = _clipped_by_torch(case, 2)
    assert min(expected) > MAX_NORM  # or nothing would be cut
    assert norms == pytest.approx(expected, rel=1e-10)
    assert difference(program.full_state_dict(), weights) < 1e-10


@pytest.mark.parametrize(
    ("case", "direct"),
    [
        (Case(fsdp=2, tp=2, zero=3, seed=2), True),
        (Case(pp=2, fsdp=2, zero=1, schedule="zbv", vpp=2), False),
        (Case(pp=2, tp=2, seed=1), False),
        (Case(cp=2, tp=2, zero=2, seed=4), True),
    ],
    ids=str,
)
def test_four_ranks_cut_as_one_process_does(four: Ranks, case: Case, direct: bool) -> None:
    four(_clips, case, direct)


class _Counts(TorchDispatchMode):
    """Counts the collectives that run inside."""

    def __init__(self) -> None:
        super().__init__()
        self.found: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace == "c10d":
            self.found[func.__name__.split(".")[0].strip("_")] += 1
        return func(*args, **(kwargs or {}))


def _sent(case: Case) -> dict[str, int]:
    """How often each collective runs in a step that is not the first."""
    program = program_of(case)
    batch = program.shard(make_batch(case.model, case.global_batch, 0))
    program.step(batch)
    with _Counts() as counted:
        program.step(batch)
    return dict(counted.found)


@pytest.mark.parametrize("zero", [0, 1, 2, 3])
def test_accumulation_sends_gradients_as_often_as_the_plan_says(two: Ranks, zero: int) -> None:
    units, micro_batches, scalars = 5, 3, 2  # tied ends are one unit; the count of targets and the mean loss
    axis: dict[str, Any] = {"fsdp": 2} if zero else {"dp": 2}
    reductions = units * (micro_batches if zero >= 2 else 1)
    expected = {"allreduce": scalars, "reduce_scatter_base": reductions, "allgather_base": units}
    if zero == 0:
        expected = {"allreduce": scalars + reductions}
    if zero == 3:
        expected["allgather_base"] = 2 * units * micro_batches
    assert two(_sent, Case(**axis, zero=zero, num_micro_batches=micro_batches)) == [expected, expected]
