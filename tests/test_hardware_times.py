"""What compute and communication cost by a profile: known values, and what must always hold."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from autoplan.errors import ProfileError
from autoplan.graph.ir import Gemm
from autoplan.graph.layout import Collective
from autoplan.hardware import COLLECTIVES, Cluster
from autoplan.hardware.collectives import group_spans
from autoplan.hardware.gemm import gemm_prior
from autoplan.hardware.interpolate import LogGrid, TimeCurve
from autoplan.hardware.level import bus_factor
from autoplan.hardware.tables import CommunicationPoint, CommunicationTable, GemmPoint, GemmTable

H100 = Cluster.of("h100-sxm", nodes=16)
A100 = Cluster.of("a100-80-sxm", nodes=16)
LARGE = 8 * 2**30

kinds = st.sampled_from(COLLECTIVES)
sizes = st.integers(0, 2**33)
groups = st.sampled_from(
    [(1, 1), (2, 1), (4, 1), (8, 1), (4, 2), (2, 8), (16, 1), (16, 8), (128, 1), (32, 4), (3, 5)]
)


def bus_bytes_per_s(cluster: Cluster, kind: str, size: int, stride: int = 1) -> float:
    return bus_factor(kind, size) * LARGE / cluster.collective_time_s(kind, LARGE, size, stride)


def measured_level(*times: tuple[int, str, list[tuple[int, float]]]) -> Cluster:
    """An H100 node whose level has curves: (group, collective, [(bytes, bus bytes/s)])."""
    curves = tuple(
        CommunicationTable(
            collective=kind,
            group=group,
            source="dgx",
            points=tuple(CommunicationPoint(nbytes, rate) for nbytes, rate in points),
        )
        for group, kind, points in times
    )
    return replace(H100, levels=(replace(H100.levels[0], curves=curves),))


# --- collectives -------------------------------------------------------------------------------


def test_a_large_all_reduce_over_a_node_reaches_the_published_bus_bandwidth() -> None:
    assert bus_bytes_per_s(H100, "all_reduce", 8) == pytest.approx(480e9, rel=0.01)
    assert bus_bytes_per_s(H100, "all_gather", 8) == pytest.approx(370e9, rel=0.01)
    assert bus_bytes_per_s(A100, "all_reduce", 8) == pytest.approx(235e9, rel=0.01)


def test_whole_nodes_are_bound_by_all_their_links_to_the_network() -> None:
    assert bus_bytes_per_s(H100, "all_gather", 128) == pytest.approx(340e9, rel=0.06)
    assert bus_bytes_per_s(A100, "reduce_scatter", 128) == pytest.approx(180e9, rel=0.07)


def test_groups_of_one_rank_a_node_share_the_links_of_the_node() -> None:
    """Eight groups a node at once: each has one of the eight links."""
    assert bus_bytes_per_s(H100, "all_gather", 16, 8) == pytest.approx(0.85 * 50e9, rel=0.01)
    fewer_links = replace(H100, levels=(H100.levels[0], replace(H100.levels[1], nics=4)))
    assert bus_bytes_per_s(fewer_links, "all_gather", 16, 8) == pytest.approx(0.85 * 25e9, rel=0.01)


def test_an_all_to_all_over_nodes_is_bound_by_what_crosses() -> None:
    time_s = H100.collective_time_s("all_to_all", LARGE, 16)
    assert time_s == pytest.approx(LARGE / 2 / (0.75 * 50e9), rel=0.01)


def test_small_messages_cost_latency_by_the_fastest_protocol() -> None:
    """NCCL's LL protocol over 8 GPUs: 3.6 us and 14 steps of 0.47 us."""
    assert H100.collective_time_s("all_reduce", 8, 8) == pytest.approx(3.6e-6 + 14 * 0.47e-6, rel=0.01)
    # Between nodes a double binary tree beats a ring: 2 log2(16) steps of 2.7 us.
    assert H100.collective_time_s("all_reduce", 8, 16, 8) == pytest.approx(3.6e-6 + 8 * 2.7e-6, rel=0.01)


def test_one_rank_and_no_bytes_cost_nothing() -> None:
    assert H100.collective_time_s("all_reduce", 1e9, 1) == 0.0
    assert H100.collective_time_s("all_reduce", 0, 8) == 0.0
    assert H100.p2p_time_s(1e9, 8, size=1) == 0.0
    np.testing.assert_array_equal(
        H100.collective_time_s("all_gather", np.array([0.0, 1e6]), 8) > 0, [False, True]
    )


def test_the_graphs_collectives_are_understood() -> None:
    for kind in Collective:
        if kind.moves:
            assert H100.collective_time_s(kind, 1e6, 8) > 0


def test_sending_is_priced_where_the_chain_crosses_nodes() -> None:
    inside = H100.p2p_time_s(1e9, 4)
    assert inside == pytest.approx(1e9 / (0.75 * 450e9), rel=0.01)
    assert H100.p2p_time_s(1e9, 4, size=4) == pytest.approx(1e9 / (0.85 * 50e9), rel=0.01)
    assert H100.p2p_time_s(1e9, 8) == pytest.approx(1e9 / (0.85 * 50e9), rel=0.01)
    assert H100.collective_time_s("send_recv", 1e9, 2, 8) == H100.p2p_time_s(1e9, 8)


@pytest.mark.parametrize(("size", "stride"), [(129, 1), (0, 1), (17, 8), (2, 0), (2, 128)])
def test_a_group_outside_the_cluster_is_an_error(size: int, stride: int) -> None:
    with pytest.raises(
        ProfileError, match=rf"group: got '{size} ranks {stride} apart', expected .*128 devices"
    ):
        H100.collective_time_s("all_reduce", 1e6, size, stride)


def test_an_unknown_collective_is_an_error() -> None:
    with pytest.raises(ProfileError, match="collective: got 'broadcast', expected one of all_reduce, "):
        H100.collective_time_s("broadcast", 1e6, 8)


@pytest.mark.parametrize(
    ("size", "stride", "spans"),
    [
        (8, 1, ((0, 8, 1, 1),)),
        (4, 2, ((0, 4, 1, 1),)),
        (16, 1, ((0, 8, 1, 1), (1, 2, 8, 8))),
        (16, 8, ((1, 16, 1, 8),)),
        (32, 4, ((0, 2, 1, 1), (1, 16, 2, 8))),
        (1, 1, ()),
    ],
)
def test_how_a_group_lies_on_the_levels(size: int, stride: int, spans: object) -> None:
    assert group_spans((8, 16), size, stride) == spans


@given(kinds, sizes, sizes, groups)
def test_more_bytes_are_never_faster(kind: str, a: int, b: int, group: tuple[int, int]) -> None:
    low, high = sorted((a, b))
    for cluster in (H100, A100):
        assert cluster.collective_time_s(kind, low, *group) <= cluster.collective_time_s(kind, high, *group)


@given(kinds, sizes, groups, st.integers(0, 1), st.floats(1.0, 100.0))
def test_more_bandwidth_is_never_slower(
    kind: str, nbytes: int, group: tuple[int, int], index: int, factor: float
) -> None:
    level = H100.levels[index]
    better = replace(level, bandwidth_bytes_per_s=level.bandwidth_bytes_per_s * factor)
    faster = replace(H100, levels=tuple(better if i == index else old for i, old in enumerate(H100.levels)))
    before, after = (c.collective_time_s(kind, nbytes, *group) for c in (H100, faster))
    assert after <= before * (1 + 1e-9)


@given(kinds, st.lists(st.integers(0, 2**33), min_size=1, max_size=5), groups)
def test_arrays_cost_what_their_members_cost(kind: str, nbytes: list[int], group: tuple[int, int]) -> None:
    together = H100.collective_time_s(kind, np.array(nbytes, dtype=float), *group)
    apart = [H100.collective_time_s(kind, n, *group) for n in nbytes]
    np.testing.assert_allclose(np.broadcast_to(together, len(nbytes)), apart, rtol=1e-9)


rates = st.lists(st.floats(1e5, 1e12), min_size=1, max_size=6)


@settings(max_examples=50)
@given(rates, st.integers(1, 2**34), st.integers(1, 2**34))
def test_measured_curves_never_decrease_however_noisy(points: list[float], a: int, b: int) -> None:
    cluster = measured_level((4, "all_reduce", [(4 ** (i + 5), rate) for i, rate in enumerate(points)]))
    low, high = (cluster.collective_time_s("all_reduce", n, 4) for n in sorted((a, b)))
    assert low <= high * (1 + 1e-9)


def test_measured_points_come_back_and_other_groups_lie_between() -> None:
    points = [(1024, 1e6), (1048576, 1e9)]
    cluster = measured_level(
        (2, "all_reduce", points), (8, "all_reduce", [(n, rate / 2) for n, rate in points])
    )
    assert cluster.collective_time_s("all_reduce", 1048576, 2) == pytest.approx(1048576 / 1e9)
    assert cluster.collective_time_s("all_reduce", 1048576, 8) == pytest.approx(1.75 * 1048576 / 0.5e9)
    two, four, eight = (cluster.collective_time_s("all_reduce", 1048576, size) for size in (2, 4, 8))
    assert two < four < eight
    # Below the first point the formula gives the shape: mostly latency.
    assert cluster.collective_time_s("all_reduce", 16, 2) == pytest.approx(1024 / 1e6, rel=0.01)
    assert cluster.collective_time_s("all_reduce", 2**30, 2) == pytest.approx(2**30 / 1e9)


# --- compute -----------------------------------------------------------------------------------


def test_a_large_product_runs_near_the_usual_share_of_peak() -> None:
    for cluster, low, high in ((H100, 0.58, 0.66), (A100, 0.70, 0.78)):
        flops = 2 * 8192**3
        share = (
            flops
            / cluster.device.gemm_time_s((1, 8192, 8192, 8192), "bfloat16")
            / cluster.device.peak("bfloat16")
        )
        assert low < share < high


def test_a_graphs_gemm_and_a_tuple_cost_the_same() -> None:
    gemm = Gemm(batch=4, m=512, n=256, k=128)
    assert H100.device.gemm_time_s(gemm, "bfloat16") == H100.device.gemm_time_s(
        (4, 512, 256, 128), "bfloat16"
    )


def test_cutting_a_product_wins_less_than_it_cuts() -> None:
    whole, eighth = (H100.device.gemm_time_s((1, 2048, n, 4096), "bfloat16") for n in (4096, 512))
    assert whole / 8 < eighth < whole


def test_a_thin_product_is_bound_by_memory() -> None:
    time_s = H100.device.gemm_time_s((1, 1, 8192, 8192), "bfloat16")
    assert time_s == pytest.approx(2 * 8192**2 / (0.85 * 3.35e12), rel=0.2)


def test_compute_takes_arrays() -> None:
    n = np.array([256, 1024, 4096])
    device = H100.device
    np.testing.assert_allclose(
        device.gemm_time_s((1, 2048, n, 512), "bfloat16"),
        [device.gemm_time_s((1, 2048, int(i), 512), "bfloat16") for i in n],
    )
    np.testing.assert_allclose(device.memory_time_s(n), [device.memory_time_s(int(i)) for i in n])
    np.testing.assert_allclose(
        device.attention_time_s(8, n, n, 64, "bfloat16", True),
        [device.attention_time_s(8, int(i), int(i), 64, "bfloat16", True) for i in n],
    )


def test_attention_halves_when_causal_and_takes_longer_backward() -> None:
    device = H100.device
    full = device.attention_time_s(32, 8192, 8192, 128, "bfloat16", False)
    causal = device.attention_time_s(32, 8192, 8192, 128, "bfloat16", True)
    backward = device.attention_time_s(32, 8192, 8192, 128, "bfloat16", True, backward=True)
    assert causal == pytest.approx(full / 2, rel=0.02)
    assert 2.5 < backward / causal < 4


def test_a_dtype_without_figures_is_an_error() -> None:
    with pytest.raises(ProfileError, match="dtype: got 'int8', expected one that NVIDIA H100 80GB HBM3 has"):
        H100.device.peak("int8")


def test_measured_products_come_back_and_replace_the_prior() -> None:
    points = tuple(
        GemmPoint(m, n, k, 1e12 * (m * n * k) ** 0.1) for m in (64, 512) for n in (64, 512) for k in (64, 512)
    )
    device = replace(H100.device, gemm=(GemmTable(dtype="bfloat16", source="h100", points=points),))
    for point in points:
        expected = 2 * point.m * point.n * point.k / point.flops_per_s + device.launch_s
        assert device.gemm_time_s((1, point.m, point.n, point.k), "bfloat16") == pytest.approx(expected)
    assert device.gemm_time_s((1, 512, 512, 512), "float32") == H100.device.gemm_time_s(
        (1, 512, 512, 512), "float32"
    )


@given(st.integers(0, 2**40), st.integers(0, 2**40))
def test_more_memory_traffic_is_never_faster(a: int, b: int) -> None:
    low, high = sorted((a, b))
    assert H100.device.memory_time_s(low) <= H100.device.memory_time_s(high)


dims = st.integers(1, 2**16)


@given(dims, dims, dims, dims, st.sampled_from([0, 108, 132]))
def test_the_prior_is_a_fraction_below_its_ceiling(batch: int, m: int, n: int, k: int, units: int) -> None:
    assert 0 < gemm_prior(batch, m, n, k, ceiling=0.7, units=units) <= 0.7


# --- interpolation -----------------------------------------------------------------------------


def test_a_grid_is_exact_for_power_laws_and_constant_outside() -> None:
    axis = (1, 4, 64)
    grid = LogGrid([(m, n, k, m * n**2 / k) for m in axis for n in axis for k in axis])
    assert grid(2, 8, 16) == pytest.approx(2 * 64 / 16)
    assert grid(1000, 8, 16) == pytest.approx(grid(64, 8, 16))
    np.testing.assert_allclose(grid(np.array([1, 2]), 4, 4), [4, 8])


def test_an_incomplete_grid_takes_the_nearest_point() -> None:
    grid = LogGrid([(1, 1, 1, 5.0), (16, 16, 1, 7.0)])
    assert grid(16, 16, 1) == pytest.approx(7.0)
    assert grid(1, 1, 1) == pytest.approx(5.0)
    assert 4.99 < grid(16, 1, 1) < 7.01


def test_a_stream_has_no_floor_but_a_collective_has() -> None:
    stream, collective = (TimeCurve([1e3, 1e6], [1e-6, 1e-3], floor=floor) for floor in (False, True))
    assert stream(10.0) == pytest.approx(1e-8)
    assert collective(10.0) == pytest.approx(1e-6)


def test_noise_out_of_order_is_averaged_not_carried_upwards() -> None:
    curve = TimeCurve([1e3, 1e4, 1e5], [4e-4, 1e-4, 1e-2], floor=True)
    assert curve(1e3) == pytest.approx(2e-4)
    assert curve(1e4) == pytest.approx(2e-4)
    assert curve(1e5) == pytest.approx(1e-2)


def test_a_ring_over_two_nodes_carries_what_every_link_of_a_ring_does() -> None:
    """(n - 1) / n of the bytes leave each node through all of its links, not the half that two units alone
    would exchange (nccl-tests, PERFORMANCE.md, with n = 16)."""
    cluster = Cluster.of("a100-80-sxm", nodes=2)
    wire = cluster.levels[-1]
    nbytes = 8 * 2**30
    links = wire.nics * wire.bandwidth_bytes_per_s * wire.efficiency["all_gather"]
    assert cluster.collective_time_s("all_gather", nbytes, 16) == pytest.approx(
        nbytes * 15 / 16 / links, rel=0.01
    )
