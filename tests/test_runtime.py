"""The face of a program: sharding of batches, direct calls, and errors that every rank raises alike."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec
import pytest
import torch
from equality import Case, difference, make, make_batch, optimizer_for, plan_for, reference
from ranks import Ranks
from torch.distributed import get_rank

import autoplan
from autoplan.errors import DistributedError, ModelError, PlanError
from autoplan.graph.trace import trace
from autoplan.plan import Plan, Precision, write_plan
from autoplan.runtime import Program


def _plan(case: Case) -> Plan:
    model, loss = make(case.model, case.dtype)
    return plan_for(
        trace(model, make_batch(case.model, case.micro_batch, 0), loss, Precision(case.dtype)), case
    )


def _program(case: Case, plan: Plan | str | None = None) -> Program:
    model, loss = make(case.model, case.dtype)
    batch = make_batch(case.model, case.global_batch, 0)
    return autoplan.parallelize(
        model, batch, loss, optimizer_for(case.dtype), plan=plan or _plan(case), precision=case.dtype
    )


def _called_directly(case: Case) -> None:
    program = _program(case)
    loss = program(program.shard(make_batch(case.model, case.global_batch, 0)))
    loss.backward()
    gradients = program.full_gradients()
    program.optimizer.step()
    losses, expected, _ = reference(case, steps=1)
    assert difference(gradients, expected) < 1e-10
    mean = loss.detach().clone()
    torch.distributed.all_reduce(mean)
    assert abs(mean.item() / 2 - losses[0]) < 1e-10


@pytest.mark.parametrize(
    "case",
    [Case(dp=2), Case(dp=2, num_micro_batches=1), Case(fsdp=2, zero=3), Case(fsdp=2, zero=1, num_micro_batches=3), Case(tp=2, seed=1)],
    ids=str,
)  # fmt: skip
def test_a_direct_call_gives_the_gradients_of_one_process(two: Ranks, case: Case) -> None:
    two(_called_directly, case)


def _shares(case: Case) -> tuple[int, int, list[int]]:
    program = _program(case)
    rows = {
        "ids": torch.arange(case.global_batch)[:, None].expand(-1, 16),
        "labels": torch.zeros(case.global_batch, 16),
    }
    return program.data_rank, program.data_ranks, program.shard(rows)["ids"][:, 0].tolist()


def test_shares_cut_the_batch_without_overlap(two: Ranks) -> None:
    assert two(_shares, Case(dp=2, num_micro_batches=2)) == [(0, 2, [0, 1]), (1, 2, [2, 3])]
    assert two(_shares, Case(pp=2, num_micro_batches=2)) == [(0, 1, [0, 1]), (0, 1, [0, 1])]


def _disagree() -> str:
    case = Case(dp=2)
    plan = _plan(case)
    if get_rank() == 1:
        plan = msgspec.structs.replace(plan, boundary="S(1)")
    try:
        _program(case, plan)
    except DistributedError as error:
        return str(error)
    return "no error"


def test_ranks_that_disagree_all_stop(two: Ranks) -> None:
    messages = two(_disagree)
    assert messages[0] == messages[1]
    assert messages[0].startswith("plan: got ")
    assert "the same on every rank" in messages[0]


def _wrong_world() -> str:
    with pytest.raises(PlanError) as caught:
        _program(Case(dp=4))
    return str(caught.value)


def test_a_plan_for_another_world_is_refused(two: Ranks) -> None:
    for message in two(_wrong_world):
        assert message.startswith("world size: got 2, expected 4 ranks (pp 1 x dp 4")


def test_wrong_batches_name_the_remedy() -> None:
    case = Case(num_micro_batches=2)
    program = _program(case)
    with pytest.raises(PlanError, match="global batch: got 3, expected 2 samples"):
        program.shard(make_batch("gpt", 3, 0))
    with pytest.raises(
        PlanError, match=r"batch: got 1, expected 2 samples, this rank's share; pass program.shard"
    ):
        program.step(make_batch("gpt", 1, 0))
    with pytest.raises(ModelError, match=r"batch.ids: got \(2, 8\)"):
        program.step({name: tensor[:, :8] for name, tensor in make_batch("gpt", 2, 0).items()})
    with pytest.raises(ModelError, match="the inputs"):
        program.step({"ids": torch.zeros(2, 16, dtype=torch.long)})


def test_a_plan_for_another_model_is_refused() -> None:
    plan = _plan(Case("gpt-untied"))
    with pytest.raises(PlanError, match="fingerprint"):
        _program(Case("gpt"), plan)
    with pytest.raises(PlanError, match="global_batch: got 2, expected 4"):
        _program(Case("gpt-untied", num_micro_batches=4), plan)


def test_the_plan_may_come_from_a_file_or_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = Case(micro_batch=2, num_micro_batches=1)
    path = tmp_path / "plan.json"
    write_plan(_plan(case), path)
    assert _program(case, str(path)).plan == _plan(case)
    monkeypatch.setenv("AUTOPLAN_PLAN", str(path))
    model, loss = make(case.model, case.dtype)
    program = autoplan.parallelize(model, make_batch(case.model, case.global_batch, 0), loss)
    assert program.plan.micro_batch == 2
    assert "micro_batch=2" in repr(program)


def test_the_model_is_left_as_it_was() -> None:
    case = Case()
    model, loss = make(case.model, case.dtype)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    batch = make_batch(case.model, case.global_batch, 0)
    program = autoplan.parallelize(model, batch, loss, plan=_plan(case))
    program.step(batch)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name])
        assert tensor.grad is None
    assert difference(program.full_state_dict(), before) > 0


def test_a_pipeline_is_not_called_directly(two: Ranks) -> None:
    for message in two(_call_pipeline):
        assert "use program.step(batch)" in message


def _call_pipeline() -> str:
    program = _program(Case(pp=2))
    with pytest.raises(PlanError) as caught:
        program(program.shard(make_batch("gpt", 2, 0)))
    return str(caught.value)


def _from_different_seeds(case: Case) -> float:
    """Each rank draws its own weights; the program must be that of rank 0's."""
    model, loss = make(case.model, case.dtype)
    torch.manual_seed(get_rank())
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.rand_like(parameter))
    mine = {name: parameter.clone() for name, parameter in model.named_parameters()}
    batch = make_batch(case.model, case.global_batch, 0)
    program = autoplan.parallelize(model, batch, loss, plan=_plan(case), precision=case.dtype)
    started = program.full_state_dict()
    assert all(torch.equal(parameter, mine[name]) for name, parameter in model.named_parameters())
    torch.manual_seed(0)
    with torch.no_grad():
        first = {name: torch.rand_like(parameter) for name, parameter in model.named_parameters()}
    return difference(started, first)


@pytest.mark.parametrize("case", [Case(dp=2), Case(tp=2, seed=1), Case(pp=2)], ids=str)
def test_ranks_that_draw_different_weights_train_those_of_rank_0(two: Ranks, case: Case) -> None:
    assert two(_from_different_seeds, case) == [0.0, 0.0]


def _in_bf16(case: Case) -> tuple[list[float], str]:
    model, loss = make(case.model, "fp32")
    graph = trace(model, make_batch(case.model, case.micro_batch, 0), loss, Precision.BF16)
    batch = make_batch(case.model, case.global_batch, 0)
    program = autoplan.parallelize(
        model, batch, loss, optimizer_for("fp32"), plan=plan_for(graph, case), precision="bf16"
    )
    losses = [program.step(program.shard(batch)).item() for _ in range(2)]
    dtype = str(next(program.stage.parameters()).dtype)
    program.close()
    return losses, dtype


def test_bf16_computes_in_bfloat16_and_keeps_float32_weights(two: Ranks) -> None:
    exact = reference(Case("gpt", dtype="fp32"), steps=1)[0][0]
    alone, dtype = _in_bf16(Case("gpt", dtype="bf16"))
    assert not torch.distributed.is_initialized()
    assert dtype == "torch.float32"
    assert alone[0] == pytest.approx(exact, rel=2e-2)
    assert abs(alone[0] / exact - 1) > 1e-5  # rounded as bfloat16 rounds, not as float32
    assert alone[1] < alone[0]
    halved = Case("gpt", pp=2, schedule="zbv", vpp=2, dtype="bf16")
    for case in (
        Case("gpt", dp=2, num_micro_batches=1, dtype="bf16"),
        Case("gpt", pp=2, dtype="bf16"),
        halved,
    ):
        for losses, kept in two(_in_bf16, case):
            assert losses == pytest.approx(alone, rel=2e-2)
            assert kept == "torch.float32"


def _profiled(path: str) -> tuple[int, set[str]]:
    program = _program(Case(dp=2))
    batch = program.shard(make_batch("gpt", program.plan.global_batch, 0))
    with program.profile(path) as profiler:
        program.step(batch)
    return get_rank(), {entry.key for entry in profiler.key_averages()}


def test_each_rank_writes_a_trace_of_its_steps(two: Ranks, tmp_path: Path) -> None:
    for rank, seen in two(_profiled, str(tmp_path / "step.json")):
        events = json.loads((tmp_path / f"step.rank{rank}.json").read_text())["traceEvents"]
        names = {event.get("name") for event in events}
        assert "aten::linear" in names & seen
        assert any("all" in name and "reduce" in name for name in seen)
