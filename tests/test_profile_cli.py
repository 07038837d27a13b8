"""``autoplan profile``: one real measurement with two ranks, and the commands that only look."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from autoplan.cli.main import main
from autoplan.hardware import COLLECTIVES, Cluster, SourceKind, local_profile, write_profile

TIMEOUT_S = 300


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, object], Path]:
    """What ``autoplan profile --json`` printed, and the file that it wrote."""
    path = tmp_path_factory.mktemp("profile") / "local-cpu-2.toml"
    command = [sys.executable, "-m", "autoplan", "profile", "--nproc", "2", "--quick", "--json"]
    command += ["--max-bytes", "64KiB", "--out", str(path)]
    environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    environment |= {"AUTOPLAN_CACHE": str(path.parent), "CUDA_VISIBLE_DEVICES": ""}
    seen = subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=TIMEOUT_S, check=False
    )
    assert seen.returncode == 0, seen.stderr
    return json.loads(seen.stdout), path


def test_two_ranks_measure_and_one_prints(measured: tuple[dict[str, object], Path]) -> None:
    printed, path = measured
    assert (printed["name"], printed["world_size"], printed["path"]) == ("local-cpu-2", 2, str(path))
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_the_profile_reads_back_and_prices_what_was_measured(
    measured: tuple[dict[str, object], Path],
) -> None:
    cluster = Cluster.load(measured[1])
    assert (cluster.world_size, cluster.device.kind) == (2, "cpu")
    run = cluster.sources["run"]
    assert run.kind is cluster.sources[cluster.source["overlap"]].kind is SourceKind.MEASURED
    assert run.settings["ranks"] == 2
    assert run.settings["threads_per_rank"] == cluster.device.threads >= 1
    for kind in COLLECTIVES:
        small, large = (cluster.collective_time_s(kind, nbytes, 2) for nbytes in (1024, 65536))
        assert 0 < small <= large
    for dtype in ("float32", "bfloat16", "float64"):
        assert cluster.device.gemm_time_s((1, 300, 300, 300), dtype) > cluster.device.launch_s
        assert cluster.device.attention_time_s(8, 100, 100, 32, dtype, True, backward=True) > 0


def test_the_cached_profile_is_used_without_measuring_again(
    measured: tuple[dict[str, object], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster = Cluster.load(measured[1])
    monkeypatch.setenv("AUTOPLAN_CACHE", str(tmp_path))
    monkeypatch.setattr("autoplan.hardware.launch.spawn", lambda *_, **__: pytest.fail("measured again"))
    write_profile(cluster, tmp_path / "profiles" / "local-cpu-2.toml")
    assert local_profile(2) == cluster


def test_the_table_names_each_collective(
    measured: tuple[dict[str, object], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["profile", "show", str(measured[1])]) == 0
    shown = capsys.readouterr().out
    assert all(kind in shown for kind in (*COLLECTIVES, "gemm float32", "measured"))


def test_list_and_show(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("AUTOPLAN_CACHE", str(tmp_path))
    assert main(["profile", "list"]) == 0
    assert "h100-sxm" in capsys.readouterr().out
    assert main(["profile", "list", "--json"]) == 0
    names = {row["name"] for row in json.loads(capsys.readouterr().out)}
    assert {"h100-sxm", "a100-80-sxm"} <= names
    assert main(["profile", "show", "h100-sxm", "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["profile"]["device"]["memory_bytes_per_s"] == 3.35e12


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["show"], "profile: got None, expected the name of a profile"),
        (["show", "h1000"], "--cluster: got 'h1000', expected a known profile"),
        (["list", "h100-sxm"], "did you mean `show h100-sxm`?"),
        (["--nproc", "0"], "--nproc: got 0, expected 1 to 1024 ranks"),
        (["--max-bytes", "16MB"], "--max-bytes: got '16MB', expected a size from 4KiB to 1TiB"),
        (["--sizes", "64KiB,1"], "--sizes: got '1', expected a size from 256 B to 1TiB"),
        (["--sizes", "1MiB", "--max-bytes", "1MiB"], "--max-bytes: got 1048576, expected no --sizes beside"),
        (["--levels", "node=0"], "--levels: got 'node=0', expected name=size, innermost level first"),
        (["--nproc", "4", "--levels", "node=2"], "--levels: got '2', expected sizes that multiply to 4"),
        (["--name", "../x"], "--name: got '../x', expected letters, digits"),
        (["--out", "."], "--out: got '.', expected a file, not a folder"),
        (["--out", f"{__file__}/x.toml"], "expected a place that can be written, unlike"),
    ],
)
def test_a_wrong_argument_is_one_line(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["profile", *words]) == 2
    assert message in capsys.readouterr().err
