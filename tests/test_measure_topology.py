"""Levels from what ranks know of where they run: launchers, host names, NVLink as a pretended NVML tells it."""

from __future__ import annotations

import ctypes
import sys
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autoplan.errors import AutoplanError, InputError
from autoplan.hardware.launch import under_torchrun
from autoplan.hardware.nvml import GpuFacts, read_gpu
from autoplan.hardware.topology import (
    RankFacts,
    TopologyLevel,
    launcher_node,
    nested_levels,
    parse_levels,
)


def shape(ranks: list[RankFacts], levels: str = "") -> list[tuple[str, int]]:
    topology = nested_levels(ranks, parse_levels(levels) if levels else ())
    assert topology.world == len(ranks)
    return [(level.name, level.size) for level in topology.levels]


def cpus(nodes: int, each: int, **known: Any) -> list[RankFacts]:
    return [RankFacts(host=f"host{node}", **known) for node in range(nodes) for _ in range(each)]


def gpus(nodes: int, facts: list[GpuFacts | None]) -> list[RankFacts]:
    return [RankFacts(f"host{node}", node, len(facts), "cuda", gpu) for node in range(nodes) for gpu in facts]


SWITCHED = GpuFacts(bus_id="0", nvlinks=18, switched=True)


@pytest.mark.parametrize(
    ("ranks", "levels"),
    [
        (cpus(1, 1), [("node", 1)]),
        (cpus(1, 4), [("node", 4)]),
        (cpus(2, 4), [("node", 4), ("network", 2)]),
        (cpus(4, 1), [("node", 1), ("network", 4)]),
        # the launcher's word counts before the names of hosts
        (
            [RankFacts("same", node, 2) for node in (0, 0, 1, 1)],
            [("node", 2), ("network", 2)],
        ),
        ([RankFacts(f"container{i}", 0, 4) for i in range(4)], [("node", 4)]),
        (cpus(2, 2, node_size=4), [("node", 4)]),
        (gpus(2, [SWITCHED] * 8), [("nvlink", 8), ("network", 2)]),
        (gpus(2, [None] * 8), [("node", 8), ("network", 2)]),
        (gpus(1, [GpuFacts(bus_id=str(i)) for i in range(4)]), [("node", 4)]),
        # bridges between pairs of cards
        (
            gpus(2, [GpuFacts(str(i), 4, (str(i ^ 1),)) for i in range(4)]),
            [("nvlink", 2), ("pcie", 2), ("network", 2)],
        ),
        # a cube mesh: not all are joined directly, but all are reached
        (gpus(1, [GpuFacts(str(i), 6, (str(i ^ 1), str(i ^ 2), str(i ^ 4))) for i in range(8)]), [("nvlink", 8)]),
        # 18 machines of 4 GPUs in one NVLink rack, two racks
        (
            [
                RankFacts(f"host{i // 4}", i // 4, 4, "cuda", GpuFacts("0", 18, (), True, f"rack{i // 72}:1"))
                for i in range(144)
            ],
            [("nvlink", 72), ("network", 2)],
        ),
    ],
)  # fmt: skip
def test_levels(ranks: list[RankFacts], levels: list[tuple[str, int]]) -> None:
    assert shape(ranks) == levels


def test_levels_by_hand_replace_what_is_found() -> None:
    ranks = gpus(2, [SWITCHED] * 8)
    assert shape(ranks, "pair=2,node=4,rail=2") == [("pair", 2), ("node", 4), ("rail", 2)]
    assert nested_levels(ranks, parse_levels("pair=2,node=8")).node_size == 8
    with pytest.raises(InputError, match=r"--levels: got '2 x 4', expected sizes that multiply to 16"):
        shape(ranks, "pair=2,node=4")


def test_units_of_a_level() -> None:
    topology = nested_levels(gpus(2, [GpuFacts(str(i), 4, (str(i ^ 1),)) for i in range(4)]))
    assert [topology.unit(index) for index in range(3)] == [1, 2, 4]


def test_ranks_that_make_no_levels_are_refused_unless_said_by_hand() -> None:
    for hosts in ("abab", "aab"):
        ranks = [RankFacts(host) for host in hosts]
        with pytest.raises(InputError, match=r"--levels: got '.*', expected ranks numbered node by node"):
            shape(ranks)
        assert shape(ranks, f"all={len(hosts)}") == [("all", len(hosts))]


@given(st.text(max_size=30) | st.from_regex(r"([a-z]{0,3}=?-?\d{0,3},?){0,5}", fullmatch=True))
def test_no_levels_make_anything_but_our_own_error(text: str) -> None:
    try:
        levels = parse_levels(text)
    except AutoplanError:
        return
    assert levels
    assert all(isinstance(level, TopologyLevel) and level.size >= 1 for level in levels)


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, (None, 0)),
        ({"GROUP_RANK": "1", "LOCAL_WORLD_SIZE": "8", "NODE_RANK": "7"}, (1, 8)),
        ({"NODE_RANK": "2"}, (2, 0)),
        ({"SLURM_NODEID": "3", "SLURM_NTASKS_PER_NODE": "4"}, (3, 4)),
        ({"GROUP_RANK": "one", "LOCAL_WORLD_SIZE": "-1"}, (None, 0)),
    ],
)
def test_what_launchers_say(environment: dict[str, str], expected: tuple[int | None, int]) -> None:
    assert launcher_node(environment) == expected


def test_srun_numbers_its_tasks_under_other_names() -> None:
    srun = {"SLURM_PROCID": "3", "SLURM_NTASKS": "8", "SLURM_LOCALID": "1"}
    assert not under_torchrun(dict(srun)), "a shell inside an allocation has these too"
    launched = srun | {"MASTER_ADDR": "a", "MASTER_PORT": "1"}
    assert under_torchrun(launched)
    assert (launched["RANK"], launched["WORLD_SIZE"], launched["LOCAL_RANK"]) == ("3", "8", "1")


# --- NVML --------------------------------------------------------------------------------------


class _Fabric(ctypes.Structure):
    _fields_ = (
        ("clusterUuid", ctypes.c_uint8 * 16),
        ("status", ctypes.c_uint),
        ("cliqueId", ctypes.c_uint32),
        ("state", ctypes.c_uint),
    )


class _NvmlError(Exception):
    pass


def pretended(
    links: dict[int, str | None], fabric: bytes | None = None, broken: tuple[str, ...] = ()
) -> SimpleNamespace:
    """A pynvml with one GPU whose links lead to those bus ids (None: to a switch)."""

    def refuse(*_: Any) -> Any:
        raise _NvmlError("Not Supported")

    def state(_: Any, link: int) -> int:
        if link >= 6:
            raise _NvmlError("Invalid Argument")
        return int(link in links)

    def fabric_info(_: Any, pointer: Any) -> None:
        if fabric is None:
            raise _NvmlError("Function Not Found")
        info = pointer._obj
        info.clusterUuid[:] = list(fabric)
        info.cliqueId, info.state = 7, 3

    functions = {
        "nvmlInit": lambda: None,
        "nvmlShutdown": lambda: None,
        "nvmlDeviceGetHandleByUUID": lambda uuid: uuid,
        "nvmlDeviceGetNvLinkState": state,
        "nvmlDeviceGetNvLinkRemoteDeviceType": lambda _, link: 0 if links[link] else 2,
        "nvmlDeviceGetNvLinkRemotePciInfo": lambda _, link: SimpleNamespace(busId=links[link]),
        "nvmlDeviceGetPciInfo": lambda _: SimpleNamespace(busId=b"00000000:0B:00.0\0"),
        "nvmlDeviceGetMaxPcieLinkGeneration": lambda _: 5,
        "nvmlDeviceGetMaxPcieLinkWidth": lambda _: 16,
        "nvmlDeviceGetPowerManagementLimit": lambda _: 700_000,
        "nvmlDeviceGetGpuFabricInfo": fabric_info,
    }
    return SimpleNamespace(
        NVMLError=_NvmlError,
        NVML_NVLINK_MAX_LINKS=18,
        NVML_NVLINK_DEVICE_TYPE_GPU=0,
        NVML_NVLINK_DEVICE_TYPE_SWITCH=2,
        c_nvmlGpuFabricInfo_t=_Fabric,
        **{name: refuse if name in broken else function for name, function in functions.items()},
    )


def test_a_gpu_behind_a_switch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", pretended(dict.fromkeys(range(6))))
    facts = read_gpu("GPU-1")
    assert facts == GpuFacts("00000000:0b:00.0", 6, (), True, "", 16 * 3.938e9, 700.0)


def test_gpus_on_bridges_name_their_peers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", pretended({0: "00000000:0C:00.0", 3: "00000000:0C:00.0"}))
    facts = read_gpu("GPU-1")
    assert facts is not None
    assert (facts.nvlinks, facts.peers, facts.switched) == (2, ("00000000:0c:00.0",), False)


def test_a_rack_has_a_fabric(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", pretended({0: None}, fabric=bytes(range(16))))
    facts = read_gpu("GPU-1")
    assert facts is not None and facts.fabric == bytes(range(16)).hex() + ":7"
    monkeypatch.setitem(sys.modules, "pynvml", pretended({0: None}, fabric=bytes(16)))
    facts = read_gpu("GPU-1")
    assert facts is not None and facts.fabric == "", "a fabric without a name is none"


def test_what_a_device_does_not_say_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    silent = (
        "nvmlDeviceGetMaxPcieLinkWidth",
        "nvmlDeviceGetPowerManagementLimit",
        "nvmlDeviceGetNvLinkState",
    )
    monkeypatch.setitem(sys.modules, "pynvml", pretended({}, broken=silent))
    assert read_gpu("GPU-1") == GpuFacts("00000000:0b:00.0")


@pytest.mark.parametrize("broken", ["nvmlInit", "nvmlDeviceGetHandleByUUID"])
def test_a_library_that_fails_tells_nothing(monkeypatch: pytest.MonkeyPatch, broken: str) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", pretended({}, broken=(broken,)))
    assert read_gpu("GPU-1") is None


def test_without_the_library_nothing_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert read_gpu("GPU-1") is None
