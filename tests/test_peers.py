"""What benchmarks tell other planners, and how they read the answers. No peer is needed."""

from __future__ import annotations

import json
import math
import sys
from dataclasses import replace
from itertools import pairwise

import pytest
from calculon_model import NotSaid, application_of, executions_of, pins_of, system_of
from galvatron_inputs import all_reduce_rates, decided_by, send_rates, tensor_times
from peer_question import Decided, from_calculon
from peers import run

from autoplan.graph.sources.sizes import SIZES
from autoplan.hardware import Cluster
from autoplan.plan import Plan, StagePlan
from autoplan.plan.schedule import Schedule
from autoplan.precision import Precision

CLUSTER = Cluster.of("a100-80-sxm", gpus=64)


def plan(**changed: object) -> Plan:
    stages = tuple(StagePlan(units=(f"block{n}",)) for n in range(12))
    numbers = {
        "pp": 4,
        "tp": 8,
        "fsdp": 2,
        "vpp": 3,
        "micro_batch": 1,
        "num_micro_batches": 32,
        "zero": 1,
    } | changed
    rest = {"schedule": Schedule.INTERLEAVED, "stages": stages, "boundary": "S(1)"}
    return Plan(model="gpt", fingerprint="", global_batch=64, precision=Precision.BF16, **(rest | numbers))


def test_system_has_the_profiles_hardware() -> None:
    """What Calculon would compute for a large product, a large copy and large collectives is what the profile says."""
    system, device = system_of(CLUSTER, "bf16"), CLUSTER.device
    matrix = system["matrix"]["bfloat16"]
    assert matrix["tflops"] * 1e12 == device.peak("bfloat16")
    side = 4096
    share = next(share for least, share in matrix["gflops_efficiency"] if 2 * side**3 / 1e9 >= least)
    ours = 2 * side**3 / device.gemm_time_s((1, side, side, side), "bfloat16") / device.peak("bfloat16")
    assert share == pytest.approx(ours, rel=0.1)
    for curve in (matrix["gflops_efficiency"], system["mem1"]["MB_efficiency"]):
        assert all(above > below for (above, _), (below, _) in pairwise(curve)) and curve[-1][0] == 0
        assert all(0 < share <= 1 for _, share in curve)
    assert system["mem1"]["GiB"] * 2**30 == pytest.approx(device.usable_bytes)
    inner, outer = system["networks"]
    assert (inner["size"], outer["size"]) == (8, 64)
    for network, size, stride in ((inner, 8, 1), (outer, 8, 8)):
        for kind in ("all_reduce", "all_gather", "reduce_scatter"):
            scalar, offset = network["ops"][kind]
            sent = 2**28 * scalar * (1 + offset / size)  # as Calculon's Network.time says
            seconds = network["latency"] + sent / (network["bandwidth"] * 1e9 * network["efficiency"])
            assert seconds == pytest.approx(CLUSTER.collective_time_s(kind, 2**28, size, stride), rel=0.15)


def test_networks_of_a_plan_are_those_of_its_groups() -> None:
    """Data ranks of which eight share a node send a tensor out of it once; those of eight tensor ranks each send theirs."""
    for changed, size, stride in (
        ({"tp": 1, "pp": 1, "fsdp": 64, "vpp": 1}, 64, 1), ({"tp": 8, "pp": 1, "fsdp": 8, "vpp": 1}, 8, 8),
    ):  # fmt: skip
        own = plan(**changed, stages=(StagePlan(units=("all",)),), schedule=Schedule.ONE_F_ONE_B)
        network = system_of(CLUSTER, "bf16", plan=own)["networks"][2]
        sent = 2**28 * 2.0 * (1 - 1 / size)
        seconds = network["latency"] + sent / (network["bandwidth"] * 1e9)
        assert seconds == pytest.approx(
            CLUSTER.collective_time_s("all_reduce", 2**28, size, stride), rel=0.15
        )


def test_endless_memory_holds_everything() -> None:
    assert system_of(CLUSTER, "bf16", endless=True)["mem1"]["GiB"] > 1e8


def test_application_is_of_plain_gpt_alone() -> None:
    size = SIZES["gpt3-175b"]
    said = application_of(size)
    assert (said["hidden"], said["num_blocks"], said["attn_heads"] * said["attn_size"]) == (12288, 96, 12288)
    for other, reason in (
        (SIZES["llama2-7b"], "gated"),
        (replace(size, key_heads=8), "grouped"),
        (SIZES["mixtral-8x7b"], "experts"),
    ):
        with pytest.raises(NotSaid, match=reason):
            application_of(other)


def test_executions_say_the_plan_on_every_assignment_of_networks() -> None:
    said = executions_of(plan(), CLUSTER)
    assert (
        len({(e["tensor_par_net"], e["pipeline_par_net"], e["data_par_net"]) for e in said}) == len(said) == 8
    )
    for execution in said:
        assert execution["num_procs"] == 64 == 4 * 8 * execution["data_par"]
        assert execution["pipeline_interleaving"] == 3 and execution["optimizer_sharding"]
        assert (execution["tensor_par_comm_type"], execution["activation_recompute"]) == (
            "rs_ag",
            "attn_only",
        )
    alone = executions_of(plan(tp=1, fsdp=16, dp=1, zero=1, num_micro_batches=4), CLUSTER)
    assert {(e["tensor_par_comm_type"], e["data_par"]) for e in alone} == {("ar", 16)}


@pytest.mark.parametrize(
    ("changed", "reason"),
    [({"zero": 3}, "ZeRO-3"), ({"fsdp": 1, "cp": 2, "zero": 1}, "context"), ({"tp": 4, "dp": 2}, "HSDP")],
)
def test_what_calculon_has_no_words_for_is_refused(changed: dict[str, int], reason: str) -> None:
    with pytest.raises(NotSaid, match=reason):
        executions_of(plan(**changed), CLUSTER)


def test_calculons_answer_is_read_back_as_it_was_said() -> None:
    execution = executions_of(plan())[0]
    decided = from_calculon(execution)
    assert decided == Decided(
        pp=4, tp=8, data=2, zero=1, micro_batch=1, sequence=True, recompute=False, vpp=3
    )
    pins = decided.pins
    assert pins["fsdp"] == 2 and pins["dp"] == 1 and pins["boundary"] == "S(1)" and pins["vpp"] == 3
    assert pins_of(SIZES["gpt3-175b"], True)["dp"] == 1 and pins_of(SIZES["gpt3-175b"], False)["zero"] == 0


def test_rates_for_galvatron_are_the_clusters() -> None:
    """Bytes over a rate give back the seconds of our collectives; neighbours in a node are faster than far ranks."""
    rates = all_reduce_rates(CLUSTER)
    sent = 2 * 7 / 8 * 2**28
    assert sent / rates["allreduce_size_8_consec_1"] / 1e9 == pytest.approx(
        CLUSTER.collective_time_s("all_reduce", 2**28, 8)
    )
    assert rates["allreduce_size_8_consec_1"] > 4 * rates["allreduce_size_8_consec_0"]
    assert set(rates) == {
        f"allreduce_size_{n}_consec_{near}" for n in (2, 4, 8, 16, 32, 64) for near in (0, 1)
    }
    within = send_rates(Cluster.of("a100-80-sxm", gpus=8))
    assert set(within) == {"pp_size_2", "pp_size_4", "pp_size_8"}
    assert within["pp_size_8"] > 4 * send_rates(CLUSTER)["pp_size_64"]  # whose slowest crosses nodes
    times = tensor_times(CLUSTER, [1, 2, 4, 8])
    assert times["allreduce_size_8_64MB_time"] == 1e3 * CLUSTER.collective_time_s("all_reduce", 2**26, 8)
    assert sum(name.startswith("all2all_size_2_") for name in times) >= 8  # as many as its fit asks for


GALVATRON = {
    "pp_deg": 2, "tp_sizes_enc": "4,4,4,4", "tp_consecutive_flags": "1,1,1,1", "dp_types_enc": "0,0,0,0",
    "use_sp": "0,0,0,0", "checkpoint": "1,0,0,0", "chunks": 8, "pp_division": "2,2", "vtp": 4,
}  # fmt: skip


def test_galvatrons_plan_is_read() -> None:
    decided = decided_by(GALVATRON, gpus=64, batch=128)
    assert decided == Decided(
        pp=2,
        tp=4,
        data=8,
        zero=2,
        micro_batch=2,
        sequence=True,
        recompute=(True, False, False, False),
        layers=(2, 2),
    )
    assert (
        decided.pins["recompute"] == "none"
        and replace(decided, recompute=(True,) * 4).pins["recompute"] == "full"
    )


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"tp_sizes_enc": "4,4,2,2"}, "different tp"), ({"dp_types_enc": "0,1,1,1"}, "ZeRO-3 beside"),
        ({"tp_consecutive_flags": "0,0,0,0"}, "no neighbours"), ({"use_sp": "1,1,1,1"}, "Ulysses"), ({"chunks": 3}, "alike"),
    ],
)  # fmt: skip
def test_galvatrons_mixtures_are_refused(changed: dict[str, object], reason: str) -> None:
    with pytest.raises(NotSaid, match=reason):
        decided_by(GALVATRON | changed, gpus=64, batch=128)


def test_a_peers_process_is_measured_and_its_complaint_heard() -> None:
    """Its peak is its own, however large the process that starts it; a failing one gives its last line."""
    program = "import json, sys; held = bytearray(300_000_000); print(json.dumps(json.load(sys.stdin) + 1))"
    answer, took = run([sys.executable, "-c", program], json.dumps(41), 60)
    assert answer == 42
    ballast = bytearray(600_000_000)
    _, small = run([sys.executable, "-c", "print(1)"], "", 60)
    assert took["peak_rss_bytes"] > 300_000_000 > 150_000_000 > small["peak_rss_bytes"] and len(ballast)
    assert all(math.isfinite(took[name]) and took[name] > 0 for name in ("wall_s", "cpu_s"))
    assert run([sys.executable, "-c", "raise SystemExit('no such thing')"], "", 60)[0] == "no such thing"
