"""Plans under every schedule: their price is the simulator's on paper's terms, and what a program does."""

from __future__ import annotations

import dataclasses
from itertools import pairwise

import pytest
import torch
from equality import Case, make, make_batch, plan_for
from test_cost_toys import toy_cluster, toy_graph, toy_strategies

from autoplan.cost import price
from autoplan.cost.degrees import Degrees
from autoplan.cost.memory import activation_bytes
from autoplan.cost.pipeline.closed_forms import bubble_s, in_flight
from autoplan.cost.plan_trace import plan_trace
from autoplan.cost.price import plan_stages
from autoplan.cost.step import simulated
from autoplan.graph.trace import trace
from autoplan.graph.weight_halves import halved_product
from autoplan.plan import SCHEDULE_NEEDS, Job, Plan, Precision, Schedule, StagePlan, validate_plan
from autoplan.rewrite import build_stage
from autoplan.rewrite.weight_halves import PENDING, run_weight_halves

LAYERS = 16
JOB, CLUSTER = Job(global_batch=32, tokens_per_sample=512), toy_cluster(nodes=2)
GRAPH = toy_graph(1, LAYERS)


def plan_of(schedule: Schedule, vpp: int, again: int = 0, **changes: object) -> Plan:
    """Four ranks; the prologue and epilogue are stages' ends. The first ``again`` layers of each stage are recomputed."""
    count = 4 * vpp
    ends = [round(LAYERS * stage / count) for stage in range(count + 1)]
    stages = []
    for stage, (start, stop) in enumerate(pairwise(ends)):
        layers = tuple(f"layers.{i}" for i in range(start, stop))
        first = ("prologue",) if stage == 0 else ()
        last = ("epilogue",) if stage == count - 1 else ()
        stages.append(StagePlan(units=(*first, *layers, *last), recompute=layers[:again]))
    fields = {
        "model": "toy", "fingerprint": "f00d", "global_batch": 32, "precision": Precision.BF16, "pp": 4, "vpp": vpp,
        "schedule": schedule, "dp": 2, "micro_batch": 1, "num_micro_batches": 16, "stages": tuple(stages),
    }  # fmt: skip
    plan = Plan(**{**fields, **changes})  # pyright: ignore[reportArgumentType]
    validate_plan(plan)
    return plan


EVERY = [(schedule, needs.vpp or vpp) for schedule, needs in SCHEDULE_NEEDS.items() for vpp in (1, 2)]


@pytest.mark.parametrize(("schedule", "vpp"), dict.fromkeys(EVERY), ids=str)
def test_parts_add_up_and_stages_of_a_rank_share_its_memory(schedule: Schedule, vpp: int) -> None:
    plan = plan_of(schedule, vpp, again=1)
    estimate = price(GRAPH, plan, JOB, CLUSTER, strategies_of=toy_strategies)
    assert sum(estimate.parts.values()) == pytest.approx(estimate.step_time_s)
    assert all(seconds >= 0 for seconds in estimate.parts.values())
    assert len(estimate.stages) == 4 * vpp
    of_rank = {}
    for stage, rank in zip(estimate.stages, plan.stage_ranks, strict=True):
        assert of_rank.setdefault(rank, stage.memory) == stage.memory
    state = sum(memory.optimizer for memory in of_rank.values())
    whole = price(GRAPH, plan_of(Schedule.ONE_F_ONE_B, 1), JOB, CLUSTER, strategies_of=toy_strategies)
    assert state == pytest.approx(sum(stage.memory.optimizer for stage in whole.stages))
    traced = plan_trace(GRAPH, plan, JOB, CLUSTER, strategies_of=toy_strategies)
    assert traced["otherData"]["step_time_s"] == estimate.step_time_s


@pytest.mark.parametrize(("schedule", "vpp"), dict.fromkeys(EVERY), ids=str)
def test_equal_stages_take_and_keep_what_papers_say(schedule: Schedule, vpp: int) -> None:
    plan = plan_of(schedule, vpp)
    degrees = Degrees.of(plan)
    one = plan_stages(GRAPH, plan, JOB, CLUSTER, strategies_of=toy_strategies)[1]
    times = dataclasses.replace(
        one.times, head_s=0.0, tail_fsdp_s=0.0, tail_dp_s=0.0, tied_s=0.0, optimizer_s=0.0
    )
    stages = [dataclasses.replace(one, times=times, send_s=0.0)] * (4 * vpp)
    bubble = bubble_s(schedule, 4, vpp, 16, times.forward_s, times.backward_s, times.weight_s)
    passes = 16 * vpp * (times.forward_s + times.backward_s)
    step_s = simulated(stages, degrees, CLUSTER).step_s
    if bubble is not None:
        assert step_s == pytest.approx(passes + bubble)
    assert passes < step_s < 1.3 * passes
    held = [in_flight(schedule, 4, vpp, 16, rank) * one.load.kept_bytes for rank in range(4)]
    kept = activation_bytes([one.load] * (4 * vpp), degrees)
    if SCHEDULE_NEEDS[schedule].halves:
        assert 0 < one.load.half_bytes < one.load.kept_bytes
        assert all(0.5 * most < have <= most for have, most in zip(kept, held, strict=True))
    else:
        assert kept == pytest.approx(held)


def test_a_program_halves_the_products_that_are_priced_so() -> None:
    case = Case(pp=2, vpp=2, schedule="zbv", num_micro_batches=2, recompute="mixed")
    model, loss = make("gpt", "fp64")
    graph = trace(model, make_batch("gpt", 1, 0), loss, Precision.FP64)
    plan = plan_for(graph, case)
    parameters = dict(model.named_parameters(remove_duplicate=False))
    buffers = dict(model.named_buffers())
    batch = {f"batch_{name}": tensor for name, tensor in make_batch("gpt", 1, 0).items()}
    for place in range(1, 4):  # the first stage's input is data
        stage = build_stage(graph, plan, place, parameters, buffers, None, None, torch.device("cpu"))
        received = [
            torch.randn(w.shape, dtype=torch.float64, requires_grad=w.requires_grad) for w in stage.reads
        ]
        results = stage(*received, **batch, loss_scale=torch.ones(1))
        sum(r.sum() for r in ([results] if isinstance(results, torch.Tensor) else results)).backward()
        priced = sum(
            halved_product(graph.kinds[unit.kind], op) is not None
            for unit in stage.chain
            for op in graph.kinds[unit.kind].ops
        )
        assert len(PENDING) == priced > 0
        run_weight_halves(PENDING)
