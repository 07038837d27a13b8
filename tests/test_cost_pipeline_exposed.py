"""Exposed sends against the calls that torch itself makes: posts, waits and passes, replayed by a clock."""

from __future__ import annotations

from typing import Any, NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.distributed.pipelining import schedules as torch_schedules

from autoplan.cost.pipeline import SCHEDULES, StageSeconds, compiled, simulate

SECONDS = st.floats(0.001, 4.0).map(lambda s: round(s, 3))


class Op(NamedTuple):
    """A message that a rank posts: its sender, the pass that made it, the micro-batch, and whether it is received."""

    sender: int
    kind: str
    i: int
    receives: bool


class Tape:
    """One rank's stage under torch's schedule: every call that it makes, in order."""

    has_backward = True

    def __init__(self, rank: int, pp: int) -> None:
        self.group_rank = self.stage_index = rank
        self.group_size = self.num_stages = pp
        self.is_first, self.is_last = rank == 0, rank == pp - 1
        self.calls: list[tuple[str, Any]] = []

    def forward_one_chunk(self, i: int, *args: Any, **kwargs: Any) -> None:
        self.calls.append(("F", i))

    def backward_one_chunk(self, i: int, **kwargs: Any) -> None:
        self.calls.append(("B", i))

    def get_fwd_recv_ops(self, i: int) -> list[Op]:
        return [] if self.is_first else [Op(self.stage_index - 1, "F", i, True)]

    def get_fwd_send_ops(self, i: int) -> list[Op]:
        return [] if self.is_last else [Op(self.stage_index, "F", i, False)]

    def get_bwd_recv_ops(self, i: int) -> list[Op]:
        return [] if self.is_last else [Op(self.stage_index + 1, "B", i, True)]

    def get_bwd_send_ops(self, i: int) -> list[Op]:
        return [] if self.is_first else [Op(self.stage_index, "B", i, False)]

    def nothing(self, *args: Any) -> None:
        return None

    perform_reduce_grad = clear_runtime_states = nothing


def tape(schedule: str, rank: int, pp: int, m: int) -> list[tuple[str, Any]]:
    """What torch calls on ``rank``: ("F" | "B", micro-batch), ("post", ops) and ("wait", ops)."""
    stage: Any = Tape(rank, pp)

    def post(ops: list[Op], desc: str | None = None) -> list[Op]:
        if ops:
            stage.calls.append(("post", tuple(ops)))
        return ops

    def wait(ops: list[Op]) -> None:
        if ops:
            stage.calls.append(("wait", tuple(ops)))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch_schedules, "_batch_p2p", post)
        patch.setattr(torch_schedules, "_sorted_batch_p2p", lambda ops, desc=None: {0: post(ops)})
        patch.setattr(torch_schedules, "_wait_batch_p2p", wait)
        run = getattr(torch_schedules, SCHEDULES[schedule].torch)(stage, m)
        run._initialize_stage = lambda *args: None
        run._step_microbatches([()] * m, [{}] * m)
    return stage.calls


def replay(tapes: list[list[tuple[str, Any]]], forward: Any, backward: Any, send: Any) -> float:
    """When the last rank is done. A message travels once both of its ends have posted it."""
    clock = [0.0] * len(tapes)
    at = [0] * len(tapes)
    posted: dict[tuple[Op, bool], float] = {}

    def arrival(op: Op) -> float | None:
        ends = [posted.get((op._replace(receives=side), side)) for side in (False, True)]
        if ends[0] is None or ends[1] is None:
            return None
        return max(ends[0], ends[1]) + send[op.sender if op.kind == "F" else op.sender - 1]

    moved = True
    while moved:
        moved = False
        for rank, calls in enumerate(tapes):
            while at[rank] < len(calls):
                call, what = calls[at[rank]]
                if call == "wait":
                    arrivals = [arrival(op) for op in what]
                    if None in arrivals:
                        break
                    clock[rank] = max([clock[rank], *arrivals])  # type: ignore[type-var]
                elif call == "post":
                    posted.update({(op, op.receives): clock[rank] for op in what})
                else:
                    clock[rank] += (forward if call == "F" else backward)[rank]
                at[rank] += 1
                moved = True
    assert at == [len(calls) for calls in tapes]
    return max(clock)


@pytest.mark.parametrize("schedule", ["gpipe", "1f1b"])
@settings(deadline=None)
@given(data=st.data(), pp=st.integers(1, 5), extra=st.integers(0, 6))
def test_exposed_sends_are_those_of_torch(schedule: str, data: st.DataObject, pp: int, extra: int) -> None:
    m = pp + extra
    forward, backward = (data.draw(st.lists(SECONDS, min_size=pp, max_size=pp)) for _ in range(2))
    send = data.draw(st.lists(SECONDS, min_size=pp - 1, max_size=pp - 1))
    tapes = [tape(schedule, rank, pp, m) for rank in range(pp)]
    run = simulate(
        compiled(schedule, pp, 1, m, exposed_sends=True),
        StageSeconds(forward_s=forward, backward_s=backward, send_s=send),
    )
    assert run.step_s == pytest.approx(replay(tapes, forward, backward, send))
