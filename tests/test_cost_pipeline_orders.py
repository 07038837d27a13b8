"""The order of actions: equal to what torch runs, and valid for any shape."""

from __future__ import annotations

from collections import Counter
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from torch.distributed.pipelining import schedules as torch_schedules

from autoplan.cost.pipeline import SCHEDULES, Action, Order, Pass, pipeline_order
from autoplan.errors import InputError

SHAPES = [
    (pp, vpp, m)
    for pp in (1, 2, 3, 4, 5, 8)
    for vpp in (1, 2, 3)
    for m in (1, 2, 3, 4, 6, 7, 8, 9, 10, 12, 16, 17, 24)
]


class RecordingStage:
    """Stands in for a ``PipelineStage``: sends nothing, and writes down what it is asked to run."""

    has_backward = True

    def __init__(self, rank: int, pp: int, chunk: int, chunks: int) -> None:
        self.group_rank, self.group_size = rank, pp
        self.stage_index, self.num_stages = chunk, chunks
        self.is_first, self.is_last = chunk == 0, chunk == chunks - 1
        self.submod = SimpleNamespace()
        self.ran: list[str] = []

    def forward_one_chunk(self, i: int, *args: Any, **kwargs: Any) -> None:
        self.ran.append(f"{self.stage_index}F{i}")

    def backward_one_chunk(self, i: int, **kwargs: Any) -> None:
        self.ran.append(f"{self.stage_index}B{i}")

    def nothing(self, *args: Any, **kwargs: Any) -> list[Any]:
        return []

    get_fwd_recv_ops = get_fwd_send_ops = get_bwd_recv_ops = get_bwd_send_ops = nothing
    perform_reduce_grad = clear_runtime_states = nothing


def torch_orders(schedule: str, pp: int, vpp: int, m: int) -> list[list[str]]:
    """What each rank runs. Raises ValueError for a shape that torch does not take."""
    rule = SCHEDULES[schedule]
    make = getattr(torch_schedules, rule.torch)
    ranks = []
    for rank in range(pp):
        stages: list[Any] = [
            RecordingStage(rank, pp, c, pp * vpp)
            for c in pipeline_order(schedule, pp, vpp, m).chunks_of[rank]
        ]
        if issubclass(make, torch_schedules.PipelineScheduleSingle):
            run = make(stages[0], m)
            run._initialize_stage = lambda *args: None
            run._step_microbatches([()] * m, [{}] * m)
            ranks.append(stages[0].ran)
        else:
            # What its runtime walks through, sends, receives and FSDP's actions left out.
            lowered = make(stages, m).pipeline_order_with_comms[rank]
            ranks.append([str(action) for action in lowered if action.is_compute_op])
    return ranks


def written(actions: tuple[Action, ...]) -> list[str]:
    """A rank's actions as torch writes them, pairs included."""
    out: list[str] = []
    paired = ""
    for action in actions:
        if action.with_next:
            paired = f"({action};"
        else:
            out.append(f"{paired}{action})OVERLAP_F_B" if paired else str(action))
            paired = ""
    return out


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_equals_torch_action_by_action(schedule: str) -> None:
    compared = 0
    for pp, vpp, m in SHAPES:
        try:
            ours = pipeline_order(schedule, pp, vpp, m)
            theirs = torch_orders(schedule, pp, vpp, m)
        except (InputError, ValueError):
            continue
        assert [written(actions) for actions in ours.ranks] == theirs, (pp, vpp, m)
        compared += 1
    assert compared >= 20


def test_runs_every_shape_that_torch_runs() -> None:
    for schedule in SCHEDULES:
        for pp, vpp, m in SHAPES:
            try:
                pipeline_order(schedule, pp, vpp, m)
            except InputError:
                if SCHEDULES[schedule].vpp not in (None, vpp):
                    continue  # torch makes as many chunks as it has stages; the shape is another schedule's
                with pytest.raises((InputError, ValueError)):
                    torch_orders(schedule, pp, vpp, m)


@st.composite
def orders(draw: st.DrawFn) -> Order:
    schedule = draw(st.sampled_from(sorted(SCHEDULES)))
    rule = SCHEDULES[schedule]
    pp = draw(st.integers(1, 9))
    vpp = rule.vpp or draw(st.integers(1, 4))
    m = draw(st.integers(max(1, rule.least_per_rank * pp), 40))
    return pipeline_order(schedule, pp, vpp, m)


@given(orders())
def test_every_pass_runs_once_where_its_chunk_lies(order: Order) -> None:
    counts = Counter(action[:3] for actions in order.ranks for action in actions)
    assert set(counts.values()) == {1}
    for rank, actions in enumerate(order.ranks):
        assert {action.chunk for action in actions} == set(order.chunks_of[rank])
    for chunk in range(order.chunks):
        for i in range(order.micro_batches):
            kinds = {kind for kind in Pass if (chunk, kind, i) in counts}
            assert kinds in ({Pass.FORWARD, Pass.BACKWARD}, {Pass.FORWARD, Pass.INPUT, Pass.WEIGHT})


@given(orders())
def test_no_rank_waits_for_ever(order: Order) -> None:
    """Run whatever is next on a rank and has its inputs; all must run."""
    done: set[tuple[int, str, int]] = set()
    at = [0] * order.pp
    moved = True
    while moved:
        moved = False
        for rank, actions in enumerate(order.ranks):
            while at[rank] < len(actions) and set(inputs(order, actions[at[rank]])) <= done:
                chunk, kind, i, _ = actions[at[rank]]
                done.add((chunk, "F" if kind is Pass.FORWARD else "W" if kind is Pass.WEIGHT else "B", i))
                at[rank] += 1
                moved = True
    assert at == [len(actions) for actions in order.ranks]


def inputs(order: Order, action: Action) -> list[tuple[int, str, int]]:
    """The passes that must have run before ``action``; B stands for a whole backward or its input half."""
    chunk, kind, i, _ = action
    if kind is Pass.FORWARD:
        return [(chunk - 1, "F", i)] if chunk else []
    if kind is Pass.WEIGHT:
        return [(chunk, "B", i)]
    return [(chunk, "F", i)] + ([(chunk + 1, "B", i)] if chunk + 1 < order.chunks else [])


def test_what_a_schedule_cannot_do_is_said() -> None:
    with pytest.raises(InputError, match=r"schedule: got 'zb-h9', expected one of gpipe, 1f1b"):
        pipeline_order("zb-h9", 4, 1, 8)
    with pytest.raises(InputError, match=r"vpp: got 3, expected 2 chunks a rank for zbv"):
        pipeline_order("zbv", 4, 3, 8)
    with pytest.raises(
        InputError, match=r"micro_batches: got 7, expected at least 8 for dualpipe-v on 4 ranks"
    ):
        pipeline_order("dualpipe-v", 4, 2, 7)
    with pytest.raises(InputError, match=r"pp: got 0"):
        pipeline_order("1f1b", 0, 1, 8)
