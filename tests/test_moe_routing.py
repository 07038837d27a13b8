"""How a router's load is stated, measured, carried by a graph, priced and reported."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from accounted_models import MIXTURES, MODELS, built_in
from hypothesis import given
from hypothesis import strategies as st

from autoplan.cli.main import main
from autoplan.cost.compute import op_times
from autoplan.cost.unit import unit_cost
from autoplan.errors import InputError
from autoplan.graph.axes import strategies
from autoplan.graph.ir import Block, ModelGraph, Op, Origin
from autoplan.graph.layout import REPLICATE
from autoplan.graph.routing import Routing
from autoplan.graph.strategy import Strategy
from autoplan.graph.trace import trace
from autoplan.hardware import Cluster
from autoplan.precision import Precision

EXPERTS = 4


@cache
def traced(routing: Routing | None = None) -> ModelGraph:
    model, batch, loss = built_in(experts=EXPERTS, experts_per_token=2, hidden=256, ffn=512)()
    return trace(model, batch, loss, Precision.BF16, routing=routing)


def expert_ops(graph: ModelGraph) -> list[tuple[Block, Op]]:
    return [(block, op) for block in graph.kinds.values() for op in block.ops if op.routing is not None]


def cut_by_experts(block: Block, op: Op, degree: int) -> Strategy:
    (found,) = [s for s in strategies(block, op, degree) if s.name == "cut e"]
    return found


@pytest.mark.parametrize("name", [f"{kind}-eager" for kind in MIXTURES])
def test_the_experts_of_hugging_face_models_are_ops_with_an_expert_axis(name: str) -> None:
    model, batch, loss = MODELS[name]()
    routing = Routing(imbalance=1.5)
    graph = trace(model, batch, loss, routing=routing)
    found = expert_ops(graph)
    assert found
    assert {op.routing for _, op in found} == {routing}
    assert graph.routing == routing
    pairs = batch["input_ids"].numel() * model.config.num_experts_per_tok
    names = ("num_local_experts", "num_experts", "n_routed_experts")
    experts = next(getattr(model.config, name) for name in names if hasattr(model.config, name))
    for block, op in found:
        assert op.gemm is not None
        assert (op.gemm.batch, op.gemm.batch * op.gemm.m) == (experts, pairs)
        assert cut_by_experts(block, op, 2).gemm_axis == "batch"


def test_a_model_without_experts_has_no_routing() -> None:
    model, batch, loss = built_in()()
    assert trace(model, batch, loss, routing=Routing(2.0)).routing is None


def test_balance_is_assumed_unless_stated() -> None:
    assert {op.routing for _, op in expert_ops(traced())} == {Routing()}
    assert traced().fingerprint == traced(Routing(3.0)).fingerprint


def test_the_load_of_the_busiest_rank() -> None:
    assert Routing().load(8, 4) == Routing().load(8, 8) == 1.0
    assert Routing(3.0).load(8, 1) == 1.0
    assert Routing(3.0).load(8, 8) == 3.0
    # the busiest expert's 3 and its neighbour's (8 - 3) / 7, of 2 on average
    assert Routing(3.0).load(8, 4) == pytest.approx((3 + 5 / 7) / 2)
    assert Routing(100.0).load(8, 8) == 8.0  # all tokens


def test_a_histogram_adds_up_what_each_rank_holds() -> None:
    routing = Routing.from_histogram([1, 1, 1, 5])
    assert routing.imbalance == 2.5
    assert [routing.load(4, ranks) for ranks in (1, 2, 4)] == [1.0, 1.5, 2.5]
    assert Routing.from_histogram([0, 0, 0, 0, 7, 0, 0, 0]).load(8, 8) == 8.0


@given(st.lists(st.integers(0, 10**6), min_size=1, max_size=64).filter(any), st.data())
def test_a_rank_s_load_lies_between_balance_and_everything(counts: list[int], data: st.DataObject) -> None:
    ranks = data.draw(st.sampled_from([r for r in range(1, len(counts) + 1) if len(counts) % r == 0]))
    measured = Routing.from_histogram(counts)
    for routing in (measured, Routing(measured.imbalance)):
        load = routing.load(len(counts), ranks)
        assert 1 - 1e-9 <= load <= ranks + 1e-9
        assert load <= max(measured.imbalance, 1.0) + 1e-9
    assert measured.load(len(counts), len(counts)) == pytest.approx(max(counts) * len(counts) / sum(counts))


def test_room_is_for_all_rows_or_for_the_capacity() -> None:
    assert Routing().room(8, 4) == 1.0
    assert Routing(capacity_factor=2.0).room(8, 4) == 0.5
    assert (
        Routing(3.0, capacity_factor=1.0).room(8, 8) == 3 / 8
    )  # nothing is dropped: the load needs its room
    assert Routing(capacity_factor=9.0).room(8, 4) == 1.0


@pytest.mark.parametrize(
    ("make", "field"),
    [
        (lambda: Routing(0.5), "--moe-imbalance"),
        (lambda: Routing(float("nan")), "--moe-imbalance"),
        (lambda: Routing(capacity_factor=0.0), "--moe-capacity"),
        (lambda: Routing.from_histogram([]), "--moe-histogram"),
        (lambda: Routing.from_histogram([0, 0]), "--moe-histogram"),
        (lambda: Routing.from_histogram([1, -1]), "--moe-histogram"),
        (lambda: Routing.read("/no/such/file"), "--moe-histogram"),
        (lambda: traced(Routing.from_histogram([1, 2, 3])), "--moe-histogram"),
    ],
)
def test_what_no_router_gives_is_refused(make: Callable[[], Any], field: str) -> None:
    with pytest.raises(InputError) as caught:
        make()
    assert caught.value.field == field


@pytest.mark.parametrize("text", ["[3, 1, 2, 2]", "3 1 2 2", "3,1,2,2\n", "3\n1\n2\n2\n"])
def test_files_of_counts(text: str, tmp_path: Path) -> None:
    file = tmp_path / "counts"
    file.write_text(text)
    assert Routing.read(file, 1.5) == Routing(1.5, 1.5, (3, 1, 2, 2))


@given(st.text(max_size=40))
def test_any_other_file_is_refused_by_name(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    file = tmp_path_factory.mktemp("counts") / "counts"
    file.write_text(text, encoding="utf-8")
    try:
        routing = Routing.read(file)
    except InputError as error:
        assert error.field == "--moe-histogram"
    else:
        assert sum(routing.counts) > 0


def test_the_busiest_rank_s_rows_are_priced_where_experts_are_cut() -> None:
    cluster, even, uneven = Cluster.of("h100-sxm", gpus=8), traced(), traced(Routing(2.0))
    for (block, op), (other, same) in zip(expert_ops(even), expert_ops(uneven), strict=True):
        assert op.gemm is not None
        for degree, load in ((2, Routing(2.0).load(EXPERTS, 2)), (4, 2.0)):
            cut = cut_by_experts(block, op, degree)
            balanced = op_times(block, op, cut, degree, cluster)
            busiest = op_times(other, same, cut, degree, cluster)
            rows = round(op.gemm.m * load)
            size = (op.gemm.batch // degree, rows, op.gemm.n, op.gemm.k)
            assert busiest.forward_s == cluster.device.gemm_time_s(size, "bfloat16")
            assert busiest.forward_s >= balanced.forward_s
            assert busiest.backward_s >= balanced.backward_s
        whole = Strategy("R", (REPLICATE,) * len(op.inputs), REPLICATE, share=False)
        assert op_times(block, op, whole, 1, cluster) == op_times(other, same, whole, 1, cluster)


def test_capacity_bounds_the_room_that_is_priced_and_nothing_else() -> None:
    cluster = Cluster.of("h100-sxm", gpus=8)

    def cost(routing: Routing | None) -> Any:
        """Of a block that is one expert product."""
        block, op = expert_ops(traced(routing))[0]
        rows, weight, ends = op.inputs
        alone = replace(
            block,
            ops=(op,),
            inputs=(rows, ends),
            outputs=(op.output,),
            parameters={weight: block.parameters[weight]},
            values={name: block.values[name] for name in (weight, op.output)}
            | {name: replace(block.values[name], origin=Origin.INPUT) for name in (rows, ends)},
        )
        return unit_cost(alone, {op.name: "cut e"}, REPLICATE, 4, cluster, strategies)

    free, bounded = cost(None), cost(Routing(capacity_factor=1.25))
    block, op = expert_ops(traced())[0]
    rows = block.values[op.inputs[0]].nbytes + block.values[op.output].nbytes
    assert free.workspace_bytes - bounded.workspace_bytes == (1 - 1.25 / 4) * rows
    assert bounded.times == free.times
    assert bounded.saved_bytes == free.saved_bytes


SEARCH = ["search", "test_moe_routing:small_mixture", "--cluster", "h100-sxm", "--gpus", "4", "--global-batch", "4",
          "--dp", "1", "--pp", "1", "--micro-batch", "4"]  # fmt: skip


def small_mixture() -> Any:
    model, batch, _ = built_in(experts=EXPERTS, experts_per_token=2)()
    return model, batch


def test_the_report_states_the_assumption(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    counts = tmp_path / "counts.json"
    counts.write_text("[4, 2, 1, 1]")
    assert main([*SEARCH, "--json", "--moe-histogram", str(counts), "--moe-capacity", "2"]) == 0
    (assumption,) = json.loads(capsys.readouterr().out)["assumptions"]
    assert "measured on 8 tokens (busiest 2x the mean), buffers priced for 2x the mean" in assumption
    assert main([*SEARCH, "--moe-imbalance", "1.5"]) == 0
    assert "assumed: busiest expert 1.5x the mean; no token is dropped" in capsys.readouterr().out


@pytest.mark.parametrize(
    "options", [["--moe-imbalance", "0.9"], ["--moe-capacity", "x"], ["--moe-histogram", "/no/such/file"]]
)
def test_wrong_options_are_named(options: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*SEARCH, *options]) == 2
    assert options[0] in capsys.readouterr().err


def test_grouped_products_have_the_flops_of_their_rows() -> None:
    for _, op in expert_ops(traced()):
        assert op.gemm is not None
        assert (op.flops_forward, op.flops_backward) == (op.gemm.flops, 2 * op.gemm.flops)
