"""Wrong input: one line on stderr that names the field, the value and the remedy; never a traceback."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from plans import hand_made_plan

from autoplan.cli.main import main
from autoplan.hardware import known_profiles
from autoplan.plan import plan_json

JOB = ["--global-batch", "64"]
H100 = ["--cluster", "h100-sxm"]
TINY = ["search", "gpt2", "--seq", "128"]

BROKEN_MODELS = """
def raises():
    raise RuntimeError("out of luck")

def number():
    return 3

def needs_argument(size):
    return size
"""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory with inputs of every wrong kind."""
    monkeypatch.chdir(tmp_path)
    good = known_profiles()["h100-sxm"].read_text(encoding="utf-8")
    (tmp_path / "negative.toml").write_text(
        good.replace("bandwidth_bytes_per_s = 450e9", "bandwidth_bytes_per_s = -450e9"), encoding="utf-8"
    )
    (tmp_path / "broken.toml").write_text("name = [", encoding="utf-8")
    (tmp_path / "broken_models.py").write_text(BROKEN_MODELS, encoding="utf-8")
    (tmp_path / "empty.json").write_text("{}", encoding="utf-8")
    (tmp_path / "text.json").write_text("not JSON", encoding="utf-8")
    raw = json.loads(plan_json(hand_made_plan()))
    (tmp_path / "plan.json").write_text(json.dumps({**raw, "global_batch": 33}), encoding="utf-8")
    return tmp_path


def refused(argv: Sequence[str], capsys: pytest.CaptureFixture[str], status: int = 2) -> str:
    """The one line that ``argv`` prints on stderr."""
    assert main(argv) == status
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert err.startswith("autoplan: error: ")
    assert "Traceback" not in err
    return err


@pytest.mark.parametrize(
    ("argv", "parts"),
    [
        ([*TINY, *JOB, "--cluster", "h300"], ["--cluster", "'h300'", "h100-sxm", "autoplan profile"]),
        ([*TINY, *JOB, "--cluster", "none.toml"], ["--cluster", "'none.toml'", "correct the path"]),
        ([*TINY, *JOB, "--cluster", "negative.toml"], ["bandwidth_bytes_per_s", "-450000000000"]),
        ([*TINY, *JOB, "--cluster", "broken.toml"], ["broken.toml"]),
        ([*TINY, *JOB, *H100, "--nodes", "0"], ["--nodes", "'0'", "at least 1"]),
        ([*TINY, *JOB, *H100, "--gpus", "12"], ["--gpus", "12", "a multiple of 8"]),
        ([*TINY, *JOB, *H100, "--nodes", "2", "--gpus", "16"], ["--gpus", "not allowed with", "--nodes"]),
        (["search", "llama3-9b", *JOB, *H100], ["MODEL", "'llama3-9b'", "did you mean llama3-8b"]),
        (["search", "none/config.json", *JOB, *H100], ["MODEL", "'none/config.json'", "exists"]),
        (["search", "empty.json", *JOB, *H100], ["empty.json"]),
        (["search", "text.json", *JOB, *H100], ["text.json"]),
        (["search", "broken_models.py", *JOB, *H100], ["MODEL", "name it: broken_models.py:my_factory"]),
        (["search", "broken_models.py:gone", *JOB, *H100], ["MODEL", "gone"]),
        (["search", "broken_models.py:raises", *JOB, *H100], ["MODEL", "out of luck"]),
        (["search", "broken_models.py:number", *JOB, *H100], ["broken_models.py:number"]),
        (["search", "broken_models.py:needs_argument", *JOB, *H100], ["MODEL", "without arguments"]),
        (["search", "gpt2", "--seq", "4096", *JOB, *H100], ["--seq", "4096", "use --seq 1024"]),
        (
            [*TINY, *JOB, *H100, "--out", "missing/plan.json"],
            ["--out", "'missing/plan.json'", "make the directory"],
        ),
        ([*TINY, *JOB, *H100, "--zero", "7"], ["--zero", "'7'", "one of 0, 1, 2, 3"]),
        ([*TINY, *JOB, *H100, "--recompute", "some"], ["--recompute", "'some'", "none, full"]),
        ([*TINY, *JOB, *H100, "--tp", "two"], ["--tp", "'two'", "an integer of at least 1"]),
        ([*TINY, *JOB, *H100, "--precision", "fp8"], ["--precision", "'fp8'", "bf16, fp32, fp64"]),
        ([*TINY, *JOB, *H100, "--optimizer", "lion"], ["--optimizer", "'lion'", "adamw, sgd"]),
        ([*TINY, *JOB, *H100, "--gap", "2"], ["--gap", "'2'", "--gap 0.01"]),
        ([*TINY, *JOB, *H100, "--time-limit", "nan"], ["--time-limit", "'nan'", "positive"]),
        ([*TINY, *H100, "--global-batch", "-8"], ["--global-batch", "'-8'", "at least 1"]),
        ([*TINY, *H100], ["--global-batch", "required", "see `autoplan search --help`"]),
        ([*TINY, *JOB, *H100, "--teepee", "2"], ["unrecognized arguments: --teepee"]),
        (["serch"], ["'serch'", "search", "see `autoplan --help`"]),
        (["show", "none.json"], ["plan file", "'none.json'", "correct the path"]),
        (["show", "plan.json"], ["plan.json: global_batch", "33", "= 32"]),
        (["show", "text.json"], ["text.json", "JSON"]),
        (["show"], ["PLAN", "--schema", "required"]),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_wrong_input_is_named(
    argv: list[str], parts: list[str], here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = refused(argv, capsys)
    for part in parts:
        assert part in line, line


def test_json_gives_the_error_as_an_object_too(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*TINY, *JOB, "--cluster", "h300", "--json"]) == 2
    out, err = capsys.readouterr()
    error = json.loads(out)["error"]
    assert set(error) == {"field", "value", "expected", "remedy"}
    assert (error["field"], error["value"]) == ("--cluster", "h300")
    assert err.count("\n") == 1


def test_the_error_of_the_arguments_themselves_is_an_object_too(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["search", "--json", "--teepee"]) == 2
    error = json.loads(capsys.readouterr().out)["error"]
    assert error["field"] == "arguments"
    assert error["remedy"] == "see `autoplan search --help`"


def test_a_process_ends_with_the_status_and_one_line() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "autoplan", *TINY, *JOB, "--cluster", "h300"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.count("\n") == 1
