"""The independent check under every schedule and under context parallelism: it derives what the cost model says, and
catches what is wrong."""

from __future__ import annotations

import functools
from dataclasses import replace as changed
from itertools import pairwise
from typing import Any

import pytest
import torch
from equality import SEQ, make, make_batch
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from autoplan.cost import price
from autoplan.cost.pipeline import pipeline_order
from autoplan.graph import cut as cut_module
from autoplan.graph.axes import sequence_strategies, strategies
from autoplan.graph.cut import cut_graph
from autoplan.graph.ir import ModelGraph, Op
from autoplan.graph.layout import Layout
from autoplan.graph.sources import load_source
from autoplan.graph.trace import trace
from autoplan.hardware import Cluster
from autoplan.plan import Job, Plan, Precision, StagePlan, validate_plan
from autoplan.plan.schedule import SCHEDULE_NEEDS, Schedule
from autoplan.search.certificate import _claim
from autoplan.verify import Claim, verify_plan
from autoplan.verify.orders import order_of
from autoplan.verify.sequence import sequence_way
from autoplan.verify.verdict import Illegal, Unfamiliar

JOB = Job(global_batch=48, tokens_per_sample=1024)
CP_JOB = Job(global_batch=8, tokens_per_sample=SEQ, precision=Precision.FP32)


@functools.cache
def cluster() -> Cluster:
    return Cluster.of("a100-80-sxm", nodes=1)


@functools.cache
def gpt2() -> ModelGraph:
    source = load_source("gpt2-medium", 1024)
    with torch.device("meta"):
        model = source.build()
    return trace(model, source.example_batch(2), source.loss, JOB.precision, "gpt2-medium")


@functools.cache
def small() -> ModelGraph:
    model, loss = make("gpt", "fp32")
    return trace(model, make_batch("gpt", 2, 0), loss, Precision.FP32)


def priced(graph: ModelGraph, plan: Plan, job: Job = JOB) -> Claim:
    return _claim(price(graph, plan, job, cluster()))


def findings(graph: ModelGraph, plan: Plan, claim: Claim, job: Job = JOB) -> list[str]:
    verdict = verify_plan(graph, plan, job, cluster(), claim)
    assert verdict.findings or (verdict.checked[-1] == "time" and not verdict.unchecked)
    return [str(finding) for finding in verdict.findings]


def staged(graph: ModelGraph, cuts: list[int], again: list[bool]) -> tuple[StagePlan, ...]:
    names = [unit.name for unit in graph.units]
    may = {unit.name for unit in graph.units if graph.kinds[unit.kind].path}
    bounds = [0, *cuts, len(names)]
    return tuple(
        StagePlan(
            units=tuple(names[start:stop]),
            recompute=tuple(
                n for n, x in zip(names[start:stop], again[start:stop], strict=True) if x and n in may
            ),
        )
        for start, stop in pairwise(bounds)
    )


def drawn(data: st.DataObject, graph: ModelGraph, job: Job, schedule: Schedule, **degrees: int) -> Plan:
    """A plan under ``schedule``, however bad."""
    pp = degrees.pop("pp", 2)
    vpp = SCHEDULE_NEEDS[schedule].vpp or data.draw(st.integers(1, 3))
    units = len(graph.units)
    count = pp * vpp - 1
    inner = st.sets(st.integers(1, units - 1), min_size=count, max_size=count)
    ranks = degrees.get("fsdp", 1) * degrees.get("dp", 1)
    return Plan(
        model=graph.name,
        fingerprint=graph.fingerprint,
        global_batch=job.global_batch,
        precision=job.precision,
        pp=pp,
        vpp=vpp,
        schedule=schedule,
        micro_batch=2,
        num_micro_batches=job.global_batch // 2 // ranks,
        zero=data.draw(st.integers(1, 3)),
        stages=staged(
            graph,
            sorted(data.draw(inner)),
            data.draw(st.lists(st.booleans(), min_size=units, max_size=units)),
        ),
        boundary=data.draw(st.sampled_from(["R", "S(1)"])),
        **degrees,
    )


@pytest.mark.parametrize("schedule", Schedule)
@settings(max_examples=5, deadline=None, derandomize=True)
@given(data=st.data())
def test_any_plan_of_any_schedule_has_the_same_price_twice(schedule: Schedule, data: st.DataObject) -> None:
    graph = gpt2()
    plan = drawn(data, graph, JOB, schedule, fsdp=2, tp=2)
    layouts = {
        kind: {
            op.name: data.draw(st.sampled_from([s.name for s in strategies(block, op, 2)]))
            for op in block.ops
        }
        for kind, block in graph.kinds.items()
    }
    plan = replace(plan, layouts=layouts)
    validate_plan(plan)
    found = findings(graph, plan, priced(graph, plan))
    assert [text for text in found if not text.startswith(("layouts of", "memory"))] == []


def test_orders_are_stated_twice_alike() -> None:
    seen = 0
    for schedule, needs in SCHEDULE_NEEDS.items():
        for pp in (2, 3, 4, 6):
            for vpp in (needs.vpp,) if needs.vpp else (1, 2, 3):
                for m in range(max(1, needs.least_per_rank * pp), 3 * pp + 2):
                    order = pipeline_order(schedule, pp, vpp, m)
                    for rank, actions in enumerate(order.ranks):
                        said = [(a.kind.value, a.chunk, a.micro_batch, a.with_next) for a in actions]
                        assert said == order_of(schedule.value, rank, pp, vpp, m)
                        seen += 1
    assert seen > 1000
    with pytest.raises(Unfamiliar):
        order_of("backwards", 0, 2, 1, 4)


def plain(schedule: Schedule, vpp: int) -> Plan:
    graph = gpt2()
    count = 2 * vpp
    cuts = [len(graph.units) * i // count for i in range(1, count)]
    return Plan(
        model=graph.name, fingerprint=graph.fingerprint, global_batch=48, precision=JOB.precision, pp=2, vpp=vpp,
        fsdp=4, schedule=schedule, micro_batch=2, num_micro_batches=6, zero=2,
        stages=staged(graph, cuts, [False] * len(graph.units)),
    )  # fmt: skip


@pytest.mark.parametrize("schedule", Schedule)
def test_another_order_or_other_stages_are_not_what_was_priced(schedule: Schedule) -> None:
    vpp = SCHEDULE_NEEDS[schedule].vpp or 2
    plan, graph = plain(schedule, vpp), gpt2()
    claim = priced(graph, plan)
    assert findings(graph, plan, claim) == []
    others = [
        other for other, needs in SCHEDULE_NEEDS.items() if other != schedule and needs.vpp in (None, vpp)
    ]
    first, second, *rest = plan.stages
    moved = (
        replace(first, units=first.units[:-1]),
        replace(second, units=(first.units[-1], *second.units)),
        *rest,
    )
    again = (first, replace(second, recompute=second.units[:2]), *rest)
    for spoiled in (
        *(replace(plan, schedule=other) for other in others if vpp == 2 or other != Schedule.INTERLEAVED),
        replace(plan, stages=moved),
        replace(plan, stages=again),
    ):
        found = findings(graph, spoiled, claim)
        assert any(text.startswith(("step", "bytes of stage")) for text in found), (spoiled.schedule, found)
    for step_s, nbytes, where in ((1.001, 1.0, "sum of parts"), (1.0, 0.999, "bytes of stage 0")):
        sizes = [size * nbytes for size in claim.stage_bytes]
        false = Claim(claim.step_s * step_s, claim.parts_s, sizes, claim.limit_bytes, claim.fits)
        assert any(text.startswith(where) for text in findings(graph, plan, false))


def cp_plan(data: st.DataObject, cp: int, tp: int) -> Plan:
    """A plan that cuts sequences, with ways drawn for both axes."""
    graph, order = small(), data.draw(st.sampled_from(["plain", "zigzag"]))
    finest = 2 * cp if order == "zigzag" else cp
    chosen = {
        kind: {op.name: data.draw(st.sampled_from([s.name for s in sequence_strategies(block, op, finest)])) for op in block.ops}
        for kind, block in graph.kinds.items()
    }  # fmt: skip
    boundary = data.draw(st.sampled_from(["R", "S(1)"]))
    local = cut_graph(graph, chosen, Layout.parse(boundary), cp, order)
    layouts = {
        kind: {
            op.name: data.draw(st.sampled_from([s.name for s in strategies(block, op, tp)]))
            for op in block.ops
        }
        for kind, block in local.kinds.items()
    }
    schedule = data.draw(st.sampled_from([Schedule.ONE_F_ONE_B, Schedule.ZB_H1]))
    vpp = {
        "vpp": 1,
        "stages": staged(graph, [len(graph.units) // 2], [data.draw(st.booleans())] * len(graph.units)),
    }
    plan = drawn(data, graph, CP_JOB, Schedule.ONE_F_ONE_B, cp=cp, tp=tp, fsdp=4 // (cp * tp))
    plan = replace(plan, **vpp, schedule=schedule, cp_layouts=chosen, cp_boundary=boundary, layouts=layouts)
    plan = replace(plan, cp_order=order)
    return replace(plan, zero=data.draw(st.sampled_from([0, 1, 2, 3]))) if plan.fsdp == 1 else plan


@pytest.mark.parametrize(("cp", "tp"), [(2, 1), (2, 2), (4, 1)])
@settings(max_examples=8, deadline=None, derandomize=True)
@given(data=st.data())
def test_any_cut_of_the_sequence_has_the_same_price_twice(cp: int, tp: int, data: st.DataObject) -> None:
    plan, graph = cp_plan(data, cp, tp), small()
    validate_plan(plan)
    found = findings(graph, plan, priced(graph, plan, CP_JOB), CP_JOB)
    assert [text for text in found if not text.startswith(("layouts of", "memory"))] == []


def by_rows(tp: int = 1) -> Plan:
    """The ways that a search chooses on cp: rows of attention, tokens of the loss."""
    from autoplan.search import search

    pin = {"cp": 2, "tp": tp, "pp": 1, "micro_batch": 2, "zero": 0, "fsdp": 1}
    found = search(lambda _: small(), CP_JOB, cluster(), pin=pin)
    assert found.plan is not None and found.checked == ("structure", "layouts", "memory", "time")
    return found.plan


def half_sent(op: Op) -> Op:
    return changed(op, sends=tuple(changed(send, nbytes=send.nbytes / 2) for send in op.sends))


SPOILED: dict[str, Any] = {
    "sent by": half_sent,
    "inputs of": lambda op: changed(op, inputs=op.inputs[::-1]),
    "flops_forward": lambda op: changed(op, flops_forward=op.flops_forward // 2),
    "kept by": lambda op: changed(op, saved=op.saved[:-1]),
    "product of": lambda op: changed(op, gemm=op.gemm and changed(op.gemm, m=op.gemm.m + 1)),
    "causal of": lambda op: changed(op, causal=not op.causal),
}


@pytest.mark.parametrize("where", SPOILED)
def test_a_block_cut_wrongly_is_caught(where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    plan, graph = by_rows(), small()
    claim = priced(graph, plan, CP_JOB)
    assert findings(graph, plan, claim, CP_JOB) == []
    true = cut_module.cut_block

    def spoiled(*args: Any) -> Any:
        block = true(*args)
        return changed(block, ops=tuple(map(SPOILED[where], block.ops)), _strategies={})

    monkeypatch.setattr(cut_module, "cut_block", spoiled)
    assert any(where in text for text in findings(graph, plan, claim, CP_JOB))


def test_illegal_ways_to_cut_a_sequence_are_caught() -> None:
    plan, graph = by_rows(), small()
    claim = priced(graph, plan, CP_JOB)
    for kind, block in graph.kinds.items():
        for op in block.ops:
            offered = {strategy.name for strategy in sequence_strategies(block, op, 2)}
            for name in {"cut v", "cut e", "cut q", "ring q", "cut d1", "cut d0/3", "nonsense"} - offered:
                chosen = {**plan.cp_layouts, kind: {**plan.cp_layouts.get(kind, {}), op.name: name}}
                found = findings(graph, replace(plan, cp_layouts=chosen), claim, CP_JOB)
                assert found, (op.name, name)
                if "/" not in name:
                    with pytest.raises(Illegal):
                        sequence_way(block, op, name, 2)
    assert plan.cp_order == "zigzag"
    for spoiled in (
        replace(plan, cp_boundary="R"),
        replace(plan, cp_layouts={}),
        replace(plan, cp_order="plain"),
    ):
        assert findings(graph, spoiled, claim, CP_JOB)
