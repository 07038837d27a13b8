"""What single ops, conversions, stages and steps cost, against figures worked out by hand."""

from __future__ import annotations

from dataclasses import astuple

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace
from test_cost_toys import RS, R, toy_cluster, toy_graph, toy_layer, toy_strategies

from autoplan.cost import Degrees, price
from autoplan.cost.compute import op_times
from autoplan.cost.convert import conversion_times
from autoplan.cost.crossing import crossing_bytes
from autoplan.cost.flops import model_flops
from autoplan.cost.keep import FULL, NONE
from autoplan.cost.memory import StageLoad, StateRates, in_flight, rank_memory
from autoplan.cost.state_traffic import state_traffic
from autoplan.cost.times import exposed_s
from autoplan.cost.unit import UnitCost, unit_cost
from autoplan.errors import PlanError
from autoplan.graph.boundary import boundary_layout
from autoplan.graph.ir import Block, Gemm, Op, Origin, Value
from autoplan.graph.layout import PARTIAL, Layout, shard
from autoplan.graph.strategy import Strategy
from autoplan.plan import Job, Plan, Precision, StagePlan

CLUSTER = toy_cluster(nodes=4)
ACTIVATION = Value("x", (1, 512, 1024), "bfloat16", 2, True, Origin.OP)


def strategy(name: str, op_name: str = "up") -> tuple[Block, Op, Strategy]:
    block = toy_layer(1, 512, 1024)
    op = next(op for op in block.ops if op.name == op_name)
    return block, op, next(s for s in toy_strategies(block, op, 4) if s.name == name)


def test_a_linear_layer_is_three_products() -> None:
    block, op, cut = strategy("cut o")
    times, time_s = op_times(block, op, cut, 4, CLUSTER), CLUSTER.device.gemm_time_s
    assert times.forward_s == time_s((1, 512, 1024, 1024), "bfloat16")  # n = 4096 / 4
    assert times.backward_s == pytest.approx(
        time_s((1, 512, 1024, 1024), "bfloat16") + time_s((1, 1024, 1024, 512), "bfloat16")
    )
    assert times.forward_comm_s == times.backward_comm_s == 0


def test_a_memory_bound_op_costs_its_bytes() -> None:
    block, op, cut = strategy("cut d1", "norm")
    assert op_times(block, op, cut, 4, CLUSTER).forward_s == CLUSTER.device.memory_time_s(
        op.bytes_forward / 4
    )


def test_cutting_a_product() -> None:
    assert Gemm(8, 4, 4, 4).cut(None, 4) == Gemm(2, 4, 4, 4)
    assert Gemm(1, 8, 4, 4).cut(None, 4) == Gemm(1, 2, 4, 4)
    assert Gemm(1, 8, 4, 8).cut("k", 4) == Gemm(1, 8, 4, 2)


def test_megatrons_f_and_g_are_one_all_reduce_each() -> None:
    reduce_s = CLUSTER.collective_time_s("all_reduce", ACTIVATION.nbytes, 4)
    f, g = (conversion_times(ACTIVATION, *pair, 4, CLUSTER) for pair in ((R, RS), (PARTIAL, R)))
    assert (f.forward_comm_s, f.backward_comm_s) == (0, reduce_s)
    assert (g.forward_comm_s, g.backward_comm_s) == (reduce_s, 0)


def test_what_needs_no_gradient_sends_none_back() -> None:
    mask = Value("mask", (1, 512, 1024), "bfloat16", 2, False, Origin.INPUT)
    assert conversion_times(mask, shard(1), R, 4, CLUSTER).backward_comm_s == 0
    assert conversion_times(mask, R, R, 4, CLUSTER).total_s == 0


@given(
    st.sampled_from(["R", "P", "S(0)", "S(1)", "S(2)", "R*"]),
    st.sampled_from(["R", "P", "S(1)", "S(2)", "R*"]),
)
def test_every_conversion_has_a_price(src: str, dst: str) -> None:
    value = Value("x", (4, 512, 1024), "bfloat16", 2, True, Origin.OP)
    times = conversion_times(value, Layout.parse(src), Layout.parse(dst), 4, CLUSTER)
    assert (times.total_s > 0) == (src != dst)


@given(st.floats(0, 10), st.floats(0, 10), st.floats(0, 1))
def test_overlap_hides_some_and_only_what_fits(comm: float, compute: float, overlap: float) -> None:
    exposed = exposed_s(comm, compute, overlap)
    assert exposed == pytest.approx(max((1 - overlap) * comm, comm - compute))
    assert 0 <= exposed <= comm


def degrees(**changes: int) -> Degrees:
    fields = {
        "pp": 1,
        "dp": 1,
        "fsdp": 1,
        "cp": 1,
        "tp": 1,
        "zero": 0,
        "micro_batch": 1,
        "num_micro_batches": 4,
    }
    return Degrees(**{**fields, **changes})


def test_state_bytes_by_zero() -> None:
    """Mixed precision with AdamW; Rajbhandari et al., 2020, figure 1, with fp32 gradients as FSDP2 keeps them."""
    job = Job(global_batch=4)

    def per_element(**changes: int) -> float:
        rates = StateRates.of(degrees(**changes), job)
        return rates.master + rates.optimizer + rates.gradient + rates.copy

    assert per_element() == 4 + 8 + 4 + 2
    assert per_element(fsdp=4, zero=1) == (4 + 8) / 4 + 4 + 2
    assert per_element(fsdp=4, zero=2) == (4 + 8 + 4) / 4 + 2
    assert per_element(fsdp=4, zero=3) == (4 + 8 + 4) / 4


def test_one_dtype_without_shards_keeps_no_copy() -> None:
    job = Job(global_batch=4, precision=Precision.FP32)
    for whole in (degrees(), degrees(dp=2)):
        rates = StateRates.of(whole, job)
        assert (rates.copy, rates.reduced_units) == (0, 0)
    assert StateRates.of(degrees(fsdp=2, zero=1), job).copy == 4


@pytest.mark.parametrize("zero", [0, 1, 3])
def test_gradients_of_one_micro_batch_come_as_activations_go(zero: int) -> None:
    unit = unit_cost(toy_layer(1, 512, 1024), {}, R, 1, CLUSTER, toy_strategies)
    ways = [unit.keep(FULL), unit.keep(FULL), unit.keep(NONE)]
    load, job = StageLoad([unit] * 3, ways, 0.0), Job(global_batch=1)
    sizes = degrees(fsdp=4, zero=zero, num_micro_batches=1) if zero else degrees(num_micro_batches=1)
    memory = rank_memory([load], load.kept_bytes, sizes, job, CLUSTER.device)
    gradient = 4 * unit.trainable / sizes.shard_ranks
    assert unit.input_bytes < gradient  # or nothing would take the place of anything
    copy = 2 * unit.parameters if zero < 3 else 0
    both = memory.gradients + memory.activations + memory.workspace
    both += memory.gathered - (4 * unit.parameters if zero == 3 else 0)
    beside = max(unit.workspace_bytes, 4 * unit.trainable + unit.workspace_bytes + ways[0].again_bytes)
    assert both == sum(max(way.kept_bytes + copy, gradient) for way in ways) + beside


def test_state_traffic_by_zero() -> None:
    unit = unit_cost(toy_layer(1, 512, 1024), {}, R, 1, CLUSTER, toy_strategies)
    size, touched = unit.parameters, CLUSTER.device.memory_time_s
    gather = CLUSTER.collective_time_s("all_gather", size * 2, 4)
    gather += touched(size / 4 * (4 + 2)) + touched(
        size * (2 + 2)
    )  # a shard is cast and put in; all come out
    scatter = CLUSTER.collective_time_s("reduce_scatter", size * 4, 4) + touched(size * (2 + 4))

    def traffic(m: int, **sizes: int) -> tuple[float, ...]:
        split = degrees(num_micro_batches=m, **sizes)
        return astuple(state_traffic(unit, split, Precision.BF16, CLUSTER))

    for m, share in ((1, 0.0), (4, 0.75)):
        whole, shard = share * touched(3 * 4 * size), share * touched(3 * 4 * size / 4)
        assert traffic(m, fsdp=4, zero=1) == pytest.approx((0, whole, gather, scatter, 0))
        assert traffic(m, fsdp=4, zero=2) == pytest.approx((0, scatter + shard, gather, 0, 0))
        assert traffic(m, fsdp=4, zero=3) == pytest.approx((gather, gather + scatter + shard, 0, 0, 0))
        assert traffic(m) == pytest.approx((0, whole, 0, 0, 0))
        summed = CLUSTER.collective_time_s("all_reduce", size * 4, 4) + touched(size * (4 + 4))
        assert traffic(m, dp=4) == pytest.approx((0, whole, 0, 0, summed))


def test_boundary_only_cuts_what_it_can() -> None:
    table = Value("t", (512, 64), "bfloat16", 2, False, Origin.INPUT)
    odd = Value("x", (1, 511, 64), "bfloat16", 2, True, Origin.OP)
    loss = Value("loss", (), "float32", 4, True, Origin.OP)
    assert boundary_layout(ACTIVATION, shard(1), 4) == shard(1)
    assert [boundary_layout(v, shard(1), 4) for v in (table, odd, loss)] == [R, R, R]


def test_a_cut_sends_the_residual_stream() -> None:
    graph = toy_graph(1, 3, seq=512, hidden=1024)
    whole, cut = (crossing_bytes(graph, boundary, 4) for boundary in (R, shard(1)))
    assert whole == (2 * 512 * 1024,) * 4
    assert cut == (2 * 512 * 1024 / 4,) * 4


def test_flops_are_three_forward_passes() -> None:
    graph = toy_graph(1, 3, seq=512, hidden=1024, vocabulary=4096)
    linear = 2 * 512 * (3 * 8 * 1024**2 + 4096 * 1024)
    assert model_flops(graph, full_attention=True) == model_flops(graph, full_attention=False) == 3 * linear


def test_in_flight() -> None:
    assert [in_flight(s, 4, 8) for s in range(4)] == [4, 3, 2, 1]
    assert [in_flight(s, 4, 2) for s in range(4)] == [2, 2, 2, 1]


def toy_plan(**changes: object) -> Plan:
    """Two stages on two nodes of the toy, three layers each."""
    layers = [f"layers.{i}" for i in range(6)]
    fields = {
        "model": "toy",
        "fingerprint": "f00d",
        "global_batch": 32,
        "precision": Precision.BF16,
        "pp": 2,
        "fsdp": 4,
        "micro_batch": 1,
        "num_micro_batches": 8,
        "zero": 1,
        "stages": (StagePlan(units=("prologue", *layers[:3])), StagePlan(units=(*layers[3:], "epilogue"))),
    }
    return Plan(**{**fields, **changes})  # pyright: ignore[reportArgumentType]


JOB, TWO_NODES = Job(global_batch=32, tokens_per_sample=512), toy_cluster(nodes=2)


def test_parts_add_up_and_memory_has_owners() -> None:
    estimate = price(toy_graph(), toy_plan(), JOB, TWO_NODES, strategies_of=toy_strategies)
    assert sum(estimate.parts.values()) == pytest.approx(estimate.step_time_s)
    assert all(seconds >= 0 for seconds in estimate.parts.values())
    assert estimate.peak_memory_bytes == max(stage.memory.total for stage in estimate.stages)
    assert estimate.tokens_per_s == pytest.approx(32 * 512 / estimate.step_time_s)
    flops = model_flops(toy_graph(), full_attention=False) * 32
    assert estimate.mfu == pytest.approx(flops / 8 / estimate.step_time_s / TWO_NODES.device.peak("bfloat16"))


def test_recomputing_trades_time_for_memory() -> None:
    kept = price(
        toy_graph(4),
        toy_plan(micro_batch=4, num_micro_batches=2),
        JOB,
        TWO_NODES,
        strategies_of=toy_strategies,
    )
    stages = tuple(
        StagePlan(units=stage.units, recompute=tuple(u for u in stage.units if u.startswith("layers")))
        for stage in toy_plan().stages
    )
    again = price(
        toy_graph(4),
        toy_plan(micro_batch=4, num_micro_batches=2, stages=stages),
        JOB,
        TWO_NODES,
        strategies_of=toy_strategies,
    )
    assert again.step_time_s > kept.step_time_s
    assert again.parts["recompute"] > kept.parts["recompute"] == 0
    assert again.stages[0].memory.activations < kept.stages[0].memory.activations


@given(st.floats(1.0, 8.0), st.sampled_from([1, 2, 3]))
def test_faster_links_never_slow_a_plan(speed: float, zero: int) -> None:
    plan = toy_plan(zero=zero)
    slow, fast = (
        price(toy_graph(), plan, JOB, toy_cluster(nodes=2, speed=factor), strategies_of=toy_strategies)
        for factor in (1.0, speed)
    )
    assert fast.step_time_s <= slow.step_time_s * (1 + 1e-9)
    assert fast.peak_memory_bytes == slow.peak_memory_bytes


def test_tied_parameters_are_held_once_in_a_stage_and_summed_between_stages() -> None:
    units = tuple(name for stage in toy_plan().stages for name in stage.units)
    one = {"pp": 1, "fsdp": 8, "num_micro_batches": 4, "stages": (StagePlan(units=units),)}
    apart, tied = (
        price(toy_graph(tied=t), toy_plan(**one), JOB, TWO_NODES, strategies_of=toy_strategies)
        for t in (False, True)
    )
    table = 4096 * 1024
    assert apart.stages[0].memory.optimizer - tied.stages[0].memory.optimizer == pytest.approx(8 * table / 8)
    two = price(toy_graph(tied=True), toy_plan(), JOB, TWO_NODES, strategies_of=toy_strategies)
    loose = price(toy_graph(), toy_plan(), JOB, TWO_NODES, strategies_of=toy_strategies)
    assert two.parts["dp_comm"] > loose.parts["dp_comm"]


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"fingerprint": "beef"}, "fingerprint"),
        ({"micro_batch": 2, "num_micro_batches": 4}, "micro_batch"),
        ({"global_batch": 16, "num_micro_batches": 4}, "global_batch"),
        ({"fsdp": 2, "num_micro_batches": 16}, "world size"),
        ({"stages": (StagePlan(units=("prologue", "layers.0")), StagePlan(units=("epilogue",)))}, "stages"),
    ],
)
def test_a_plan_for_something_else_is_refused(changes: dict[str, object], field: str) -> None:
    with pytest.raises(PlanError) as caught:
        price(toy_graph(), toy_plan(**changes), JOB, TWO_NODES, strategies_of=toy_strategies)
    assert caught.value.field == field


@pytest.mark.parametrize("layouts", [{"layer": {"up": "cut q"}}, {"layer": {"stranger": "R"}}])
def test_unknown_layouts_are_refused(layouts: dict[str, dict[str, str]]) -> None:
    plan = toy_plan(tp=4, fsdp=1, zero=0, num_micro_batches=32, layouts=layouts)
    with pytest.raises(PlanError, match=r"layouts\.layer"):
        price(toy_graph(), plan, JOB, TWO_NODES, strategies_of=toy_strategies)


def test_an_estimate_is_plain_data() -> None:
    estimate = price(toy_graph(), toy_plan(), JOB, TWO_NODES, strategies_of=toy_strategies)
    assert msgspec.convert(msgspec.to_builtins(estimate), type(estimate)) == estimate
    assert replace(estimate, fits=False) != estimate


def test_a_unit_is_a_value() -> None:
    unit = unit_cost(toy_layer(1, 512, 1024), {}, R, 1, CLUSTER, toy_strategies)
    assert isinstance(unit, UnitCost)
    assert unit.input_bytes == 2 * 512 * 1024
    assert unit.parameters == unit.trainable == sum(unit.sizes.values()) == 8 * 1024**2
