"""The independent check confirms what the search finds, and catches each way to spoil a plan or its price."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from autoplan.cost import price
from autoplan.errors import CertificateError
from autoplan.graph.axes import strategies
from autoplan.graph.ir import ModelGraph
from autoplan.graph.layout import PARTIAL, REPLICATE, REPLICATE_STAR, conversion, shard
from autoplan.graph.sources import load_source
from autoplan.graph.trace import trace
from autoplan.hardware import Cluster
from autoplan.plan import Job, Plan
from autoplan.search import Candidate, SearchResult, search
from autoplan.search.certificate import check_candidate
from autoplan.verify import Claim, verify_plan
from autoplan.verify.unit import crosses
from autoplan.verify.verdict import Illegal, Unfamiliar
from autoplan.verify.ways import way_of

JOB = Job(global_batch=32, tokens_per_sample=1024)


@functools.cache
def cluster() -> Cluster:
    return Cluster.of("a100-80-sxm", nodes=1)


@functools.cache
def graph_at(micro_batch: int, name: str = "gpt2-medium") -> ModelGraph:
    source = load_source(name, 1024)
    with torch.device("meta"):
        model = source.build()
    return trace(model, source.example_batch(micro_batch), source.loss, JOB.precision, name)


@functools.cache
def result() -> SearchResult:
    """With stages, tp, recomputation and HSDP, so that there is something to spoil."""
    pin = {"pp": 2, "tp": 2, "fsdp": 2, "micro_batch": 2, "schedule": "1f1b"}
    return search(graph_at, JOB, cluster(), pin=pin)


def claim_of(candidate: Candidate) -> Claim:
    e = candidate.estimate
    sizes = [stage.memory.total for stage in e.stages]
    return Claim(e.step_time_s, e.parts, sizes, e.memory_limit_bytes, e.fits)


def best() -> Candidate:
    found = result().best
    assert found is not None
    return found


def verdict_on(plan: Plan, claim: Claim | None = None) -> list[str]:
    return [str(finding) for finding in verify_plan(graph_at(2), plan, JOB, cluster(), claim).findings]


def test_what_the_search_finds_holds() -> None:
    assert result().checked == ("structure", "layouts", "memory", "time")
    assert result().unchecked == ()
    assert verdict_on(best().plan, claim_of(best())) == []


def moved_unit(plan: Plan) -> Plan:
    first, second = plan.stages
    stages = (replace(first, units=first.units[:-1]), replace(second, units=(first.units[-1], *second.units)))
    return replace(plan, stages=stages)


def with_layout(plan: Plan, name: str, value: str, kind: str = "Block_0") -> Plan:
    return replace(plan, layouts={**plan.layouts, kind: {**plan.layouts[kind], name: value}})


SPOILED: dict[str, Any] = {
    "ranks": lambda p: replace(p, tp=4),
    "samples of a step": lambda p: replace(p, num_micro_batches=p.num_micro_batches + 1),
    "model": lambda p: replace(p, fingerprint="0"),
    "zero is 0": lambda p: replace(p, zero=0),
    "number of stages": lambda p: replace(p, stages=p.stages[:1]),
    "units": lambda p: replace(p, stages=p.stages[::-1]),
    "stages[0].recompute": lambda p: replace(
        p, stages=(replace(p.stages[0], recompute=("prologue",)), *p.stages[1:])
    ),
}


@pytest.mark.parametrize("where", SPOILED)
def test_spoiled_numbers_and_names_are_caught(where: str) -> None:
    found = verdict_on(SPOILED[where](best().plan))
    assert any(text.startswith(where) for text in found), found


def op_named(target: str, kind: str | None = None) -> tuple[str, str]:
    """Kind and name of the first op with that target."""
    for block in graph_at(2).kinds.values():
        for op in block.ops:
            if op.target.startswith(target) and kind in (None, block.kind):
                return block.kind, op.name
    raise AssertionError(target)


@pytest.mark.parametrize(
    ("target", "name", "why"),
    [
        ("aten.linear", "cut nothing", "cannot be cut along nothing"),
        ("aten.linear", "cut i/7", "does not divide"),
        ("aten.layer_norm", "P", "not known to be linear"),
        ("aten.gelu", "P", "not known to be linear"),
        ("aten.scaled_dot_product_attention", "cut d", "cannot be cut along d"),
        ("aten.scaled_dot_product_attention", "sideways", "no way to run an op"),
        ("aten.layer_norm", "cut d2", "cannot be cut along d2"),
    ],
)
def test_illegal_layouts_of_ops_are_caught(target: str, name: str, why: str) -> None:
    kind, op = op_named(target)
    (found,) = verdict_on(with_layout(best().plan, op, name, kind))
    assert found.startswith(f"layouts.{kind}.{op}") and why in found


def test_illegal_layouts_of_parameters_and_strange_names_are_caught() -> None:
    graph = graph_at(2)
    kind = next(kind for kind, block in graph.kinds.items() if block.path)
    weight = next(iter(graph.kinds[kind].parameters))
    for wrong in ("P", "R*", "S(7)", "S(0/999983)", "what"):
        (found,) = verdict_on(with_layout(best().plan, weight, wrong, kind))
        assert found.startswith(f"layouts.{kind}.{weight}")
    (found,) = verdict_on(with_layout(best().plan, "nobody", "R", kind))
    assert "nobody" in found
    assert "no block" in verdict_on(replace(best().plan, layouts={"nothing": {}}))[0]


def test_a_changed_plan_is_not_what_was_priced() -> None:
    """Each of these is a plan of its own; under the claim of another it does not hold."""
    plan, claim = best().plan, claim_of(best())
    units = plan.stages[0].units
    again = replace(plan, stages=(replace(plan.stages[0], recompute=units[1:4]), *plan.stages[1:]))
    for changed in (
        moved_unit(plan),
        again,
        replace(plan, zero=plan.zero % 3 + 1),
        replace(plan, layouts={}),
    ):
        found = verdict_on(changed, claim)
        assert any(text.startswith(("step", "bytes of stage")) for text in found), found


def test_false_prices_are_caught() -> None:
    plan, e = best().plan, best().estimate
    true = claim_of(best())
    less = {**e.parts, "compute": e.parts["compute"] * 0.999}
    for spoiled, where in (
        (Claim(true.step_s * 0.999, less, true.stage_bytes, true.limit_bytes, True), "sum of parts"),
        (Claim(sum(less.values()), less, true.stage_bytes, true.limit_bytes, True), "step"),
        (Claim(true.step_s, true.parts_s, [1e9, 1e9], true.limit_bytes, True), "bytes of stage 0"),
        (Claim(true.step_s, true.parts_s, true.stage_bytes, 2 * true.limit_bytes, True), "memory limit"),
        (Claim(true.step_s, true.parts_s, true.stage_bytes, true.limit_bytes, False), "fits"),
    ):
        assert any(text.startswith(where) for text in verdict_on(plan, spoiled)), where
    with pytest.raises(CertificateError, match="report this"):
        check_candidate(
            graph_at(2), Candidate(plan, replace(e, step_time_s=e.step_time_s * 2)), JOB, cluster()
        )


def test_a_plan_that_does_not_fit_is_caught() -> None:
    device = replace(cluster().device, usable_bytes=int(best().estimate.peak_memory_bytes))
    found = verify_plan(graph_at(2), best().plan, JOB, replace(cluster(), device=device)).findings
    assert [finding.where for finding in found] == ["memory"]


@pytest.mark.parametrize("name", ["gpt2-medium", "mixtral-8x7b"])
@pytest.mark.parametrize("degree", [2, 8])
def test_every_way_of_the_enumerator_is_derived_again(name: str, degree: int) -> None:
    """Two derivations of the same axes; and no way that the enumerator lacks is called legal."""
    graph, seen = graph_at(1, name), 0
    for block in graph.kinds.values():
        for op in block.ops:
            offered = {s.name: s for s in strategies(block, op, degree)}
            for strategy in offered.values():
                try:
                    way = way_of(block, op, strategy.name, degree)
                except Unfamiliar:
                    continue
                seen += 1
                assert (way.inputs, way.output) == (strategy.inputs, strategy.output), (op, strategy.name)
                assert (way.shares, way.product_axis) == (strategy.share, strategy.gemm_axis)
            for missing in {"R*", "P", "cut d0", "cut d1", "cut d2", "cut o", "cut v"} - offered.keys():
                with pytest.raises(Illegal):
                    way_of(block, op, missing, degree)
    assert seen > 100


LAYOUTS = [REPLICATE, REPLICATE_STAR, PARTIAL, shard(0), shard(1), shard(1, 2)]


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(LAYOUTS), st.sampled_from(LAYOUTS))
def test_joins_need_the_collectives_that_the_layouts_say(src: Any, dst: Any) -> None:
    """A join takes time exactly where something must be moved or rewritten, in either pass."""
    block = next(block for block in graph_at(2).kinds.values() if block.path)
    value = next(v for v in block.values.values() if v.requires_grad and len(v.shape) == 3)
    change = conversion(src, dst)
    forward, backward = crosses(value, src, dst, 2, cluster())
    assert (forward > 0, backward > 0) == (change.forward is not None, change.backward is not None)


@settings(max_examples=25, deadline=None, derandomize=True)
@given(st.data())
def test_priced_by_hand_or_found_the_price_is_the_same(data: st.DataObject) -> None:
    """Any valid plan, however bad: the two derivations give the same seconds and bytes."""
    graph, plan = graph_at(2), best().plan
    layouts: dict[str, dict[str, str]] = {}
    for kind, block in graph.kinds.items():
        chosen = {}
        for op in block.ops:
            names = [s.name for s in strategies(block, op, 2)]
            chosen[op.name] = data.draw(st.sampled_from(names))
        layouts[kind] = chosen
    units = [unit.name for unit in graph.units]
    cut = data.draw(st.integers(1, len(units) - 1))
    pieces = (units[:cut], units[cut:])
    stages = tuple(
        replace(
            plan.stages[0],
            units=tuple(piece),
            recompute=tuple(u for u in piece if u.startswith("h.") and data.draw(st.booleans())),
        )
        for piece in pieces
    )
    zero = data.draw(st.integers(1, 3))
    boundary = data.draw(st.sampled_from(["R", "S(1)"]))
    plan = replace(plan, layouts=layouts, stages=stages, zero=zero, boundary=boundary)
    estimate = price(graph, plan, JOB, cluster())
    found = verdict_on(plan, claim_of(Candidate(plan, estimate)))
    assert [text for text in found if not text.startswith(("layouts of", "memory"))] == []
