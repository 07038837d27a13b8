"""What a search has least of, and limits of a run: proved against every candidate, refused when nothing is within."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from test_cli_search import MODELS
from test_cost_toys import toy_cluster, toy_layouts, toy_strategies
from test_frontier import bare, powered
from test_search import find, graph_at

from autoplan.cli.main import main
from autoplan.errors import InputError, ProfileError
from autoplan.hardware import Cluster
from autoplan.plan import Job
from autoplan.search import Candidate, Status
from autoplan.search.goal import Goal, Objective
from autoplan.search.graphs import Graphs
from autoplan.search.objective import run_of
from autoplan.search.pins import Pins
from autoplan.search.space import Space

JOB = Job(global_batch=32, tokens_per_sample=1024)
TOKENS = 1e9


def cluster() -> Cluster:
    return powered(toy_cluster(nodes=2, memory=12e9))


def goal(objective: Objective = Objective.TIME, **limits: Any) -> Goal:
    return Goal.of(objective, JOB, cluster(), tokens=TOKENS, **limits)


def every_candidate() -> list[Candidate]:
    """The best stages of each of all degrees, schedules and layouts."""
    space = Space(Graphs(graph_at), JOB, cluster(), Pins(), toy_strategies, toy_layouts)
    found = []
    for first in space.candidates:
        for degrees in (first, *space.variants(first)):
            for choice in space.choices(degrees):
                staging = space.solve(degrees, choice)
                if staging is not None:
                    found.append(space.candidate(degrees, choice, staging.stages))
                    busy_s = found[-1].estimate.busy_s
                    assert space.least_busy_s(degrees) <= busy_s * (1 + 1e-9)
                    assert busy_s <= found[-1].estimate.step_time_s
    return [one for one in found if one.estimate.fits]


def test_least_energy_is_least_of_all_and_its_bound_is_below_all() -> None:
    everything = every_candidate()
    energy = goal(Objective.ENERGY)
    least = min(energy.value(one.estimate) for one in everything)
    result = find(cluster(), goal=energy)
    assert result.best is not None and result.objective == "energy"
    mine = energy.value(result.best.estimate)
    assert mine * (1 - 1e-9) <= least * (1 + result.gap)
    assert mine / (1 + result.gap) <= least * (1 + 1e-9)
    assert result.bound_s <= min(one.estimate.step_time_s for one in everything) * (1 + 1e-9)
    run = run_of(result.best, TOKENS, JOB, cluster())
    assert run.energy_kwh == pytest.approx(mine * TOKENS / (32 * 1024) * 8 / 3.6e6)
    fastest = find(cluster())
    assert fastest.estimate is not None and mine <= energy.value(fastest.estimate)


def test_limits_hold_and_an_impossible_one_is_told() -> None:
    free = find(cluster())
    assert free.best is not None
    run = run_of(free.best, TOKENS, JOB, cluster())
    assert run.cost is not None
    for limits in ({"max_days": run.days * 1.02}, {"max_cost": run.cost * 1.02}):
        for objective in Objective:
            found = find(cluster(), goal=goal(objective, **limits))
            assert found.best is not None
            taken = run_of(found.best, TOKENS, JOB, cluster())
            assert taken.days <= limits.get("max_days", taken.days)
            assert taken.cost is not None and taken.cost <= limits.get("max_cost", taken.cost)
    for option, limits in (
        ("--max-days", {"max_days": run.days / 2}),
        ("--max-cost", {"max_cost": run.cost / 2}),
    ):
        found = find(cluster(), goal=goal(**limits))
        assert found.status is Status.INFEASIBLE and option in found.conflict
        assert [cure.option for cure in found.cures] == [option]
        assert found.cures[0].step_s == free.best.estimate.step_time_s


def test_cost_is_time_on_one_cluster() -> None:
    assert find(cluster(), goal=goal(Objective.COST)).plan == find(cluster()).plan


def test_what_a_goal_must_know() -> None:
    with pytest.raises(InputError, match="--tokens"):
        Goal.of(Objective.TIME, JOB, cluster(), max_days=1.0)
    with pytest.raises(ProfileError, match=r"price_per_hour.*--price"):
        Goal.of(Objective.COST, JOB, bare(cluster()))
    with pytest.raises(ProfileError, match="tdp_w"):
        Goal.of(Objective.ENERGY, JOB, bare(cluster()))


def test_from_the_command_line(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And as ``autoplan frontier`` says it."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models.py").write_text(MODELS, encoding="utf-8")
    ask = [
        "models.py:perceptron",
        "--global-batch",
        "64",
        "--tokens",
        "1e9",
        "--objective",
        "energy",
        "--json",
    ]
    assert main(["search", *ask, "--cluster", "h100-sxm", "--nodes", "1"]) == 0
    mine = json.loads(capsys.readouterr().out)
    assert main(["frontier", *ask, "--clusters", "h100-sxm", "--nodes", "1"]) == 0
    (point,) = json.loads(capsys.readouterr().out)["points"]
    assert mine["objective"] == "energy" and mine["run"]["tokens"] == 1e9
    for name in ("days", "cost", "energy_kwh"):
        assert mine["run"][name] == pytest.approx(point[name])
    short = [*ask, "--max-days", "1e-9"]
    assert main(["search", *short, "--cluster", "h100-sxm", "--nodes", "1"]) == 3
    assert "--max-days" in capsys.readouterr().err
    shown = [*ask[:-1], "--cluster", "h100-sxm", "--nodes", "1", "--price", "2", "--pp", "2"]
    assert main(["search", *shown]) == 0
    out = capsys.readouterr().out
    assert "run 1 G samples in" in out and "less energy" in out and "schedule" in out
    assert max(map(len, out.splitlines())) <= 100
