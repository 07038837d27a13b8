"""From samples to a profile: made-up machines come back as they were made up, and a real one is measured."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from autoplan.errors import ProfileError
from autoplan.hardware import Cluster, Slowdown, SourceKind, write_profile
from autoplan.hardware.gemm import attention_flops
from autoplan.hardware.level import bus_factor
from autoplan.hardware.machine import measured_source
from autoplan.hardware.measure import measure_cluster
from autoplan.hardware.measure_collectives import ring_starts
from autoplan.hardware.measure_host import host_link
from autoplan.hardware.measure_journal import journal_path
from autoplan.hardware.measure_levels import hidden_share
from autoplan.hardware.measure_points import (
    Attention,
    Beside,
    Copy,
    Gemm,
    Launch,
    Memory,
    Message,
    Point,
    group_sizes,
    points_of,
)
from autoplan.hardware.measure_profile import Findings, assemble
from autoplan.hardware.measure_run import Results
from autoplan.hardware.measure_sizes import TINY, sizes_for
from autoplan.hardware.nvml import GpuFacts
from autoplan.hardware.topology import Topology, TopologyLevel

CPU = torch.device("cpu")
TWO_LEVELS = Topology((TopologyLevel("node", 4), TopologyLevel("network", 2)), 4, "made up")
LAUNCH_S, PEAK, STREAM = 1e-7, 5e10, 1e12
INSIDE, LINK, LATENCY_S = 4e9, 1e9, 2e-5


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def time_s(point: Point) -> float:
    """A machine with two links a node, which four ranks share: alone, one rank has one link to itself."""
    match point:
        case Launch():
            return LAUNCH_S
        case Gemm():
            return LAUNCH_S + 2 * point.batch * point.m * point.n * point.k / PEAK
        case Memory():
            return LAUNCH_S + point.nbytes / STREAM
        case Attention():
            sizes = (point.batch, point.length, point.length, point.head)
            flops = attention_flops(*sizes, causal=point.causal, backward=point.backward)
            return LAUNCH_S + flops / PEAK
        case Message():
            rate = INSIDE if point.level == 0 else LINK if point.at_once == "one" else LINK / 2
            return LATENCY_S + bus_factor(point.kind, point.group) * point.actual_bytes / rate
        case Beside():
            return 1.5 if point.part == "compute" else 1.2
        case _:
            raise AssertionError(point)


def findings(failed: dict[str, str] | None = None, topology: Topology = TWO_LEVELS) -> Findings:
    points = points_of(TINY, topology, "cpu")
    visits = {point.key: [[time_s(point)] * 2, [time_s(point) * 1.01] * 2] for point in points}
    lost = {key: reason for key, reason in (failed or {}).items() if key in visits}
    return Findings(CPU, topology, points, Results(visits, lost))


def assembled(failed: dict[str, str] | None = None, topology: Topology = TWO_LEVELS) -> Cluster:
    return assemble(
        "made-up", findings(failed, topology), measured_source(CPU, topology, visits=2, samples=2, load=0.0)
    )


def test_levels_come_back_with_their_links() -> None:
    cluster = assembled()
    node, network = cluster.levels
    assert (node.name, node.size, network.name, network.size) == ("node", 4, "network", 2)
    assert node.nics == 1
    assert network.nics == 2, "four ranks at once reach twice what one does alone"
    assert node.bandwidth_bytes_per_s == pytest.approx(INSIDE, rel=0.1)
    assert network.bandwidth_bytes_per_s == pytest.approx(LINK, rel=0.05)
    assert network.latency_s == pytest.approx(LATENCY_S + 4096 / LINK, rel=0.02)
    assert {(table.group, table.at_once) for table in network.curves} == {(2, "all"), (2, "one")}
    assert {table.group for table in node.curves} == {2, 4}


def test_times_come_back() -> None:
    cluster = assembled()
    for point in findings().points:
        predicted = None
        if isinstance(point, Message):
            unit = TWO_LEVELS.unit(point.level)
            alone = point.at_once == "one"
            if point.kind == "send_recv":
                if alone:
                    continue
                predicted = cluster.p2p_time_s(point.actual_bytes, unit)
            else:
                predicted = cluster.collective_time_s(
                    point.kind, point.actual_bytes, point.group, unit, alone=alone
                )
        elif isinstance(point, Gemm):
            predicted = cluster.device.gemm_time_s((1, point.m, point.n, point.k), point.dtype)
        elif isinstance(point, Memory):
            predicted = cluster.device.memory_time_s(point.nbytes)
        elif isinstance(point, Attention):
            sizes = (point.batch, point.length, point.length, point.head)
            predicted = cluster.device.attention_time_s(
                *sizes, point.dtype, point.causal, backward=point.backward
            )
        if predicted is not None:
            assert predicted == pytest.approx(1.005 * time_s(point), rel=0.03), point


def test_every_figure_says_that_it_was_measured_and_how_far_it_may_lie() -> None:
    cluster = assembled()
    assert cluster.sources["run"].kind is SourceKind.MEASURED
    assert cluster.sources["run"].samples == 4
    for level in cluster.levels:
        assert set(level.spread) == {"bandwidth_bytes_per_s", "latency_s"}
        assert all(p.samples == 4 and p.spread > 0 for table in level.curves for p in table.points)
    assert all(p.samples == 4 and p.spread > 0 for p in cluster.device.gemm[0].points)
    assert cluster.device.spread["launch_s"] > 0
    assert not any(key in ("alone", "ratio") for level in cluster.levels for key in level.source.values())


def test_slowdowns_and_what_they_hide() -> None:
    cluster = assembled()
    slowdown = cluster.slowdown_of("all_reduce", "gemm", "network")
    assert (slowdown.compute_factor, slowdown.communication_factor) == pytest.approx((1.507, 1.206), rel=0.01)
    assert cluster.overlap == pytest.approx(hidden_share(cluster.slowdown), abs=1e-4)


@pytest.mark.parametrize(
    ("communication", "compute", "hidden"),
    [
        (1.0, 1.0, 1.0),  # nothing is lost
        (2.0, 2.0, 0.0),  # they take turns
        (1.0, 2.0, 0.5),
        (1.0, 1000.0, 0.001),  # compute stands still meanwhile
        (1000.0, 1.0, 0.001),  # communication does
        (1.05, 1.1, 0.905),
    ],
)
def test_what_is_hidden(communication: float, compute: float, hidden: float) -> None:
    entry = Slowdown(compute="gemm", compute_factor=compute, communication_factor=communication, source="run")
    assert hidden_share([entry]) == pytest.approx(hidden, abs=0.001)


@given(st.lists(st.tuples(st.floats(1, 1000), st.floats(1, 1000)), max_size=4))
def test_hidden_is_a_share(factors: list[tuple[float, float]]) -> None:
    entries = [
        Slowdown(compute="gemm", compute_factor=f, communication_factor=g, source="run") for f, g in factors
    ]
    assert 0 <= hidden_share(entries) <= 1


def test_what_failed_is_told_and_the_rest_stands(tmp_path: Path) -> None:
    key = Gemm("float32", 1, 64, 64, 64).key
    cluster = assembled({key: "out of memory: 1 GiB"})
    assert [(f.what, f.reason) for f in cluster.failed] == [(key, "out of memory: 1 GiB")]
    assert len(cluster.device.gemm[0].points) == 7
    write_profile(cluster, tmp_path / "made-up.toml")
    assert Cluster.load(tmp_path / "made-up.toml").failed == cluster.failed


def test_without_one_product_there_is_no_profile() -> None:
    keys = [point.key for point in findings().points if isinstance(point, Gemm)]
    with pytest.raises(ProfileError, match="products and streams that can be measured"):
        assembled(dict.fromkeys(keys, "out of memory"))


def test_what_nvml_says_is_kept() -> None:
    gpu = GpuFacts("0", 18, (), True, "", 63e9, 700.0)
    found = dataclasses.replace(findings(), gpu=gpu)
    run = measured_source(CPU, TWO_LEVELS, visits=2, samples=2, load=0.0, gpu=gpu)
    cluster = assemble("made-up", found, run)
    assert cluster.device.tdp_w == 700.0
    assert cluster.sources["run"].settings["nvlinks"] == 18
    assert cluster.sources["run"].settings["pcie_bytes_per_s"] == 63e9


def test_copies_make_the_host_link() -> None:
    points = [Copy(way, nbytes) for way in ("to_host", "from_host") for nbytes in (1 << 20, 1 << 26)]
    both = [Copy("to_host", 1 << 26, both=True), Copy("from_host", 1 << 26, both=True)]
    rates = {"to_host": 25e9, "from_host": 20e9}
    seconds = {p.key: 1e-5 + p.nbytes / (rates[p.direction] * (0.5 if p.both else 1)) for p in points + both}
    results = Results({key: [[time, time], [time]] for key, time in seconds.items()}, {})
    host = host_link(points + both, results, 4, "run", "machine")
    assert host is not None
    assert host.to_host_bytes_per_s == pytest.approx(25e9, rel=0.01)
    assert host.from_host_bytes_per_s == pytest.approx(20e9, rel=0.01)
    assert host.both_bytes_per_s == pytest.approx(10e9, rel=0.01)
    assert host.time_s(1 << 26, "to_host") == pytest.approx(seconds[Copy("to_host", 1 << 26).key], rel=0.01)
    assert host_link(points[:2], results, 4, "run", "machine") is None, "one way only"


def test_one_rank_has_memory_for_a_link() -> None:
    cluster = assembled(topology=Topology((TopologyLevel("node", 1),), 1))
    assert cluster.world_size == 1
    assert cluster.overlap == 0.0
    assert cluster.sources[cluster.levels[0].source["latency_s"]].kind is SourceKind.ASSUMED


# --- what is measured --------------------------------------------------------------------------


def test_group_sizes() -> None:
    assert [group_sizes(n) for n in (1, 2, 3, 6, 8)] == [[], [2], [2, 3], [2, 4, 6], [2, 4, 8]]


def test_groups_of_a_level() -> None:
    assert ring_starts(2, 1, 4, 8) == [0, 2, 4, 6]
    assert ring_starts(4, 1, 4, 8) == [0, 4]
    assert ring_starts(2, 4, 8, 8) == [0, 1, 2, 3]
    assert ring_starts(2, 2, 8, 8) == [0, 1, 4, 5]
    assert ring_starts(2, 1, 3, 6) == [0, 3], "the third rank of three is in no whole pair"
    assert ring_starts(3, 1, 3, 3) == [0]


def test_messages_go_from_1_kib_to_256_mib_on_every_level_alone_and_all_at_once() -> None:
    for kind in ("cpu", "cuda"):
        points = points_of(sizes_for(kind, quick=False), TWO_LEVELS, kind)
        messages = [point for point in points if isinstance(point, Message)]
        assert {p.message_bytes for p in messages} >= {1 << 10, 1 << 20, 1 << 28}
        assert {(p.level, p.at_once) for p in messages} == {(0, "all"), (1, "all"), (1, "one")}
        assert {p.kind for p in messages if p.level == 1} == {p.kind for p in messages if p.level == 0}
        assert len({point.key for point in points}) == len(points)


def test_sizes_can_be_chosen() -> None:
    assert sizes_for("cpu", quick=True, messages=(2048, 1024, 2048)).messages == (1024, 2048)
    assert sizes_for("cpu", quick=False, max_bytes=5000).messages == (1024, 4096, 5000)


def test_a_process_alone_measures_itself_and_goes_on_from_a_journal(tmp_path: Path) -> None:
    path = tmp_path / "alone.toml"
    cluster = measure_cluster("alone", sizes=TINY, journal=journal_path(path), progress=False)
    kept = journal_path(path).read_bytes()
    again = measure_cluster("alone", sizes=TINY, journal=journal_path(path), progress=False)
    assert journal_path(path).read_bytes() == kept, "nothing was left to measure"
    assert (again.device.gemm, again.device.memory) == (cluster.device.gemm, cluster.device.memory)
    write_profile(cluster, path)
    assert Cluster.load(path).device.gemm_time_s((1, 32, 32, 32), "float32") > 0


def test_what_exceeds_memory_is_not_tried_but_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("autoplan.hardware.measure.available_bytes", lambda device: 600_000)
    cluster = measure_cluster("alone", sizes=TINY, progress=False)
    assert [failure.what for failure in cluster.failed] == [Memory(256 << 10).key]
    assert all("out of memory" in failure.reason for failure in cluster.failed)


def test_an_allocator_that_fails_is_a_finding(monkeypatch: pytest.MonkeyPatch) -> None:
    from autoplan.hardware import measure

    whole = measure.compute_call

    def failing(point: Point, device: torch.device) -> object:
        if point == Gemm("float32", 1, 64, 64, 64):
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 80 GiB\nmore words")
        return whole(point, device)  # type: ignore[arg-type]

    monkeypatch.setattr(measure, "compute_call", failing)
    cluster = measure_cluster("alone", sizes=TINY, progress=False)
    assert [(f.what, f.reason) for f in cluster.failed] == [
        (Gemm("float32", 1, 64, 64, 64).key, "CUDA out of memory. Tried to allocate 80 GiB")
    ]


def test_any_other_failure_is_not_swallowed(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(point: Point, device: torch.device) -> object:
        raise RuntimeError("a bug")

    monkeypatch.setattr("autoplan.hardware.measure.compute_call", broken)
    with pytest.raises(RuntimeError, match="a bug"):
        measure_cluster("alone", sizes=TINY, progress=False)
