"""Time against money: the figures of a run, the curve, limits, and what must be known for it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from msgspec.structs import replace
from test_cli_search import MODELS
from test_cost_toys import toy_cluster
from test_search import find

from autoplan.cli.main import main
from autoplan.errors import ProfileError
from autoplan.hardware import Cluster
from autoplan.plan import Job
from autoplan.search.frontier import Point, best_point, curve
from autoplan.search.goal import Objective, require_power, require_price
from autoplan.search.objective import Run, run_of

JOB = Job(global_batch=32, tokens_per_sample=1024)
ASK = ["frontier", "models.py:perceptron", "--global-batch", "64", "--tokens", "1e9", "--nodes", "1..2"]


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models.py").write_text(MODELS, encoding="utf-8")


def bare(cluster: Cluster) -> Cluster:
    """The same from a profile that knows neither prices nor powers."""
    return replace(cluster, device=replace(cluster.device, price_per_hour=None, tdp_w=None, idle_w=None))


def powered(cluster: Cluster) -> Cluster:
    device = replace(cluster.device, price_per_hour=2.0, tdp_w=700.0, idle_w=70.0)
    return replace(cluster, device=device)


def test_the_figures_of_a_run() -> None:
    found = find().best
    assert found is not None
    cluster = powered(toy_cluster(nodes=2, memory=12e9))
    tokens = 100 * 32 * 1024  # a hundred steps
    run = run_of(found, tokens, JOB, cluster)
    step_s, busy = found.estimate.step_time_s, found.estimate.busy_s
    assert run.seconds == pytest.approx(100 * step_s)
    assert run.cost == pytest.approx(100 * step_s / 3600 * 8 * 2.0)
    assert run.energy_kwh == pytest.approx(100 * 8 * (70 * step_s + 630 * busy) / 3.6e6)
    assert run_of(found, tokens, JOB, cluster, price=1.0).cost == pytest.approx((run.cost or 0) / 2)
    unknown = run_of(found, tokens, JOB, bare(cluster))
    assert unknown.cost is None and unknown.energy_kwh is None


def test_what_a_profile_lacks_is_named() -> None:
    with pytest.raises(ProfileError, match=r"device.price_per_hour.*--price"):
        require_price(bare(toy_cluster()), None)
    require_price(bare(toy_cluster()), 1.0)
    with pytest.raises(ProfileError, match=r"device.tdp_w"):
        require_power(bare(toy_cluster()))


def test_the_curve_and_its_best_points() -> None:
    def at(seconds: float, cost: float) -> Point:
        return Point(toy_cluster(), None, Run(1.0, seconds * 86_400, cost, 100 - cost))

    fast, middle, beaten, slow = at(1, 9), at(2, 5), at(3, 6), at(4, 1)
    nothing = Point(toy_cluster(), None, None, "no plan fits in memory")
    found = [beaten, slow, nothing, middle, fast]
    assert curve(found) == [fast, middle, slow]
    assert best_point(found, Objective.TIME) is fast
    assert best_point(found, Objective.COST) is slow
    assert best_point(found, Objective.COST, max_days=2) is middle
    assert best_point(found, Objective.TIME, max_cost=6) is middle
    assert best_point(found, Objective.ENERGY) is fast
    assert best_point(found, Objective.COST, max_days=2, max_cost=4) is None


def test_from_the_command_line(capsys: pytest.CaptureFixture[str]) -> None:
    clusters = ["--clusters", "a100-80,h100-sxm", "--price", "h100-sxm=100"]
    assert main([*ASK, *clusters, "--json"]) == 0
    points = json.loads(capsys.readouterr().out)["points"]
    assert [(p["cluster"], p["nodes"]) for p in points] == [
        ("a100-80-sxm", 1),
        ("a100-80-sxm", 2),
        ("h100-sxm", 1),
        ("h100-sxm", 2),
    ]
    for p in points:
        hourly = 100.0 if p["cluster"] == "h100-sxm" else 2.79
        assert p["cost"] == pytest.approx(p["days"] * 24 * hourly * p["gpus"])
        assert p["days"] == pytest.approx(p["estimate"]["step_time_s"] * 1e9 / 64 / 86_400)
    (best,) = [p for p in points if p["best"]]
    assert best["cluster"] == "a100-80-sxm" and best["on_curve"]
    assert main([*ASK, *clusters, "--objective", "energy"]) == 0
    out = capsys.readouterr().out
    assert "★" in out and "least energy" in out and max(map(len, out.splitlines())) <= 100


@pytest.mark.parametrize(
    ("options", "status", "text"),
    [
        (["--clusters", "gb300-nvl72"], 2, "device.price_per_hour"),
        (["--clusters", "h100-sxm", "--price", "a100=1"], 2, "--price: got 'a100'"),
        (["--clusters", "h100-sxm", "--price", "1"], 2, "NAME=DOLLARS"),
        (["--clusters", "h100-sxm", "--nodes", "4..1"], 2, "--nodes: got '4..1'"),
        (["--clusters", "h100-sxm", "--tokens", "-1"], 2, "--tokens"),
        (["--clusters", "h100-sxm", "--max-days", "1e-9"], 3, "allow more --max-days"),
    ],
)
def test_bad_questions(
    options: list[str], status: int, text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*ASK, *options]) == status
    assert text in capsys.readouterr().err
