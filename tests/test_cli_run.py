"""``autoplan run``: the torchrun command that a plan means, and what is said when it cannot be."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from plans import hand_made_plan

from autoplan.cli.arguments import Parser
from autoplan.cli.run import add_parser, launch_command
from autoplan.errors import InputError, PlanError
from autoplan.plan import write_plan

ENTRY = """
import sys
from autoplan.cli.arguments import Parser
from autoplan.cli.run import add_parser
assert "torch" not in sys.modules
parser = Parser(prog="autoplan")
add_parser(parser.add_subparsers())
args = parser.parse_args(sys.argv[1:])
raise SystemExit(args.run(args))
"""

SCRIPT = """
import json, os, pathlib, sys
seen = {name: os.environ[name] for name in ("RANK", "WORLD_SIZE", "AUTOPLAN_PLAN")}
pathlib.Path(sys.argv[1], "rank" + seen["RANK"]).write_text(json.dumps({**seen, "args": sys.argv[2:]}))
sys.exit(7 if "fail" in sys.argv else 0)
"""


@pytest.fixture
def script(tmp_path: Path) -> Path:
    file = tmp_path / "train.py"
    file.write_text(SCRIPT)
    return file


def parsed(*words: str | Path) -> argparse.Namespace:
    parser = Parser(prog="autoplan")
    add_parser(parser.add_subparsers())
    return parser.parse_args(["run", *map(str, words)])


def command(*words: str | Path) -> list[str]:
    """The torchrun command for the hand-made plan of 8 ranks, without the interpreter and ``-m``."""
    return launch_command(parsed(*words), hand_made_plan())[3:]


def test_one_machine_runs_every_rank(script: Path) -> None:
    assert command("plan.json", script, "--lr", "3e-4", "--nnodes", "x") == [
        *("--nnodes", "1", "--nproc-per-node", "8", "--standalone", "--"),
        *(str(script), "--lr", "3e-4", "--nnodes", "x"),
    ]


def test_machines_share_the_ranks_out(script: Path) -> None:
    where = ("--nnodes", "2", "--rdzv-endpoint", "node0:29500")
    assert command(*where, "--node-rank", "1", "plan.json", script) == [
        *("--nnodes", "2", "--nproc-per-node", "4"),
        *(
            "--rdzv-backend",
            "static",
            "--node-rank",
            "1",
            "--rdzv-endpoint",
            "node0:29500",
            "--",
            str(script),
        ),
    ]
    assert command(*where, "plan.json", script)[4:-1] == [
        *(
            "--rdzv-backend",
            "c10d",
            "--rdzv-id",
            hand_made_plan().hash(),
            "--rdzv-endpoint",
            "node0:29500",
            "--",
        ),
    ]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--nproc-per-node", "4"), "--nproc-per-node: got 4, expected 8 ranks in all"),
        (("--nnodes", "3"), "--nnodes: got 3, expected a divisor of the plan's 8 ranks; give --nnodes 2"),
        (("--nnodes", "2"), "give the same --rdzv-endpoint HOST:PORT on every node"),
        (("--nnodes", "2", "--rdzv-endpoint", "node0"), "--rdzv-endpoint: got 'node0', expected host:port"),
        (
            ("--nnodes", "2", "--rdzv-endpoint", "n:1", "--node-rank", "2"),
            "--node-rank: got 2, expected less than",
        ),
        (("--nproc-per-node", "0"), "--nproc-per-node: got '0', expected an integer of at least 1"),
    ],
)
def test_impossible_launches_are_refused(script: Path, words: tuple[str, ...], said: str) -> None:
    with pytest.raises(InputError) as caught:
        command(*words, "plan.json", script)
    assert said in str(caught.value) and "\n" not in str(caught.value)


def test_missing_files_are_refused(script: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"SCRIPT: got 'absent\.py', expected a Python file that exists"):
        command("plan.json", "absent.py")
    args = parsed(tmp_path / "absent.json", script)
    with pytest.raises(PlanError, match="a file that can be read"):
        args.run(args)
    (tmp_path / "broken.json").write_text('{"format": "autoplan.plan/1"')
    args = parsed(tmp_path / "broken.json", script)
    with pytest.raises(PlanError, match=r"broken\.json"):
        args.run(args)


@pytest.mark.parametrize("fails", [False, True])
def test_ranks_see_the_plan_and_their_status_comes_back(script: Path, tmp_path: Path, fails: bool) -> None:
    plan = tmp_path / "plan.json"
    write_plan(hand_made_plan(pp=1, fsdp=1, zero=0, tp=2, global_batch=16, stages=one_stage()), plan)
    words = ["run", plan.name, script, tmp_path, "--nproc", "--", "--node-rank", *(["fail"] if fails else [])]
    done = subprocess.run(
        [sys.executable, "-c", ENTRY, *map(str, words)], cwd=tmp_path, env=environment(), timeout=120
    )
    assert (done.returncode == 0) != fails
    seen = [json.loads(file.read_text()) for file in sorted(tmp_path.glob("rank*"))]
    if not fails:  # torchrun may stop the second rank before it writes
        assert [rank["RANK"] for rank in seen] == ["0", "1"]
    assert all(rank["AUTOPLAN_PLAN"] == str(plan.resolve()) and rank["WORLD_SIZE"] == "2" for rank in seen)
    assert all(rank["args"][:3] == ["--nproc", "--", "--node-rank"] for rank in seen) and seen


def one_stage() -> tuple[object, ...]:
    first, second = hand_made_plan().stages
    return (type(first)(units=first.units + second.units),)


def environment() -> dict[str, str]:
    return {
        name: value
        for name, value in os.environ.items()
        if name not in ("RANK", "WORLD_SIZE", "AUTOPLAN_PLAN")
    }
