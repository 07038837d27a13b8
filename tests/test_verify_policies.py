"""The independent check of what units make again or park on the host, and of experts that ranks share out: it derives
what the cost model says, and catches what is wrong."""

from __future__ import annotations

import functools
from dataclasses import replace as changed
from typing import Any

import pytest
from equality import SEQ, make, make_batch
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from autoplan.cost import price
from autoplan.cost.storages import storages_of
from autoplan.graph import expert_cut
from autoplan.graph.axes import strategies
from autoplan.graph.expert_cut import cut_experts
from autoplan.graph.ir import Block, ModelGraph, Op
from autoplan.graph.layout import REPLICATE, Layout
from autoplan.graph.routing import Routing
from autoplan.graph.trace import trace
from autoplan.hardware import Cluster
from autoplan.plan import Job, Plan, Precision, StagePlan, validate_plan
from autoplan.search import search
from autoplan.search.certificate import _claim
from autoplan.verify import Claim, verify_plan

JOB = Job(global_batch=8, tokens_per_sample=SEQ, precision=Precision.FP32)
ALL = ("structure", "layouts", "memory", "time")


@functools.cache
def cluster() -> Cluster:
    return Cluster.of("h100-sxm", gpus=8)


@functools.cache
def graph_of(name: str, micro_batch: int = 1, imbalance: float = 1.0) -> ModelGraph:
    model, loss = make(name, "fp32")
    routing = Routing(imbalance=imbalance)
    return trace(model, make_batch(name, micro_batch, 0), loss, Precision.FP32, routing=routing)


def priced(graph: ModelGraph, plan: Plan) -> Claim:
    return _claim(price(graph, plan, JOB, cluster()))


def findings(graph: ModelGraph, plan: Plan, claim: Claim) -> list[str]:
    verdict = verify_plan(graph, plan, JOB, cluster(), claim)
    assert verdict.findings or (tuple(verdict.checked) == ALL and not verdict.unchecked), verdict
    return [str(finding) for finding in verdict.findings]


def plan_of(graph: ModelGraph, policies: Any, ways: dict[str, str], **degrees: Any) -> Plan:
    """Two stages of equally many units, each unit in its way."""
    names = [unit.name for unit in graph.units]
    pieces = names[: len(names) // 2], names[len(names) // 2 :]
    ranks = degrees.get("dp", 1) * degrees.get("fsdp", 1)
    return Plan(
        model=graph.name,
        fingerprint=graph.fingerprint,
        global_batch=8,
        precision=Precision.FP32,
        pp=2,
        micro_batch=1,
        num_micro_batches=8 // ranks,
        policies=policies,
        stages=tuple(
            StagePlan(
                units=tuple(piece),
                recompute=tuple(name for name in piece if ways.get(name) == "full"),
                policies={name: ways[name] for name in piece if ways.get(name, "full") != "full"},
            )
            for piece in pieces
        ),
        **degrees,
    )


def drawn_layouts(data: st.DataObject, graph: ModelGraph, tp: int) -> dict[str, dict[str, str]]:
    return {
        kind: {
            op.name: data.draw(st.sampled_from([s.name for s in strategies(block, op, tp)]))
            for op in block.ops
        }
        for kind, block in graph.kinds.items()
    }


def steps_of(block: Block, names: dict[str, str], boundary: str, tp: int) -> list[tuple[str, str]]:
    """What a policy may say of a block: (step, action)."""
    chosen = {op.name: next(s for s in strategies(block, op, tp) if s.name == names.get(op.name, "R")) for op in block.ops}  # fmt: skip
    stored = dict.fromkeys(block.parameters, REPLICATE)
    found = storages_of(block, chosen, stored, Layout.parse(boundary), tp, cluster())
    again = [(step.name, "recompute") for step in found.steps.values() if step.again]
    return again + [(name, "offload") for name in (*found.steps, *found.inputs)]


@pytest.mark.parametrize(("name", "ep"), [("gpt", 1), ("moe", 1), ("moe", 2), ("moe", 4)])
@settings(max_examples=10, deadline=None, derandomize=True)
@given(data=st.data())
def test_any_policies_have_the_same_price_twice(name: str, ep: int, data: st.DataObject) -> None:
    """Drawn layouts, policies of drawn steps, and experts shared out in every way that state may be."""
    graph = graph_of(name, 1, data.draw(st.sampled_from([1.0, 1.7])) if ep > 1 else 1.0)
    tp = data.draw(st.sampled_from([1, 2] if ep < 4 else [1]))
    fsdp = data.draw(st.sampled_from([1, 2, 4] if tp == 1 else [1, 2]))
    local = cut_experts(graph, ep)
    boundary = data.draw(st.sampled_from(["R", "S(1)"])) if tp > 1 else "R"
    layouts = drawn_layouts(data, local, tp) if tp > 1 else {}
    kind = next(kind for kind, block in graph.kinds.items() if block.path)
    steps = steps_of(local.kinds[kind], layouts.get(kind, {}), boundary, tp)
    policies = {
        kind: {
            way: dict(data.draw(st.lists(st.sampled_from(steps), min_size=1, max_size=12)))
            for way in ("one", "two")
        }
    }
    ways = {
        unit.name: way
        for unit in graph.units
        if unit.kind == kind and (way := data.draw(st.sampled_from(["none", "full", "one", "two"]))) != "none"
    }
    sizes = {"tp": tp, "fsdp": fsdp, "dp": 4 // tp // fsdp, "ep": ep}
    zero = 0 if fsdp == 1 else data.draw(st.integers(1, 3))
    plan = plan_of(graph, policies, ways, zero=zero, layouts=layouts, boundary=boundary, **sizes)
    validate_plan(plan)
    found = findings(graph, plan, priced(graph, plan))
    assert [text for text in found if not text.startswith(("layouts of", "memory"))] == []


@functools.cache
def with_policies() -> Plan:
    """Both blocks under a policy that runs two ops again and parks a third; none of it for nothing."""
    graph = graph_of("gpt")
    block = next(block for block in graph.kinds.values() if block.path)
    kept = {s.maker for s in storages_of(block, {op.name: strategies(block, op, 1)[0] for op in block.ops}, dict.fromkeys(block.parameters, REPLICATE), REPLICATE, 1, cluster()).storages if s.needed}  # fmt: skip
    ops = [op.name for op in block.ops if op.name in kept and op.again and not op.alias and op.saved]
    policy = {ops[0]: "recompute", ops[2]: "recompute", ops[1]: "offload"}
    ways = {unit.name: "own" for unit in graph.units if unit.kind == block.kind}
    return plan_of(graph, {block.kind: {"own": policy}}, ways, fsdp=4, zero=2)


def test_another_policy_is_not_what_was_priced() -> None:
    graph, plan = graph_of("gpt"), with_policies()
    claim = priced(graph, plan)
    assert findings(graph, plan, claim) == []
    ((kind, policies),) = plan.policies.items()
    policy = policies["own"]
    for spoiled in (
        *({name: action for name, action in policy.items() if name != left} for left in policy),
        {name: "offload" if action == "recompute" else "recompute" for name, action in policy.items()},
    ):
        found = findings(graph, replace(plan, policies={kind: {"own": spoiled}}), claim)
        assert any(text.startswith(("step", "bytes of stage")) for text in found), (spoiled, found)
    stage = plan.stages[0]
    fewer = replace(stage, policies=dict(list(stage.policies.items())[1:]))
    assert findings(graph, replace(plan, stages=(fewer, plan.stages[1])), claim)
    full = replace(stage, recompute=tuple(stage.policies), policies={})
    assert findings(graph, replace(plan, stages=(full, plan.stages[1])), claim)


def test_policies_that_no_unit_can_follow_are_caught() -> None:
    graph, plan = graph_of("gpt"), with_policies()
    ((kind, policies),) = plan.policies.items()
    stage = plan.stages[0]
    unit = next(iter(stage.policies))

    def found(**changes: Any) -> str:
        verdict = verify_plan(graph, replace(plan, **changes), JOB, cluster())
        return " ".join(map(str, verdict.findings))

    for name, action, why in (("nobody", "recompute", "nothing that runs"), (next(iter(policies["own"])), "forget", "nothing that a policy does")):  # fmt: skip
        assert why in found(policies={kind: {"own": {name: action}}})
    assert "no policy of" in found(policies={kind: {"other": {}}})
    assert "no block" in found(policies={**plan.policies, "nothing": {}})
    for strange in (
        replace(stage, policies={"prologue": "own"}),
        replace(stage, policies={plan.stages[1].units[0]: "own"}),
        replace(stage, recompute=(unit,)),
    ):
        assert "in one way" in found(stages=(strange, plan.stages[1]))
    random = next(op for op in graph.kinds[kind].ops if not op.alias)
    spoiled = changed(graph.kinds[kind], ops=tuple(changed(op, again=op is not random) for op in graph.kinds[kind].ops))  # fmt: skip
    never = changed(graph, kinds={**graph.kinds, kind: spoiled})
    asked = replace(plan, policies={kind: {"own": {random.name: "recompute"}}})
    assert "does not give the same" in str(verify_plan(never, asked, JOB, cluster()).findings[0])


def shared_out() -> Plan:
    return plan_of(graph_of("moe"), {}, {}, fsdp=4, zero=3, ep=2)


def first(what: Any) -> Any:
    """A change of the first op that ``what`` changes."""

    def spoil(block: Block) -> Block:
        ops = list(block.ops)
        for index, op in enumerate(ops):
            if (now := what(op)) is not None and now != op:
                ops[index] = now
                break
        else:
            raise AssertionError("nothing to spoil")
        return changed(block, ops=tuple(ops), _strategies={})

    return spoil


def when(condition: Any, **change: Any) -> Any:
    return first(lambda op: changed(op, **{name: make(op) for name, make in change.items()}) if condition(op) else None)  # fmt: skip


def routed(op: Op) -> bool:
    return op.routing is not None


def travels(op: Op) -> bool:
    return op.target in ("autoplan.there", "autoplan.back")


SPOILED: dict[str, Any] = {
    "sent by": when(travels, sends=lambda op: op.sends[:1]),
    "bytes of": when(travels, bytes_forward=lambda op: op.bytes_forward // 2),
    "gemm of": when(routed, gemm=lambda op: changed(op.gemm, m=op.gemm.m // 2)),
    "flops_backward of": when(routed, flops_backward=lambda op: op.flops_backward // 2),
    "bytes_backward of": when(routed, bytes_backward=lambda op: op.bytes_backward // 2),
    "inputs of": when(routed, inputs=lambda op: op.inputs[::-1]),
    "saved of": when(lambda op: op.saved, saved=lambda op: op.saved[1:]),
    "keeps of": when(lambda op: op.keeps, keeps=lambda op: ()),
    "work of": when(travels, again=lambda op: True),
    "ops": lambda block: changed(block, ops=(*block.ops, changed(block.ops[0], name="another"))),
    "value": lambda block: changed(
        block, values={name: changed(v, requires_grad=not v.requires_grad) for name, v in block.values.items()}
    ),
    "outputs": lambda block: changed(block, outputs=block.inputs),
    "reads the weights of all experts": lambda block: changed(
        block, expert_dims={next(iter(block.parameters)): 0}
    ),
    "not cut by expert": lambda block: changed(block, expert_dims={}),
    "never travel": first(lambda op: changed(op, target="autoplan.here") if travels(op) else None),
}  # fmt: skip


@pytest.mark.parametrize("where", SPOILED)
def test_experts_cut_wrongly_are_caught(where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    plan, graph = shared_out(), graph_of("moe")
    claim = priced(graph, plan)
    assert findings(graph, plan, claim) == []
    true = expert_cut.cut_experts

    def spoiled(*args: Any) -> ModelGraph:
        cut = true(*args)
        kinds = {
            kind: SPOILED[where](block) if block.expert_dims else block for kind, block in cut.kinds.items()
        }
        return changed(cut, kinds=kinds)

    monkeypatch.setattr(expert_cut, "cut_experts", spoiled)
    found = findings(graph, plan, claim)
    assert any(where in text for text in found), found


def test_other_experts_are_not_what_was_priced() -> None:
    plan, graph = shared_out(), graph_of("moe")
    claim = priced(graph, plan)
    for spoiled in (replace(plan, ep=1), replace(plan, ep=4), replace(plan, zero=2)):
        found = findings(graph, spoiled, claim)
        assert any(text.startswith(("step", "bytes of stage")) for text in found), found
    assert any("ep" in text for text in findings(graph, replace(plan, ep=3), claim))
    assert any("no layer routes" in text or "ep" in text for text in findings(graph_of("gpt"), plan_of(graph_of("gpt"), {}, {}, fsdp=4, zero=3, ep=2), claim))  # fmt: skip
    busy = graph_of("moe", 1, 1.7)
    assert any(text.startswith("step") for text in findings(busy, plan, claim))


def test_a_search_leaves_nothing_unchecked() -> None:
    small = Cluster.of("h100-sxm", gpus=8)
    needed = search(lambda size: graph_of("moe", size), JOB, small, pin={"ep": 2, "micro_batch": 1})
    assert (needed.checked, needed.unchecked) == (ALL, ())
    again = search(
        lambda size: graph_of("gpt", size), JOB, small, pin={"recompute": "selective", "pp": 2, "tp": 2, "micro_batch": 1}
    )  # fmt: skip
    assert again.plan is not None and any(stage.policies for stage in again.plan.stages)
    assert (again.checked, again.unchecked) == (ALL, ())
