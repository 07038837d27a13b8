"""Import of nccl-tests output and of PyTorch traces into profiles."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from msgspec.structs import replace
from nccl_output import GPU, TraceWriter, nccl_json, nccl_text, ranks_of

from autoplan.cli.main import main
from autoplan.errors import AutoplanError, ProfileError
from autoplan.hardware import Cluster, SourceKind, write_profile
from autoplan.hardware.import_curve import with_nccl_run
from autoplan.hardware.import_trace import trace_figures, with_trace
from autoplan.hardware.kineto import Gemm, read_kineto
from autoplan.hardware.nccl_tests import read_nccl_tests

SIZES = tuple(1 << power for power in range(10, 29, 2))
H100 = Cluster.of("h100-sxm", nodes=2)
files = settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def linear(latency_s: float, bytes_per_s: float) -> Any:
    return lambda nbytes: latency_s + nbytes / bytes_per_s


def written(tmp_path: Path, text: str, name: str = "out.txt") -> Path:
    path = tmp_path / name
    path.write_text(text)
    return path


# --- nccl-tests --------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["all_reduce", "all_gather", "reduce_scatter", "all_to_all"])
@pytest.mark.parametrize("form", ["text", "json"])
def test_a_run_on_one_node_comes_back_as_times_of_the_inner_level(
    kind: str, form: str, tmp_path: Path
) -> None:
    time_s = linear(21e-6, 200e9)
    ranks = ranks_of(1, 8)
    if form == "text":
        path = written(tmp_path, nccl_text(kind, SIZES, time_s, ranks))
    else:
        path = written(tmp_path, json.dumps(nccl_json(kind, SIZES, time_s, ranks)), "out.json")
    run = read_nccl_tests(path)
    assert (run.collective, run.ranks, run.groups, run.ranks_per_host, run.device) == (kind, 8, 1, 8, GPU)
    assert run.versions["nccl"] == "2.27.3"
    cluster, table = with_nccl_run(H100, "nvlink", run, path)
    assert (table.collective, table.group, table.at_once) == (kind, 8, "all")
    for nbytes in SIZES:
        assert cluster.collective_time_s(kind, nbytes, 8) == pytest.approx(time_s(nbytes), rel=0.01)
    source = cluster.sources[table.source]
    assert source.kind is SourceKind.MEASURED
    assert "nccl-tests" in source.tool
    assert source.date == ("2026-01-31" if form == "json" else source.date)


@pytest.mark.parametrize("kind", ["all_reduce", "all_gather", "reduce_scatter"])
def test_a_run_over_whole_nodes_becomes_the_outer_level_of_all_groups_at_once(
    kind: str, tmp_path: Path
) -> None:
    time_s = linear(60e-6, 150e9)
    path = written(tmp_path, nccl_text(kind, SIZES, time_s, ranks_of(2, 8)))
    cluster, table = with_nccl_run(H100, "infiniband", read_nccl_tests(path), path)
    # each of 8 rings sends 15/16 of its eighth over every link, as a ring of 2 does with 15/8 of that message
    assert (table.group, table.at_once, table.points[0].nbytes) == (2, "all", SIZES[0] // 8 * 15 // 8)
    for nbytes in SIZES:
        # In between, the level inside may take longer by its formula than the whole did.
        close = 0.02 if nbytes < 2**15 or nbytes > 2**24 else 0.25
        assert cluster.collective_time_s(kind, nbytes, 16) == pytest.approx(time_s(nbytes), rel=close)


def test_split_groups_show_shared_nics_and_one_group_alone_does_not(tmp_path: Path) -> None:
    together, alone = linear(30e-6, 20e9), linear(20e-6, 45e9)
    every = written(tmp_path, nccl_text("all_reduce", SIZES, together, ranks_of(2, 8, groups=8)), "all.txt")
    run = read_nccl_tests(every)
    assert (run.ranks, run.groups, run.ranks_per_host) == (2, 8, 1)
    cluster, table = with_nccl_run(H100, "infiniband", run, every)
    assert (table.group, table.at_once) == (2, "all")
    one = written(tmp_path, nccl_text("all_reduce", SIZES, alone, ranks_of(2, 1)), "one.txt")
    cluster, table = with_nccl_run(cluster, "infiniband", read_nccl_tests(one), one)
    assert (table.group, table.at_once) == (2, "one")
    big = SIZES[-1]
    assert cluster.collective_time_s("all_reduce", big, 2, 8) == pytest.approx(together(big), rel=0.01)
    assert cluster.collective_time_s("all_reduce", big, 2, 8, alone=True) == pytest.approx(
        alone(big), rel=0.01
    )


def test_one_group_alone_is_slowed_by_sharing_where_nothing_else_was_measured(tmp_path: Path) -> None:
    path = written(tmp_path, nccl_text("all_gather", SIZES, linear(20e-6, 45e9), ranks_of(2, 1)))
    four = replace(H100, levels=(H100.levels[0], replace(H100.levels[1], nics=4)))
    cluster, _ = with_nccl_run(four, "infiniband", read_nccl_tests(path), path)
    big = SIZES[-1]
    shared = cluster.collective_time_s("all_gather", big, 2, 8)
    assert shared == pytest.approx(
        2 * cluster.collective_time_s("all_gather", big, 2, 8, alone=True), rel=0.01
    )


def test_send_and_receive_across_nodes(tmp_path: Path) -> None:
    time_s = linear(15e-6, 40e9)
    path = written(tmp_path, nccl_text("send_recv", SIZES, time_s, ranks_of(2, 1)))
    cluster, table = with_nccl_run(H100, "infiniband", read_nccl_tests(path), path)
    assert table.group == 2
    assert cluster.p2p_time_s(SIZES[-1], 1, 16) == pytest.approx(time_s(SIZES[-1]), rel=0.01)


def test_rows_of_one_size_are_samples(tmp_path: Path) -> None:
    times = iter([100e-6, 140e-6, 200e-6])
    path = written(tmp_path, nccl_text("all_reduce", [1 << 20] * 3, lambda _: next(times), ranks_of(1, 8)))
    (sample,) = read_nccl_tests(path).samples
    assert (sample.time_s, sample.rows) == (pytest.approx(140e-6), 3)
    _, table = with_nccl_run(H100, "nvlink", read_nccl_tests(path), path)
    assert table.points[0].noisy


def test_older_output_needs_to_be_told_what_it_is(tmp_path: Path) -> None:
    text = nccl_text("all_gather", SIZES, linear(1e-5, 1e11), ranks_of(1, 4), headers=False, stamps=True)
    path = written(tmp_path, text.replace(" Group  0", ""))
    with pytest.raises(ProfileError, match="say which with --collective"):
        read_nccl_tests(path)
    assert read_nccl_tests(path, collective="all_gather").ranks == 4
    with pytest.raises(ProfileError, match=r"busbw of .* correct --collective or --ranks"):
        read_nccl_tests(path, collective="all_reduce")
    bare = written(tmp_path, "\n".join(line for line in text.splitlines() if "Rank" not in line), "bare.txt")
    with pytest.raises(ProfileError, match="give their number with --ranks"):
        read_nccl_tests(bare, collective="all_gather")
    assert read_nccl_tests(bare, collective="all_gather", ranks=4).ranks == 4


@pytest.mark.parametrize(
    ("level", "hosts", "per_host", "groups", "message"),
    [
        ("ethernet", 1, 8, 1, r"--level: got 'ethernet', expected a level of h100-sxm \(nvlink, infiniband\)"),
        ("nvlink", 2, 8, 1, "at most 8 ranks, as 'nvlink' joins"),
        ("infiniband", 1, 8, 1, "groups of more than one unit of 8 devices"),
        ("infiniband", 2, 4, 1, "ranks: got 4, expected 1 or all 8 devices of a unit at work"),
    ],
)  # fmt: skip
def test_a_run_that_does_not_fit_the_level_is_refused(
    level: str, hosts: int, per_host: int, groups: int, message: str, tmp_path: Path
) -> None:
    path = written(
        tmp_path, nccl_text("all_reduce", SIZES, linear(1e-5, 1e11), ranks_of(hosts, per_host, groups))
    )
    with pytest.raises(ProfileError, match=message):
        with_nccl_run(H100, level, read_nccl_tests(path), path)


def test_wrong_results_are_no_measurement(tmp_path: Path) -> None:
    path = written(tmp_path, nccl_text("all_reduce", SIZES, linear(1e-5, 1e11), ranks_of(1, 8), wrong="3"))
    with pytest.raises(ProfileError, match=r"out.txt:\d+: got '3', expected 0 wrong values"):
        read_nccl_tests(path)


TEXT = nccl_text("all_reduce", SIZES, linear(1e-5, 1e11), ranks_of(1, 8))


@files
@given(data=st.data())
def test_no_text_makes_anything_but_our_own_error(data: st.DataObject, tmp_path: Path) -> None:
    lines = TEXT.splitlines()
    for _ in range(data.draw(st.integers(1, 3))):
        index = data.draw(st.integers(0, len(lines) - 1))
        words = lines[index].split(" ")
        place = data.draw(st.integers(0, len(words) - 1))
        words[place] = data.draw(st.sampled_from(["", "-1", "nan", "1e999", "9" * 400, "x", "#", "0", "²"]))
        lines[index] = " ".join(words)
    _survives(written(tmp_path, "\n".join(lines)))


@files
@given(text=st.text(max_size=80) | st.from_regex(r"(#  size.*busbw\n)?(\d+ ){0,12}", fullmatch=True))
def test_nor_does_any_other_text(text: str, tmp_path: Path) -> None:
    path = tmp_path / "any.txt"
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    _survives(path)


JSON = nccl_json("all_reduce", SIZES[:2], linear(1e-5, 1e11), ranks_of(1, 2))
scalars = st.sampled_from([None, True, -1, 0, 10**400, 1e308, "nan", "", [], {}, [1], {"a": 1}])


@files
@given(data=st.data())
def test_nor_does_any_json(data: st.DataObject, tmp_path: Path) -> None:
    _survives(written(tmp_path, json.dumps(_spoilt(JSON, data)), "any.json"))


def _survives(path: Path) -> None:
    try:
        run = read_nccl_tests(path)
        cluster, _ = with_nccl_run(H100, "nvlink", run, path)
        write_profile(cluster, path.parent / "after.toml")
    except AutoplanError:
        return
    assert cluster.collective_time_s(run.collective, 2**20, 8) > 0


def _spoilt(value: Any, data: st.DataObject) -> Any:
    """A copy with one value, anywhere inside, replaced or removed."""
    copied = json.loads(json.dumps(value))
    place = copied
    while True:
        keys = list(place) if isinstance(place, dict) else list(range(len(place)))
        if not keys:
            return copied
        key = data.draw(st.sampled_from(keys))
        if isinstance(place[key], dict | list) and place[key] and data.draw(st.booleans()):
            place = place[key]
            continue
        if isinstance(place, dict) and data.draw(st.booleans()):
            del place[key]
        else:
            place[key] = data.draw(scalars)
        return copied


# --- Kineto ------------------------------------------------------------------------------------


def step(writer: TraceWriter, at: float, *, slowed: float = 1.0) -> None:
    """A product of 80 us and an attention of 40 us, alone or slowed beside an all-gather."""
    writer.op("aten::mm", [[4096, 1024], [1024, 2048]], [("gemm_bf16_128x128", at, 80 * slowed)])
    writer.op(
        "aten::_flash_attention_forward", [[2, 512, 16, 64]], [("flash_fwd", at + 100 * slowed, 40 * slowed)]
    )
    if slowed > 1:
        writer.nccl("ncclDevKernel_AllGather_RING_LL(ncclDevKernelArgs)", at, 200)


def trace(tmp_path: Path) -> Path:
    writer = TraceWriter()
    for index in range(4):
        step(writer, 1000.0 * index)
    for index in range(4):
        step(writer, 10_000 + 1000.0 * index, slowed=1.25)
    writer.nccl("ncclDevKernel_AllGather_RING_LL(ncclDevKernelArgs)", 50_000, 160)
    writer.op(
        "aten::addmm", [[64], [128, 256], [256, 64], [], []], [("splitk", 60_000, 4), ("reduce", 60_005, 2)]
    )
    writer.op("aten::bmm", [[16, 128, 64], [16, 64, 128]], [("bmm", 60_100, 10)], dtype="float")
    writer.op("aten::addmm", [[64], [32, 256], [256, 64]], [("inner", 60_200, 5)], wrapper="aten::linear")
    writer.op("aten::mm", [[8, 8], [9, 8]], [("odd", 60_300, 5)])
    return written(tmp_path, writer.text(), "trace.json")


def test_products_and_overlaps_of_a_trace(tmp_path: Path) -> None:
    figures = trace_figures(read_kineto(trace(tmp_path)), "nvlink")
    seconds = {
        gemm: (round(time_s * 1e6, 3), samples) for gemm, (time_s, _, samples) in figures.gemms.items()
    }
    assert seconds == {
        Gemm("bfloat16", 1, 4096, 2048, 1024): (80, 4),
        Gemm("bfloat16", 1, 128, 64, 256): (6, 1),
        Gemm("float32", 16, 128, 128, 64): (10, 1),
        Gemm("bfloat16", 1, 32, 64, 256): (5, 1),
    }
    slowed = {(s.communication, s.compute): (s.compute_factor, s.samples) for s in figures.slowdowns}
    assert slowed == {("all_gather", "gemm"): (1.25, 4), ("all_gather", "attention"): (1.25, 4)}
    assert all(s.communication_factor == pytest.approx(1.364, abs=0.01) for s in figures.slowdowns)


def test_a_trace_becomes_points_and_slowdowns_of_a_profile(tmp_path: Path) -> None:
    path = trace(tmp_path)
    cluster = with_trace(H100, trace_figures(read_kineto(path), "nvlink"), path)
    device = cluster.device
    assert device.gemm_time_s((1, 4096, 2048, 1024), "bfloat16") == pytest.approx(
        80e-6 + device.launch_s, rel=1e-3
    )
    assert device.gemm_time_s((16, 128, 128, 64), "float32") == pytest.approx(
        10e-6 + device.launch_s, rel=1e-3
    )
    assert cluster.slowdown_of("all_gather", "gemm", "nvlink").compute_factor == 1.25
    assert cluster.slowdown_of("all_reduce", "gemm", "infiniband").compute_factor == 1.02
    # A shape far from all points keeps the prior's shape.
    assert device.gemm_time_s((1, 8, 8, 8), "bfloat16") < 1e-4
    again = with_trace(cluster, trace_figures(read_kineto(path), "nvlink"), path)
    assert sum(len(table.points) for table in again.device.gemm) == 3
    assert len([s for s in again.slowdown if s.communication == "all_gather"]) == 2


def test_a_compressed_trace_is_read(tmp_path: Path) -> None:
    path = tmp_path / "trace.json.gz"
    path.write_bytes(gzip.compress(trace(tmp_path).read_bytes()))
    assert len(read_kineto(path).products) == 11


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "expected a trace as torch.profiler exports it"),
        ("[]", "expected a trace as torch.profiler exports it"),
        ('{"traceEvents": []}', "expected kernels of a GPU"),
        ('{"traceEvents": [{"ph": "X", "cat": "kernel", "ts": "now"}]}', "expected a trace as"),
        (
            '{"traceEvents": [{"ph": "X", "cat": "kernel", "ts": 1, "dur": -1}]}',
            r"traceEvents\[0\]: got \[1.0, -1.0\], expected a time",
        ),
    ],
)
def test_what_is_no_trace_is_named(text: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(ProfileError, match=message):
        read_kineto(written(tmp_path, text))


def test_a_trace_without_shapes_says_how_to_record_them(tmp_path: Path) -> None:
    writer = TraceWriter()
    writer.op("aten::mm", [[8, 8], [8, 8]], [("gemm", 0, 5)])
    text = writer.text().replace("Input Dims", "Other")
    with pytest.raises(ProfileError, match="record_shapes=True"):
        read_kineto(written(tmp_path, text))


SMALL = TraceWriter()
step(SMALL, 0.0)
step(SMALL, 1000.0, slowed=1.5)
SMALL.nccl("ncclKernel_AllReduce", 5000, 10)


@files
@given(data=st.data())
def test_no_trace_makes_anything_but_our_own_error(data: st.DataObject, tmp_path: Path) -> None:
    path = written(tmp_path, json.dumps(_spoilt(json.loads(SMALL.text()), data)), "any.json")
    try:
        figures = trace_figures(read_kineto(path))
        cluster = with_trace(H100, figures, path)
        write_profile(cluster, tmp_path / "after.toml")
    except AutoplanError:
        return
    assert cluster.device.gemm_time_s((1, 64, 64, 64), "bfloat16") > 0


# --- the command -------------------------------------------------------------------------------


def test_the_command_changes_a_copy_of_a_shipped_profile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("AUTOPLAN_CACHE", str(tmp_path / "cache"))
    out = written(tmp_path, nccl_text("all_reduce", SIZES, linear(2e-5, 2e11), ranks_of(1, 8)))
    words = ["profile", "import", "nccl-tests", str(out), "--into", "h100-sxm", "--level", "nvlink"]
    assert main(words) == 0
    told = capsys.readouterr().out
    assert "all_reduce of 8 over nvlink, all groups at once: 10 sizes, 345 GB/s at best" in told
    path = tmp_path / "cache" / "profiles" / "h100-sxm.toml"
    assert Cluster.load("h100-sxm").levels[0].curves == Cluster.load(path).levels[0].curves != ()
    assert main(["profile", "import", "kineto", str(trace(tmp_path)), "--into", str(path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["imported"][0] == "4 matrix products (bfloat16, float32)"
    assert {table.source for table in Cluster.load(path).device.gemm} == {"kineto"}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nccl-tests"], "expected one of nccl-tests, kineto, and a file"),
        (["mpi", "x"], "import: got 'mpi', expected one of nccl-tests, kineto"),
        (["nccl-tests", "x"], "--into: got None, expected a profile"),
        (["nccl-tests", "nowhere.txt", "--into", "h100"], "import: got 'nowhere.txt', expected a file"),
        (["nccl-tests", __file__, "--into", "h100"], "--level: got None, expected a level of h100-sxm"),
        (["nccl-tests", __file__, "--into", "h100", "--level", "nvlink"], "expected the name of a test"),
        (["nccl-tests", __file__, "--into", "h100", "--ranks", "0"], "--ranks: got 0, expected a whole number"),
        (["kineto", __file__, "--into", "h100"], "expected a trace as torch.profiler exports it"),
        (["kineto", __file__, "--into", "h100", "--level", "x"], "--level: got 'x', expected a level of"),
    ],
)  # fmt: skip
def test_a_wrong_argument_is_one_line(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["profile", "import", *words]) == 2
    assert message in capsys.readouterr().err


def test_the_example_of_the_readme_is_output_in_that_format() -> None:
    path = Path(__file__).parent / "golden" / "all_reduce_perf.txt"
    sizes = [1 << power for power in range(10, 31, 4)]
    assert path.read_text() == nccl_text("all_reduce", sizes, linear(24e-6, 262e9), ranks_of(1, 8))
