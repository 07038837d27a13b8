"""Clusters of two types of device."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from autoplan.errors import AutoplanError, ProfileError
from autoplan.hardware import Cluster, MixedCluster, read_any

A100, H100 = Cluster.of("a100-80-sxm", nodes=2), Cluster.of("h100-sxm", nodes=2)
MIXED = Cluster.of([("a100-80-sxm", 2), ("h100-sxm", 2)])
CPUS = replace(H100, device=replace(H100.device, kind="cpu"))
WHOLE = {name: Cluster.of(name, nodes=4) for name in ("a100-80-sxm", "h100-sxm")}


def test_each_rank_has_the_device_of_its_part() -> None:
    assert isinstance(MIXED, MixedCluster)
    assert (MIXED.world_size, MIXED.name) == (32, "a100-80-sxm:2+h100-sxm:2")
    names = [MIXED.device_of(rank).name for rank in range(32)]
    assert names == [A100.device.name] * 16 + [H100.device.name] * 16
    assert MIXED.part_of(16).device.gemm_time_s((1, 4096, 4096, 4096), "bfloat16") == H100.device.gemm_time_s(
        (1, 4096, 4096, 4096), "bfloat16"
    )
    assert MIXED.price_per_hour == pytest.approx(16 * 2.79 + 16 * 3.99)
    with pytest.raises(ProfileError, match="rank: got 32, expected 0 to 31"):
        MIXED.device_of(32)


@pytest.mark.parametrize("kind", ["all_reduce", "all_gather", "reduce_scatter", "all_to_all", "send_recv"])
@pytest.mark.parametrize(("size", "stride"), [(2, 1), (8, 1), (2, 8), (16, 1)])
def test_inside_a_part_it_is_that_part(kind: str, size: int, stride: int) -> None:
    for first, part in ((0, A100), (16, H100)):
        assert MIXED.collective_time_s(kind, 1e8, size, stride, first=first) == part.collective_time_s(
            kind, 1e8, size, stride
        )
    both = [part.collective_time_s(kind, 1e8, size, stride) for part in (A100, H100)]
    assert MIXED.collective_time_s(kind, 1e8, size, stride) == max(both)


@pytest.mark.parametrize("kind", ["all_reduce", "all_gather", "reduce_scatter", "all_to_all"])
@pytest.mark.parametrize("nbytes", [64, 1e6, 1e9])
def test_across_parts_the_slowest_member_sets_the_pace(kind: str, nbytes: float) -> None:
    time_s = MIXED.collective_time_s(kind, nbytes, 32)
    alone = [whole.collective_time_s(kind, nbytes, 32) for whole in WHOLE.values()]
    assert time_s == pytest.approx(max(alone), rel=1e-9)  # the A100's links are slower on every level
    # A slower network on the faster side shows too.
    slow = replace(H100, levels=(H100.levels[0], replace(H100.levels[1], bandwidth_bytes_per_s=5e9)))
    slowed = Cluster.of([(A100, 2), (slow, 2)])
    assert slowed.collective_time_s(kind, nbytes, 32) >= time_s
    assert slowed.collective_time_s(kind, nbytes, 32, first=0) == slowed.collective_time_s(kind, nbytes, 32)


def test_each_level_goes_at_its_own_slowest() -> None:
    """One part slow inside, the other slow outside: both show."""
    inside = replace(A100, levels=(replace(A100.levels[0], latency_s=1e-3, protocols=()), A100.levels[1]))
    outside = replace(A100, levels=(A100.levels[0], replace(A100.levels[1], latency_s=1e-3, protocols=())))
    mixed = Cluster.of([(inside, 2), (outside, 2)])
    parts = [Cluster.of(part, nodes=4).collective_time_s("all_gather", 8, 32) for part in (inside, outside)]
    assert mixed.collective_time_s("all_gather", 8, 32) > max(parts)


def test_a_send_between_parts_crosses_the_slower_network() -> None:
    crossing = MIXED.p2p_time_s(1e9, 1, 2, first=15)
    assert crossing == pytest.approx(1e9 / (0.90 * 25e9), rel=0.01)
    assert MIXED.p2p_time_s(1e9, 1, 2, first=16) == H100.p2p_time_s(1e9, 1)
    assert MIXED.p2p_time_s(1e9, 8, 4) == pytest.approx(crossing, rel=0.01)


def test_arrays_of_sizes_are_priced_at_once() -> None:
    sizes = np.array([0.0, 1e3, 1e6, 1e9])
    times = MIXED.collective_time_s("all_reduce", sizes, 32)
    assert times.shape == (4,)
    expected = [MIXED.collective_time_s("all_reduce", float(n), 32) for n in sizes]
    np.testing.assert_allclose(times, expected)


def test_parts_may_have_nodes_of_different_sizes() -> None:
    mixed = Cluster.of([("v100-32-sxm-4-opa", 2), ("a100-80-sxm", 1), ("gb200-nvl72", 1)])
    assert [part.world_size for part in mixed.parts] == [8, 8, 72]
    assert mixed.collective_time_s("all_reduce", 1e8, 88) > 0
    assert mixed.collective_time_s("all_reduce", 1e8, 2, 8) > 0


def test_a_file_names_the_parts(tmp_path: Path) -> None:
    path = tmp_path / "two.toml"
    path.write_text(
        'format = 2\nname = "two"\n[[part]]\nprofile = "a100-80-sxm"\nnodes = 2\n[[part]]\nprofile = "h100-sxm"\nnodes = 2\n'
    )
    mixed = read_any(path)
    assert isinstance(mixed, MixedCluster)
    assert (mixed.name, mixed.parts) == ("two", MIXED.parts)
    with pytest.raises(ProfileError, match=r"two.toml:3: part: got 'two', expected a profile of one type"):
        Cluster.load(path)


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ([("h100-sxm", 2)], "parts: got 1, expected at least two"),
        ([("h100-sxm", 2), ("h1000", 2)], "expected a known profile"),
        ([("h100-sxm", 2), ("a100-80-sxm", 0)], "--nodes: got 0"),
        ([("h100-sxm", 2), ("cpu-gloo-4", 1)], "parts: got 'cpu-gloo-4', expected profiles with a network"),
        ([("h100-sxm", 2), ("a100-80-sxm", 2**20)], "parts: got 8388624, expected at most 1048576 devices"),
        ([("h100-sxm", 2), (CPUS, 2)], r"parts: got \['cpu', 'cuda'\], expected devices of one kind"),
        ([("h100-sxm", 2), 3], "parts: got 3, expected pairs of a profile and a number of nodes"),
    ],
)
def test_parts_that_do_not_fit_are_refused(parts: Any, message: str) -> None:
    with pytest.raises(ProfileError, match=message):
        Cluster.of(parts)


def test_what_wants_one_type_of_device_says_so() -> None:
    with pytest.raises(
        ProfileError, match=r"cluster: got .*, expected one type of device; use one part of it"
    ):
        Cluster.of(MIXED)  # type: ignore[call-overload]


def test_pipeline_ranks_have_devices_of_one_type() -> None:
    assert (MIXED.stage_multiple, MIXED.node_size, MIXED.nodes) == (2, 8, 4)
    assert [MIXED.type_of(rank, 4) for rank in range(4)] == [0, 0, 1, 1]
    with pytest.raises(ProfileError, match="pipeline ranks: got 1, expected a multiple of 2"):
        MIXED.type_of(0, 1)
    uneven = Cluster.of([("a100-80-sxm", 1), ("h100-sxm", 3)])
    assert (uneven.stage_multiple, uneven.times(2).stage_multiple, uneven.times(2).nodes) == (4, 4, 8)
    for only, whole in zip(MIXED.types, WHOLE.values(), strict=True):  # each as large as all of it
        assert (only.levels, only.device) == (whole.levels, whole.device)


@pytest.mark.parametrize(("size", "stride", "first"), [(33, 1, None), (0, 1, None), (2, 1, 31), (2, 1, -1)])
def test_a_group_outside_is_refused(size: int, stride: int, first: int | None) -> None:
    with pytest.raises(ProfileError, match=r"group: got .*, expected a group inside the 32 devices"):
        MIXED.collective_time_s("all_reduce", 1e6, size, stride, first=first)


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(["all_reduce", "all_gather", "all_to_all", "send_recv"]),
    st.integers(1, 32),
    st.integers(1, 31),
    st.integers(0, 2**32),
    st.integers(0, 2**32),
)
def test_more_bytes_are_never_faster_and_parts_never_slower_than_the_whole(
    kind: str, size: int, stride: int, a: int, b: int
) -> None:
    low, high = sorted((a, b))
    try:
        times = [MIXED.collective_time_s(kind, nbytes, size, stride) for nbytes in (low, high)]
    except AutoplanError:
        return
    assert 0 <= times[0] <= times[1] * (1 + 1e-12)
