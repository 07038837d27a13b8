"""Checkpoints: what one plan wrote, another plan on another number of ranks goes on from, as if nothing had happened."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from equality import Case, make, make_batch, program_of, reference
from ranks import Ranks

from autoplan.errors import AutoplanError, CheckpointError
from autoplan.runtime import Program

SAMPLES = 4
CHAIN = [
    Case("gpt", fsdp=2, tp=2, zero=3, micro_batch=2, num_micro_batches=1, seed=3),
    Case("gpt", pp=2, dp=2, num_micro_batches=2, schedule="zbv", vpp=2),
    Case("gpt", tp=2, micro_batch=4, num_micro_batches=1, seed=7),
    Case("gpt", cp=2, zero=3, micro_batch=2, seed=8),
    Case("gpt", fsdp=2, zero=2, micro_batch=1, num_micro_batches=2),
    Case("gpt", micro_batch=2),
]
"""Each goes on from what the one before wrote; all of them take one batch of 4."""
ALONE = CHAIN[-1]


def _steps(program: Program, first: int, last: int) -> list[float]:
    assert program.plan.global_batch == SAMPLES
    batches = (make_batch("gpt", SAMPLES, step) for step in range(first, last))
    return [program.step(program.shard(batch)).item() for batch in batches]


def _link(case: Case, first: int, path: str, last: str | None, async_: bool) -> list[float]:
    """Go on from the checkpoint ``last``, if any, and write ``path`` after one of two steps."""
    program = program_of(case, scramble=last is not None)
    if last is not None:
        assert program.load(last) == {"epoch": first}
        assert program.steps_done == first
    losses = _steps(program, first, first + 1)
    saved = program.save(path, {"epoch": first + 1}, async_=async_)
    losses += _steps(program, first + 1, first + 2)  # while a thread may write what must not move any more
    saved.result()
    return losses


def test_each_plan_goes_on_from_the_one_before(four: Ranks, two: Ranks, tmp_path: Path) -> None:
    expected = reference(ALONE, len(CHAIN) + 1)[0]
    last = None
    for first, (case, pool) in enumerate(zip(CHAIN, (four, four, two, two, two, None), strict=True)):
        path = str(tmp_path / str(first))
        arguments = (case, first, path, last, first % 2 == 0)
        for losses in [_link(*arguments)] if pool is None else pool(_link, *arguments):
            assert losses == pytest.approx(expected[first : first + 2], rel=1e-10)
        last = path


def test_torch_reads_it_without_autoplan_under_the_models_names(tmp_path: Path) -> None:
    path = tmp_path / "one"
    program = program_of(ALONE)
    _steps(program, 0, 1)
    program.save(path)
    model, _ = make("gpt", "fp64")
    state = {"model": {name: torch.zeros_like(p) for name, p in model.named_parameters()}}
    dcp.load(state, checkpoint_id=path, no_dist=True)
    kept = program.full_state_dict()
    assert all(torch.equal(tensor, kept[name]) for name, tensor in state["model"].items())


def _damaged(case: Case, paths: dict[str, str]) -> dict[str, str]:
    """What loading each damaged checkpoint says; then the last good one, which must still load."""
    program = program_of(case)
    messages = {}
    for name, path in paths.items():
        with pytest.raises(CheckpointError) as caught:
            program.load(path)
        messages[name] = str(caught.value)
    program.load(paths["truncated"].replace("truncated", "good"))
    return messages


def test_a_damaged_or_foreign_checkpoint_is_refused_on_every_rank(two: Ranks, tmp_path: Path) -> None:
    good = tmp_path / "good"
    names = ("truncated", "missing", "rotten", "manifest", "other", "empty")
    paths = {name: str(tmp_path / name) for name in names}
    program_of(ALONE).save(good)
    for name in ("truncated", "missing", "rotten", "manifest"):
        shutil.copytree(good, paths[name])
    data = next(Path(paths["truncated"]).glob("*.distcp"))
    size = data.stat().st_size
    os.truncate(data, 1000)
    next(Path(paths["missing"]).glob("*.distcp")).unlink()
    rotten = next(Path(paths["rotten"]).glob("*.distcp"))
    rotten.write_bytes(b"\0" * rotten.stat().st_size)
    (Path(paths["manifest"]) / "autoplan.json").write_text("{")
    program_of(Case("gpt-untied", micro_batch=2)).save(paths["other"])
    (tmp_path / "empty").mkdir()
    first, second = two(_damaged, Case("gpt", dp=2), paths)
    assert first == second
    assert f"got '1000 bytes', expected {size} bytes, as when it was saved" in first["truncated"]
    assert "no file" in first["missing"]
    assert "a checkpoint that can be read" in first["rotten"]
    assert "a manifest of autoplan.checkpoint/1" in first["manifest"]
    assert "head.weight of shape" in first["other"]
    assert "a directory that holds autoplan.json" in first["empty"]


def _without_rights(path: str) -> str:
    program = program_of(Case("gpt", dp=2))
    with pytest.raises(CheckpointError) as caught:
        program.save(path)
    return str(caught.value)


def test_a_save_that_fails_says_so_on_every_rank_and_keeps_what_was_there(two: Ranks, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a directory")
    first, second = two(_without_rights, str(tmp_path / "file" / "last"))
    assert first == second
    assert first.endswith("check the path, its rights and the disk")


def test_a_save_cut_short_at_any_moment_leaves_the_last_good_one(tmp_path: Path) -> None:
    path = tmp_path / "last"
    program = program_of(ALONE)
    _steps(program, 0, 1)
    program.save(path, {"good": 1})
    (tmp_path / ".last.saving").mkdir()  # cut while it was written
    assert program.load(path) == {"good": 1}
    path.rename(tmp_path / ".last.before")  # cut between the two renames
    assert program.load(path) == {"good": 1}
    program.save(path, {"good": 2})
    assert program.load(path) == {"good": 2}
    assert sorted(file.name for file in tmp_path.iterdir()) == ["last"]


def test_another_optimizer_is_refused_and_weights_alone_are_not(tmp_path: Path) -> None:
    program = program_of(ALONE)
    _steps(program, 0, 1)
    program.save(tmp_path / "adamw")
    other = program_of(
        ALONE, lambda parameters: torch.optim.SGD(parameters, lr=0.25, momentum=0.9), scramble=True
    )
    with pytest.raises(CheckpointError, match="the state of AdamW', expected that of SGD"):
        other.load(tmp_path / "adamw")
    other.load(tmp_path / "adamw", optimizer=False)
    mine, theirs = other.full_state_dict(), program.full_state_dict()
    assert all(torch.equal(mine[name], theirs[name]) for name in theirs)


def _two_rates(parameters: Any) -> torch.optim.Optimizer:
    parameters = list(parameters)
    return torch.optim.AdamW(
        [
            {"params": [p for p in parameters if p.dim() > 1]},
            {"params": [p for p in parameters if p.dim() < 2], "weight_decay": 0.0},
        ],
        lr=1e-3,
    )


def test_hyperparameters_come_back_group_by_group(tmp_path: Path) -> None:
    program = program_of(ALONE, optimizer=_two_rates)
    _steps(program, 0, 1)
    program.optimizer.param_groups[0]["lr"] = 0.125
    program.save(tmp_path / "last")
    again = program_of(ALONE, optimizer=_two_rates)
    again.load(tmp_path / "last")
    assert [group["lr"] for group in again.optimizer.param_groups] == [0.125, 1e-3]
    assert [group["betas"] for group in again.optimizer.param_groups] == [(0.9, 0.999)] * 2
    with pytest.raises(AutoplanError, match="one set for each parameter group"):
        program_of(ALONE).load(tmp_path / "last")
    assert json.loads((tmp_path / "last" / "autoplan.json").read_text())["step"] == 1
