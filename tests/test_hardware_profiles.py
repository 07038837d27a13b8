"""Profiles: what is shipped, how one is found, resized, written, and refused when it is wrong."""

from __future__ import annotations

import copy
import math
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autoplan.errors import AutoplanError, ProfileError
from autoplan.hardware import (
    Cluster,
    SourceKind,
    known_profiles,
    parse_profile,
    profile_from_dict,
    profile_text,
    write_profile,
)
from autoplan.hardware.profile_path import shipped_dir
from autoplan.hardware.tables import CommunicationPoint, CommunicationTable, GemmPoint, GemmTable
from autoplan.hardware.toml_lines import _Reader
from autoplan.hardware.toml_text import toml_text

SMALL = Path(__file__).parent / "golden" / "profile_small.toml"
H100 = tomllib.loads((shipped_dir() / "h100-sxm.toml").read_text())
DATASHEETS = tuple(sorted(path.stem for path in shipped_dir().glob("*.toml") if path.stem != "cpu-gloo-4"))


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("AUTOPLAN_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "profiles"


def edited(path: str, value: Any) -> dict[str, Any]:
    """The H100 profile with the value at ``level.1.latency_s`` replaced."""
    data = copy.deepcopy(H100)
    *parents, last = path.split(".")
    place: Any = data
    for name in parents:
        place = place[int(name)] if isinstance(place, list) else place[name]
    place[last] = value
    return data


# --- what is shipped ---------------------------------------------------------------------------


@pytest.mark.parametrize("path", sorted(shipped_dir().glob("*.toml")), ids=lambda path: path.stem)
def test_every_shipped_profile_loads_under_its_own_name(path: Path) -> None:
    cluster = Cluster.load(path.stem)
    assert cluster.name == path.stem
    assert cluster.collective_time_s("all_reduce", 2**20, cluster.node_size) > 0
    assert cluster.device.gemm_time_s((1, 256, 256, 256), "float32") > 0


@pytest.mark.parametrize("name", DATASHEETS)
def test_nothing_from_a_datasheet_is_called_measured(name: str) -> None:
    cluster = Cluster.load(name)
    assert all(
        source.kind is not SourceKind.MEASURED and source.document for source in cluster.sources.values()
    )


def test_datasheet_figures() -> None:
    h100, a100 = (Cluster.load(name) for name in ("h100-sxm", "a100-80-sxm"))
    assert (h100.node_size, h100.device.peak("bfloat16"), h100.device.memory_bytes_per_s) == (
        8,
        989.4e12,
        3.35e12,
    )
    assert (a100.node_size, a100.device.peak("bfloat16"), a100.device.memory_bytes_per_s) == (
        8,
        312e12,
        2.039e12,
    )
    assert [level.bandwidth_bytes_per_s * level.nics for level in h100.levels] == [450e9, 400e9]
    assert [level.bandwidth_bytes_per_s * level.nics for level in a100.levels] == [300e9, 200e9]


def test_importing_hardware_does_not_import_torch() -> None:
    code = "import sys, autoplan.hardware; print('torch' in sys.modules)"
    seen = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert seen.stdout.strip() == "False"


# --- finding -----------------------------------------------------------------------------------


def test_an_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(ProfileError) as caught:
        Cluster.load("h1000")
    assert str(caught.value).startswith("--cluster: got 'h1000', expected a known profile (a100-40-sxm, ")
    assert "autoplan profile" in caught.value.remedy


def test_the_beginning_of_a_name_is_enough_when_it_tells() -> None:
    assert Cluster.load("h100").name == "h100-sxm"
    with pytest.raises(ProfileError):
        Cluster.load("h")


def test_a_path_and_the_cache_are_found(tmp_path: Path, own_cache: Path) -> None:
    cluster = msgspec.structs.replace(Cluster.load("h100-sxm"), name="mine")
    write_profile(cluster, own_cache / "mine.toml")
    write_profile(cluster, tmp_path / "here.toml")
    assert (
        Cluster.load("mine")
        == Cluster.load(tmp_path / "here.toml")
        == Cluster.load(str(tmp_path / "here.toml"))
    )
    assert {"mine", *DATASHEETS} <= set(known_profiles())
    with pytest.raises(ProfileError, match=r"nowhere\.toml', expected a profile that exists"):
        Cluster.load("nowhere.toml")


@pytest.mark.parametrize(
    ("alias", "name"),
    [
        ("V100-SXM-16GB", "v100-16-sxm-4-opa"),
        ("V100-SXM-32GB", "v100-32-sxm-4-opa"),
        ("A100-SXM", "a100-80-sxm-4x200"),
        ("A100-SXM-40GB", "a100-40-sxm"),
        ("A100-SXM-80GB", "a100-80-sxm"),
        ("H100-SXM-80GB", "h100-sxm"),
        ("h100-sxm-80gb", "h100-sxm"),
        ("H200-SXM-141GB", "h200-sxm"),
        ("B200-SXM-180GB", "b200-sxm"),
        ("B300-SXM-270GB", "b300-sxm"),
        ("GB200-NVL72", "gb200-nvl72"),
        ("GB300-NVL72", "gb300-nvl72"),
        ("MI300X", "mi300x"),
        ("h200", "h200-sxm"),
    ],
)
def test_the_names_that_published_runs_use_are_known(alias: str, name: str) -> None:
    assert Cluster.load(alias).name == name


def test_no_two_profiles_share_a_name() -> None:
    names = [name.lower() for name in known_profiles()]
    aliases = [
        alias.lower()
        for name in known_profiles()
        for alias in Cluster.load(name).aliases
        if alias.lower() != name
    ]
    assert len({*names, *aliases}) == len(names) + len(aliases)


def test_a_profile_that_extends_another_changes_what_it_names(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(
        'extends = "h100-sxm"\nname = "mine"\n[device]\nprice_per_hour = 2.0\n'
        '[device.peak_flops]\nfp8 = 1e15\n[device.source]\nprice_per_hour = "h100"\npeak_flops = "h100"\n'
    )
    mine, base = Cluster.load(path), Cluster.load("h100-sxm")
    assert mine.device.peak_flops == base.device.peak_flops | {"fp8": 1e15}
    assert (mine.device.price_per_hour, mine.price_per_hour) == (2.0, 16.0)
    assert (mine.levels, mine.aliases, mine.description) == (base.levels, (), "")
    path.write_text('extends = "h100-sxm"\nname = "mine"\n[device]\ntdp_w = 650\n')
    with pytest.raises(
        ProfileError, match=r"mine.toml:4: device.tdp_w: got 650, expected its own source; add dev"
    ):
        Cluster.load(path)
    path.write_text('name = "mine"\nextends = "h100-sxm-efa"\n')
    with pytest.raises(ProfileError, match=r"mine.toml:2: extends: got 'h100-sxm-efa', expected a profile"):
        Cluster.load(path)


# --- sizes -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "shape"),
    [
        ({}, [8, 1]),
        ({"nodes": 1}, [8, 1]),
        ({"nodes": 16}, [8, 16]),
        ({"gpus": 128}, [8, 16]),
        ({"gpus": 4}, [4]),
        ({"gpus": 1}, [1]),
        ({"nodes": 2, "gpus": 16}, [8, 2]),
    ],
)
def test_a_cluster_of_the_wanted_size(options: dict[str, int], shape: list[int]) -> None:
    cluster = Cluster.of("h100-sxm", **options)
    assert [level.size for level in cluster.levels] == shape
    assert cluster.world_size == math.prod(shape)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"gpus": 12}, "--gpus: got 12, expected at most 8, or a multiple of 8"),
        ({"nodes": 0}, "--nodes: got 0, expected a whole number of at least 1"),
        ({"gpus": True}, "--gpus: got True"),
        ({"nodes": 2, "gpus": 8}, r"--gpus: got 8, expected 16 \(2 nodes of 8\)"),
    ],
)
def test_a_size_that_cannot_be_is_an_error(options: dict[str, int], message: str) -> None:
    with pytest.raises(ProfileError, match=message):
        Cluster.of("h100-sxm", **options)


@pytest.mark.parametrize(
    ("gpus", "shape", "nics"),
    [(8, [8], 1), (72, [72, 1], 72), (144, [72, 2], 72), (256, [64, 4], 64), (2304, [72, 32], 72), (100, [50, 2], 50)],
)  # fmt: skip
def test_a_rack_may_be_used_in_part(gpus: int, shape: list[int], nics: int) -> None:
    cluster = Cluster.of("GB200-NVL72", gpus=gpus)
    assert ([level.size for level in cluster.levels], cluster.levels[-1].nics) == (shape, nics)


def test_one_machine_does_not_grow_a_network() -> None:
    h100 = Cluster.load("h100-sxm")
    machine = msgspec.structs.replace(h100, levels=h100.levels[:1])
    assert Cluster.of(machine, gpus=2).world_size == 2
    with pytest.raises(
        ProfileError, match="--gpus: got 16, expected at most 8; h100-sxm describes one machine"
    ):
        Cluster.of(machine, nodes=2)


# --- wrong profiles ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("level.1.bandwidth_bytes_per_s", -1, "h100.toml: level[1].bandwidth_bytes_per_s: got -1, expected a number of at least 100000; "),
        ("level.0.latency_s", math.nan, "h100.toml: level[0].latency_s: got nan, expected a number of at least 0; "),
        ("level.0.bandwidth_bytes_per_s", math.inf, "h100.toml: level[0].bandwidth_bytes_per_s: got inf, expected a number of at most 1e+18; "),
        ("level.0.size", 0, "h100.toml: level[0].size: got 0, expected a whole number of at least 1; "),
        ("level.0.size", 2.5, "h100.toml: level[0].size: got 2.5, expected `int`; "),
        ("overlap", 1.5, "h100.toml: overlap: got 1.5, expected a number of at most 1; "),
        ("device.kind", "tpu", "h100.toml: device.kind: got 'tpu', expected "),
        ("device.memory", "80 GB", "h100.toml: device.memory: got '80 GB', expected "),
        ("device.colour", "green", "h100.toml: device.colour: got 'colour', expected a known field; "),
        ("level.0.bandwidth_bytes_per_s", 450, "h100.toml: level[0].bandwidth_bytes_per_s: got 450, expected a number of at least 100000; give it in seconds, bytes/s or FLOP/s, without a prefix (450 GB/s is 450e9)"),
        ("format", 1, "h100.toml: format: got 1, expected 2; measure again "),
        ("level", [], "h100.toml: level: got [], expected "),
        ("device.usable_bytes", 10**12, "h100.toml: device.usable_bytes: got 1000000000000, expected at most memory_bytes "),
        ("device.peak_flops", {"fp4": 1e15}, "h100.toml: device.peak_flops.fp4: got 'fp4', expected one of float64, "),
        ("level.0.source", {"latency_s": "dgx"}, "h100.toml: level[0].source.bandwidth_bytes_per_s: got None, expected the key of its source; "),
        ("source", {"overlap": "rumour"}, "h100.toml: source.overlap: got 'rumour', expected a key of [sources] (h100, "),
        ("level.0.efficiency", {"broadcast": 0.5}, "h100.toml: level[0].efficiency.broadcast: got 'broadcast', expected one of all_reduce, "),
        ("sources.dgx.kind", "felt", "h100.toml: sources.dgx.kind: got 'felt', expected one of measured, "),
    ],
)  # fmt: skip
def test_a_wrong_value_is_named_with_its_file_and_field(path: str, value: Any, message: str) -> None:
    with pytest.raises(ProfileError) as caught:
        profile_from_dict(edited(path, value), "h100.toml")
    assert str(caught.value).startswith(message)


def test_a_missing_field_is_named() -> None:
    data = copy.deepcopy(H100)
    del data["level"][1]["latency_s"]
    with pytest.raises(
        ProfileError, match=r"^h100.toml: level\[1\].latency_s: got None, expected a value; add it"
    ):
        profile_from_dict(data, "h100.toml")


def test_message_sizes_must_rise() -> None:
    table = {"collective": "all_reduce", "group": 8, "source": "dgx", "points": [[1024, 1e9], [1024, 2e9]]}
    with pytest.raises(
        ProfileError, match=r"level\[0\].curves\[0\].points\[1\]: got 1024, expected a size above 1024"
    ):
        profile_from_dict(edited("level.0.curves", [table]), "h100.toml")


def curve(*points: list[Any]) -> list[dict[str, Any]]:
    return [{"collective": "all_reduce", "group": 8, "source": "dgx", "points": list(points)}]


def test_times_along_a_curve_do_not_fall_beyond_noise() -> None:
    steady = curve([1024, 1e8], [4096, 4e8, 0.05], [16384, 12e8])
    assert profile_from_dict(edited("level.0.curves", steady), "x.toml").levels[0].curves
    falling = curve([1024, 1e8], [4096, 8e8], [16384, 32e8])
    with pytest.raises(
        ProfileError, match=r"level\[0\].curves\[0\].points\[1\]: got '8.96 us', expected a time of at"
    ):
        profile_from_dict(edited("level.0.curves", falling), "x.toml")
    marked = curve([1024, 1e8], [4096, 8e8, 0.0, 7, True], [16384, 12e8])
    cluster = profile_from_dict(edited("level.0.curves", marked), "x.toml")
    spread = curve([1024, 1e8, 0.5], [4096, 8e8, 0.3], [16384, 12e8])
    assert profile_from_dict(edited("level.0.curves", spread), "x.toml") != cluster


def test_what_is_measured_can_always_be_written(tmp_path: Path) -> None:
    """Noise that loading would refuse is marked, not lost."""
    h100 = Cluster.load("h100-sxm")
    table = CommunicationTable(
        collective="all_reduce",
        group=8,
        source="dgx",
        points=tuple(CommunicationPoint(1024 << i, rate) for i, rate in enumerate((1e8, 9e9, 1e9, 9e9, 1e8))),
    )
    gemm = GemmTable(
        dtype="bfloat16", source="dgx", points=(GemmPoint(64, 64, 64, 1e9), GemmPoint(4096, 64, 64, 1e13))
    )
    noisy = msgspec.structs.replace(
        h100,
        levels=(msgspec.structs.replace(h100.levels[0], curves=(table,)), h100.levels[1]),
        device=msgspec.structs.replace(h100.device, gemm=(gemm,)),
    )
    write_profile(noisy, tmp_path / "noisy.toml")
    read = Cluster.load(tmp_path / "noisy.toml")
    assert [p.noisy for p in read.levels[0].curves[0].points] == [False, True, True, True, False]
    assert [p.noisy for p in read.device.gemm[0].points] == [False, True]


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("bandwidth_bytes_per_s = 12.5e9", "bandwidth_bytes_per_s = 100", "level[1].bandwidth_bytes_per_s: got 100, "),
        ('collective = "all_reduce"', 'collective = "reduce"', "level[0].curves[0].collective: got 'reduce', expected one of all_reduce, "),
        ('kind = "calibrated"', 'kind = "calibratd"', "sources.fit.kind: got 'calibratd', expected one of measured, "),
        ("usable_bytes = 16", "usable_byte = 16", "device.usable_byte: got 'usable_byte', expected a known field"),
        ("usable_bytes = 16_106_127_360", "usable_bytes = 99_000_000_000", "device.usable_bytes: got 99000000000, expected at most memory_bytes"),
        ("[1048576, 9e9, 0.02, 7]", "[1048576, 9000e9, 0.02, 7]", "level[0].curves[0].points[1]: got '0.117 us', expected a time"),
        ("[4096, 4096, 4096, 36e12, 0.31, 7, true]", "[4096, 4096, 4096]", "device.gemm[0].points[1]: got [4096, 4096, 4096], expected "),
        ('dtype = "bfloat16"', 'dtype = "float16"', "device.gemm[0].dtype: got 'float16', expected one of device.peak_flops"),
        ('latency_s = "guess" }', 'latency_s = "rumour" }', "level[1].source.latency_s: got 'rumour', expected a key of [sources]"),
        ('level = "pcie"', 'level = "nvlink"', "slowdown[0].level: got 'nvlink', expected the name of a level (pcie, network)"),
        ('noisy = ["launch_s"]', 'noisy = ["lunch"]', "device.noisy: got 'lunch', expected names of figures with a source"),
        ("devices = 4", "devices = 9", "devices: got 9, expected 4 (2 x 2)"),
        ('date = "2026-01-31"', 'date = "yesterday"', "sources.list.date: got 'yesterday', expected an ISO date"),
    ],
)  # fmt: skip
def test_an_error_names_the_line(old: str, new: str, message: str) -> None:
    text = SMALL.read_text()
    assert old in text
    wrong = text.replace(old, new, 1)
    with pytest.raises(ProfileError) as caught:
        parse_profile(wrong, "small.toml")
    where, line, said = str(caught.value).split(":", 2)
    assert (where, said.strip()[: len(message)]) == ("small.toml", message)
    assert int(line) == wrong[: wrong.index(new) + len(new)].count("\n") + 1


@pytest.mark.parametrize(
    ("kind", "field", "message"),
    [
        ("measured", "date", "sources.dgx.date: got '', expected the ISO date of the measurement"),
        ("calibrated", "rows", "sources.dgx.rows: got [], expected the rows that were fitted"),
    ],
)
def test_a_source_says_what_its_kind_owes(kind: str, field: str, message: str) -> None:
    with pytest.raises(ProfileError) as caught:
        profile_from_dict(edited("sources.dgx.kind", kind), "h100.toml")
    assert str(caught.value).startswith(f"h100.toml: {message}")


@settings(max_examples=150)
@given(st.data())
def test_lines_are_those_of_the_keys(data: st.DataObject) -> None:
    """Whatever the TOML, the line that is told for a plain value holds it."""
    tables = data.draw(
        st.dictionaries(
            st.text("ab.[ ", min_size=1, max_size=3),
            st.lists(
                st.dictionaries(st.text("xy", min_size=1, max_size=2), st.integers(0, 99), max_size=2),
                max_size=3,
            )
            | st.lists(st.lists(st.integers(0, 9), max_size=2), max_size=3)
            | st.text("a#]}\"'\\n\n", max_size=6),
            max_size=3,
        )
    )
    lines = _Reader(toml_text(tables)).lines
    text = toml_text(tables).splitlines()
    for path, line in lines.items():
        value: Any = tables
        for part in path:
            value = value[part]
        if isinstance(value, int):
            assert str(value) in text[line - 1]


def test_malformed_toml_names_the_file_and_the_place() -> None:
    with pytest.raises(ProfileError, match=r"^bad.toml: got '.*line 2.*', expected well-formed TOML"):
        parse_profile('name = "x"\n[[[', "bad.toml")


def test_an_unreadable_file_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "bytes.toml"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ProfileError, match="a readable TOML file in UTF-8"):
        Cluster.load(path)


scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=5),
    st.just([]),
    st.just({}),
    st.just([[1]]),
)
PATHS = [
    *H100,
    *(f"device.{key}" for key in H100["device"]),
    *(f"level.{i}.{key}" for i in (0, 1) for key in H100["level"][i]),
    *(f"device.{key}" for key in ("gemm", "memory", "attention")),
    "level.0.curves",
    "sources.dgx.kind",
    "device.peak_flops.bfloat16",
]


@settings(max_examples=300)
@given(st.sampled_from(PATHS), scalars)
def test_no_value_makes_anything_but_our_own_error(path: str, value: Any) -> None:
    try:
        cluster = profile_from_dict(edited(path, value), "x.toml")
    except AutoplanError:
        return
    assert cluster.collective_time_s("all_reduce", 2**20, min(8, cluster.world_size)) >= 0
    assert cluster.device.memory_time_s(2**20) > 0


@settings(max_examples=150)
@given(
    st.text(max_size=60) | st.from_regex(r"(\[+[a-z.]*\]*\n|[a-z]+ = [-+0-9.e\[{\"]*\n){0,4}", fullmatch=True)
)
def test_no_text_makes_anything_but_our_own_error(text: str) -> None:
    with pytest.raises(AutoplanError):
        parse_profile(text, "x.toml")


@pytest.mark.parametrize(
    "text", ["a = " + "[" * 5000, "x = 1" + "0" * 5000, "format = 1979-05-27", "overlap = 1e400"]
)
def test_nor_does_an_extreme_text(text: str) -> None:
    with pytest.raises(AutoplanError):
        parse_profile(text, "x.toml")


# --- writing -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", DATASHEETS)
def test_what_is_written_reads_back_equal(name: str) -> None:
    cluster = Cluster.load(name)
    assert parse_profile(profile_text(cluster), "x.toml") == cluster


def test_a_file_is_replaced_whole_and_nothing_is_left_over(tmp_path: Path) -> None:
    path = tmp_path / "new" / "p.toml"
    for name in ("one", "two"):
        write_profile(msgspec.structs.replace(Cluster.load("h100-sxm"), name=name), path)
        assert Cluster.load(path).name == name
    assert [file.name for file in path.parent.iterdir()] == ["p.toml"]
    with pytest.raises(ProfileError, match="--out"):
        write_profile(Cluster.load(path), path / "below-a-file.toml")


keys = st.text(st.characters(codec="utf-8"), min_size=1, max_size=6)
plain = st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False, allow_infinity=False)
values = st.recursive(
    plain | st.text(st.characters(codec="utf-8"), max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keys, inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=200)
@given(st.dictionaries(keys, values, max_size=4))
def test_the_writer_writes_what_the_standard_library_reads(data: dict[str, Any]) -> None:
    assert tomllib.loads(toml_text(data)) == data
