"""The command line: what each command prints and returns, and that its options stay as they are."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from plans import hand_made_plan
from results import hand_made_candidate, hand_made_result, infeasible_result

import autoplan
from autoplan.cli import search as search_command
from autoplan.cli.main import build_parser, main
from autoplan.plan import plan_json, plan_schema, read_plan, write_plan
from autoplan.search.result import SearchResult

SEARCH = ["search", "llama3-8b", "--cluster", "h100-sxm", "--nodes", "8", "--global-batch", "256"]
Calls = list[dict[str, Any]]


@pytest.fixture
def found(monkeypatch: pytest.MonkeyPatch) -> Callable[[SearchResult], Calls]:
    """Put a hand-made result in the place of the search; the list returned fills with what it was asked."""

    def install(result: SearchResult) -> Calls:
        calls: Calls = []

        def search(graph_at: object, job: object, cluster: object, **options: Any) -> SearchResult:
            calls.append({"job": job, "cluster": cluster, **options})
            options["progress"]("3 candidates")
            return result

        monkeypatch.setattr("autoplan.search.search", search, raising=False)
        monkeypatch.setattr(search_command, "graphs_of", lambda *args: None)
        return calls

    return install


def test_help_imports_nothing_heavy() -> None:
    script = (
        "import sys; from autoplan.cli.main import main\n"
        "try: main(['--help'])\n"
        "except SystemExit: pass\n"
        "print('heavy:', sorted({'torch', 'ortools', 'transformers'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert "commands:" in done.stdout
    assert done.stdout.endswith("heavy: []\n")  # so that it answers at once


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert_exits(0, ["--version"])
    assert capsys.readouterr().out == f"autoplan {autoplan.__version__}\n"


def test_search_prints_the_report(
    found: Callable[[SearchResult], Calls], capsys: pytest.CaptureFixture[str]
) -> None:
    calls = found(hand_made_result())
    assert main(SEARCH) == 0
    out, err = capsys.readouterr()
    assert "within gap: no plan of the space is below 7.94 s" in out
    assert err == ""
    asked = calls[0]
    assert (asked["pin"], asked["gap"], asked["time_limit_s"], asked["top"]) == ({}, 0.01, None, 5)
    assert asked["cluster"].world_size == 64
    assert (asked["job"].global_batch, asked["job"].tokens_per_sample) == (256, 8192)


def test_search_passes_every_choice_on(found: Callable[[SearchResult], Calls]) -> None:
    calls = found(hand_made_result())
    pins = "--tp 4 --pp 2 --dp 1 --fsdp 8 --zero 3 --micro-batch 2 --recompute full"
    rest = "--seq 1024 --precision fp32 --optimizer sgd --gap 5% --time-limit 30 --top 3 --quiet"
    assert main([*SEARCH, *shlex.split(pins), *shlex.split(rest)]) == 0
    asked = calls[0]
    assert asked["pin"] == {
        "tp": 4,
        "pp": 2,
        "dp": 1,
        "fsdp": 8,
        "zero": 3,
        "micro_batch": 2,
        "recompute": "full",
    }
    assert (asked["gap"], asked["time_limit_s"], asked["top"]) == (0.05, 30.0, 3)
    job = asked["job"]
    assert (job.tokens_per_sample, job.precision, job.optimizer_states) == (1024, "fp32", 0)


def test_no_recompute_is_a_pin(found: Callable[[SearchResult], Calls]) -> None:
    calls = found(hand_made_result())
    assert main([*SEARCH, "--no-recompute"]) == 0
    assert calls[0]["pin"] == {"recompute": "none"}


def test_search_prints_json_with_the_keys_that_stay(
    found: Callable[[SearchResult], Calls], capsys: pytest.CaptureFixture[str]
) -> None:
    found(hand_made_result())
    assert main([*SEARCH, "--json"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert {"status", "gap", "bound_s", "plan", "estimate", "runners_up", "search"} <= set(data)
    degrees = {"pp", "dp", "fsdp", "cp", "tp", "ep", "vpp", "schedule", "micro_batch", "num_micro_batches"}
    assert degrees | {"zero", "recompute", "stages"} <= set(data["plan"])
    assert {
        "step_time_s",
        "tokens_per_s",
        "tokens_per_s_per_gpu",
        "model_tflops_per_gpu",
        "mfu",
        "peak_memory_bytes",
        "fits",
        "parts",
    } <= set(data["estimate"])
    assert sum(data["estimate"]["parts"].values()) == pytest.approx(data["estimate"]["step_time_s"])
    assert set(data["search"]) == {"seconds", "candidates", "pruned"}


def test_search_writes_the_plan(
    found: Callable[[SearchResult], Calls], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found(hand_made_result())
    path = tmp_path / "plan.json"
    assert main([*SEARCH, "--out", str(path)]) == 0
    written = read_plan(path)
    assert msgspec.structs.replace(written, asked={}) == hand_made_candidate().plan
    assert written.hash() == hand_made_candidate().plan.hash()
    assert written.asked == {"model": "llama3-8b", "cluster": "h100-sxm", "nodes": 8}
    assert capsys.readouterr().out.endswith(f"written to {path}\n")


def test_quiet_prints_nothing(
    found: Callable[[SearchResult], Calls], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found(hand_made_result())
    assert main([*SEARCH, "--quiet", "--out", str(tmp_path / "plan.json")]) == 0
    assert capsys.readouterr() == ("", "")


def test_nothing_fits(found: Callable[[SearchResult], Calls], capsys: pytest.CaptureFixture[str]) -> None:
    found(infeasible_result())
    assert main(SEARCH) == 3
    out, err = capsys.readouterr()
    assert out == ""
    assert err == (
        "autoplan: error: no plan fits: the training state takes 1.03 TiB and 8 GPUs hold 632 GiB; "
        "use --nodes 2; or use --optimizer sgd, whose state is smaller\n"
    )


def test_nothing_fits_as_json(
    found: Callable[[SearchResult], Calls], capsys: pytest.CaptureFixture[str]
) -> None:
    found(infeasible_result())
    assert main([*SEARCH, "--json"]) == 3
    out, err = capsys.readouterr()
    data = json.loads(out)
    assert data["status"] == "infeasible"
    assert data["plan"] is None
    assert data["gap"] is None  # JSON has no infinity
    assert data["cures"][0] == {
        "option": "--nodes",
        "value": "2",
        "text": "use --nodes 2",
        "step_s": None,
    }
    assert set(data["error"]) == {"field", "value", "expected", "remedy"}
    assert err.count("\n") == 1


def test_show_prints_a_plan_in_words_and_as_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "plan.json"
    write_plan(hand_made_plan(), path)
    assert main(["show", str(path)]) == 0
    assert capsys.readouterr().out.startswith("tiny on 8 ranks, bf16")
    assert main(["show", str(path), "--json"]) == 0
    assert capsys.readouterr().out == plan_json(hand_made_plan())


def test_show_prints_the_schema(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["show", "--schema"]) == 0
    assert json.loads(capsys.readouterr().out) == json.loads(json.dumps(plan_schema()))


def test_an_interrupt_ends_with_130(
    found: Callable[[SearchResult], Calls],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    found(hand_made_result())

    def interrupted(*args: object, **options: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("autoplan.search.search", interrupted)
    assert main(SEARCH) == 130
    assert capsys.readouterr().err == "autoplan: interrupted\n"


def test_a_bug_is_not_hidden(found: Callable[[SearchResult], Calls], monkeypatch: pytest.MonkeyPatch) -> None:
    found(hand_made_result())
    monkeypatch.setattr("autoplan.search.search", lambda *args, **options: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        main(SEARCH)


@pytest.mark.parametrize("options", [["--schema"], ["--help"]])
def test_a_reader_that_goes_away_is_no_error(options: list[str]) -> None:
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(
        [sys.executable, "-m", "autoplan", "show", *options],
        stdout=write,
        stderr=subprocess.PIPE,
        check=False,
    )
    os.close(write)
    assert done.stderr == b""
    assert done.returncode in (0, 141)  # argparse forgives a closed pipe when Python does not buffer


def test_the_options_of_search_are_the_ones_promised() -> None:
    """Scripts depend on these; an option may be added, none may go."""
    parser = build_parser()._subparsers._group_actions[0].choices["search"]  # type: ignore[union-attr, index]
    options = {option for action in parser._actions for option in action.option_strings}
    assert options == {
        *("-h", "--help", "--seq", "--global-batch", "--precision", "--optimizer"),
        *("--cluster", "--nodes", "--gpus"),
        *("--tp", "--cp", "--ep", "--pp", "--dp", "--fsdp", "--zero", "--schedule", "--vpp"),
        *("--micro-batch", "--recompute", "--no-recompute"),
        *("--pin", "--forbid"),
        *("--moe-imbalance", "--moe-histogram", "--moe-capacity"),
        *("--tokens", "--objective", "--max-cost", "--max-days", "--price"),
        *("--gap", "--time-limit", "--top", "--json", "--out", "--trace", "--quiet"),
    }


def assert_exits(status: int, argv: list[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(argv)
    assert caught.value.code == status
