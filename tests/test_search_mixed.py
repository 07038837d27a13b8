"""Clusters of two types of device: stages on one type each, priced, searched, checked and run as such."""

from __future__ import annotations

import contextlib
import itertools
import json
from pathlib import Path
from typing import Any

import pytest
from equality import Case, difference, make, make_batch, optimizer_for, reference
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace
from ranks import Ranks
from test_cli_search import MODELS
from test_cost_toys import toy_cluster, toy_graph, toy_strategies
from test_search import best, find, step_s

import autoplan
from autoplan.cli.main import main
from autoplan.cost import price
from autoplan.errors import AutoplanError, CertificateError, PlanError, ProfileError
from autoplan.hardware import Cluster, MixedCluster, cluster_of
from autoplan.plan import Job, Plan, Schedule, plan_json, read_plan, validate_plan, write_plan
from autoplan.search import Candidate, SearchResult, Status, search
from autoplan.search.certificate import check_candidate
from autoplan.search.goal import Goal, Objective
from autoplan.verify import verify_plan

TIGHT = {"gap": 1e-4, "top": 1, "cures": False}
A100 = Cluster.load("a100-80-sxm").device


def part(name: str = "fast", memory: float = 40e9, slow: bool = False, node_size: int = 4) -> Cluster:
    """A node of H100s, or of A100s with the same links."""
    cluster = toy_cluster(nodes=2, node_size=node_size, memory=memory)
    device = replace(A100, memory_bytes=int(memory), usable_bytes=int(memory)) if slow else cluster.device
    return replace(cluster, name=name, device=device)


def mixed(first: Cluster, second: Cluster, nodes: int = 1) -> MixedCluster:
    return MixedCluster.of([(first, nodes), (second, nodes)])


MIXED = mixed(part("slow", slow=True), part())


def lengths(plan: Plan) -> list[int]:
    return [len(stage.units) for stage in plan.stages]


def slower(cluster: Cluster, share: float) -> Cluster:
    """With so much of the bandwidth between its nodes."""
    network = cluster.levels[-1]
    wires = replace(network, bandwidth_bytes_per_s=network.bandwidth_bytes_per_s * share)
    return replace(cluster, levels=(*cluster.levels[:-1], wires))


def test_the_faster_part_takes_more_layers() -> None:
    for order in ((True, False), (False, True)):
        names = ["slow" if slow else "fast" for slow in order]
        cluster = mixed(*(part(name, slow=slow) for name, slow in zip(names, order, strict=True)))
        plan = best(find(cluster, pin={"pp": 2}))
        validate_plan(plan)
        assert [stage.device for stage in plan.stages] == names
        assert lengths(plan)[order.index(False)] > lengths(plan)[order.index(True)]


def test_a_part_with_little_memory_takes_fewer() -> None:
    pin = {"pp": 2, "tp": 1, "fsdp": 1, "dp": 4, "recompute": "none", "micro_batch": 1}
    wide = find(MIXED, pin=pin)
    small = find(mixed(part("slow", slow=True), part(memory=6e9)), pin=pin)
    assert lengths(best(small))[1] < lengths(best(wide))[1]
    assert step_s(small) > step_s(wide)
    for result in (wide, small):
        assert result.estimate is not None and result.estimate.fits
        assert all(s.memory.total <= s.memory_limit_bytes for s in result.estimate.stages)


def test_two_equal_parts_are_one_cluster() -> None:
    """The same plans at the same price; named as parts of one profile, they are that cluster."""
    options: dict[str, Any] = {"pin": {"schedule": "1f1b"}, "forbid": [("pp", 1)]}
    apart = find(mixed(part("one", 9e9), part("other", 9e9)), **options)
    plain = find(toy_cluster(nodes=2, node_size=4, memory=9e9), **options)
    assert (apart.estimate, apart.candidates) == (plain.estimate, plain.candidates)
    assert apart.bound_s == pytest.approx(plain.bound_s, rel=2e-4)  # found in another way (``staging_bound``)
    stages = tuple(replace(stage, device="") for stage in best(apart).stages)
    assert replace(best(apart), stages=stages) == best(plain)
    assert cluster_of("h100-sxm:1+h100-sxm:2") == Cluster.of("h100-sxm", nodes=3)


@settings(max_examples=3, deadline=None)
@given(
    memory=st.tuples(st.floats(6e9, 20e9), st.floats(6e9, 20e9)),
    share=st.floats(0.05, 0.8),
    which=st.integers(0, 1),
)
def test_more_memory_or_bandwidth_in_one_part_is_never_worse(
    memory: tuple[float, float], share: float, which: int
) -> None:
    parts = [part("slow", memory[0], slow=True), part("fast", memory[1])]
    before = [*parts]
    before[which] = slower(parts[which], share)
    more = [*parts]
    more[which] = part(parts[which].name, 2 * memory[which], slow=which == 0)
    pin = {"tp": 1}  # of layouts, those are offered that are fastest on some device with its links
    found = [find(mixed(*each), pin=pin, **TIGHT) for each in (before, parts, more)]
    for worse, better in itertools.pairwise(found):
        if worse.estimate is not None:
            assert step_s(better) <= step_s(worse) * (1 + 3e-4)


def test_a_border_goes_at_the_slower_sides_pace() -> None:
    """Under the same plan, a slower network on either side makes every send over the border as slow."""
    plan = best(find(MIXED, pin={"pp": 2, "tp": 4}))
    graph = toy_graph(plan.micro_batch, 6, seq=1024, hidden=2048, vocabulary=32768)
    job = Job(global_batch=32, tokens_per_sample=1024)
    slow, fast = part("slow", slow=True), part()
    ways = [
        (slow, fast),
        (slower(slow, 0.1), fast),
        (slow, slower(fast, 0.1)),
        (slower(slow, 0.1), slower(fast, 0.1)),
    ]
    sent = [
        price(graph, plan, job, mixed(*each), strategies_of=toy_strategies).parts["pp_comm"] for each in ways
    ]
    assert sent[0] < sent[1] == pytest.approx(sent[2]) == pytest.approx(sent[3])


def test_what_cannot_be_is_one_line() -> None:
    for pin, words in (
        ({"pp": 1}, "pp: got 1, expected a multiple of 2, so that no stage has devices of two types"),
        ({"schedule": "zbv"}, "schedule: got 'zbv', expected 1f1b, whose stages may be uneven, on 4 × "),
        ({"vpp": 2}, "vpp: got '2', expected 1, whose stages may be uneven"),
        ({"tp": 3}, "tp: got 3, expected a divisor of the 8 ranks"),
    ):
        with pytest.raises(PlanError) as error:
            find(MIXED, pin=pin)
        assert words in str(error.value)
    with pytest.raises(PlanError, match="objective: got 'energy', expected time or cost, on 4 × "):
        Goal.of(Objective.ENERGY, Job(global_batch=8), MIXED)
    plan = best(find(toy_cluster(nodes=2), pin={"pp": 1}))
    job = Job(global_batch=32, tokens_per_sample=1024)
    graph = toy_graph(plan.micro_batch, 6, seq=1024, hidden=2048, vocabulary=32768)
    with pytest.raises(PlanError, match="pp: got 1, expected a multiple of 2"):
        price(graph, plan, job, MIXED, strategies_of=toy_strategies)
    three = MixedCluster.of([(part("slow", slow=True), 1), (part(), 2)])
    assert best(find(three, batch=48, pin={"tp": 4})).pp == 3


def test_nothing_fits_says_what_each_leaves() -> None:
    result = find(mixed(part("slow", 2.2e9, slow=True), part(memory=2.3e9)))
    assert result.status is Status.INFEASIBLE
    assert (
        "NVIDIA A100-SXM4-80GB leaves 1.84 GiB and NVIDIA H100 80GB HBM3 leaves 1.93 GiB" in result.conflict
    )
    assert result.cures


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("a100-80-sxm:1+", r"--cluster: got 'a100-80-sxm:1\+', expected PROFILE:NODES\+PROFILE:NODES"),
        ("a100-80-sxm+h100-sxm:1", r"expected PROFILE:NODES\+PROFILE:NODES"),
        ("a100-80-sxm:0+h100-sxm:1", r"expected PROFILE:NODES\+PROFILE:NODES"),
        ("a100-80-sxm:1+h1000:1", "--cluster: got 'h1000', expected a known profile"),
        ("a100-80-sxm:1+no/such.toml:1", "--cluster: got 'no/such.toml', expected a profile that exists"),
        ("a100-80-sxm:1+cpu-gloo-4:1", "expected profiles with a network"),
        ("a100-80-sxm:999999+h100-sxm:1", "expected at most 1048576 devices"),
    ],
)
def test_bad_names_are_one_line(name: str, message: str) -> None:
    with pytest.raises(ProfileError, match=message) as error:
        cluster_of(name)
    assert "\n" not in str(error.value)


@given(st.text("ah100-xm:+. 0\0/", max_size=24))
def test_no_name_is_a_traceback(name: str) -> None:
    with contextlib.suppress(AutoplanError):
        cluster_of(name)


def test_sizes_must_agree(tmp_path: Path) -> None:
    path = tmp_path / "two.toml"
    parts = '[[part]]\nprofile = "a100-80-sxm"\nnodes = 2\n[[part]]\nprofile = "h100-sxm"\nnodes = 2\n'
    path.write_text(f'format = 2\nname = "two"\n{parts}', encoding="utf-8")
    assert cluster_of(path, gpus=32).types == cluster_of("a100-80-sxm:2+h100-sxm:2", nodes=4).types
    with pytest.raises(ProfileError, match="--gpus: got 16, expected 32, as two says"):
        cluster_of(path, gpus=16)
    with pytest.raises(ProfileError, match="--nodes: got 3, expected 4, as a100-80-sxm:2"):
        cluster_of("a100-80-sxm:2+h100-sxm:2", nodes=3)


def test_from_the_command_line_to_a_checked_plan(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models.py").write_text(MODELS.replace("range(4)", "range(12)"), encoding="utf-8")
    name = "a100-80-sxm:1+h100-sxm:1"
    asked = ["models.py:perceptron", "--cluster", name, "--global-batch", "4096", "--no-recompute"]
    assert main(["search", *asked, "--out", "plan.json"]) == 0
    text = capsys.readouterr().out
    assert "on 8 × NVIDIA A100-SXM4-80GB + 8 × NVIDIA H100 80GB HBM3" in text
    assert "again by an independent check: structure, layouts, memory, time" in " ".join(text.split())
    plan = read_plan("plan.json")
    assert plan.asked["cluster"] == name
    assert {stage.device for stage in plan.stages} == {"a100-80-sxm", "h100-sxm"}
    assert main(["show", "plan.json"]) == 0
    assert " on a100-80-sxm\n" in capsys.readouterr().out
    assert main(["explain", "plan.json", "--why-not", "pp=4", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)
    assert main(["explain", "plan.json", "--why-not", "pp=4", "--cluster", "h100-sxm"]) == 2
    assert "stages[0].device: got 'a100-80-sxm', expected h100-sxm" in capsys.readouterr().err
    assert main(["search", asked[0], "--cluster", f"{name}+", "--global-batch", "64"]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def _result() -> tuple[SearchResult, Any, Job, MixedCluster]:
    from test_verify import JOB, graph_at

    cluster = cluster_of("a100-80-sxm:1+h100-sxm:1")
    assert isinstance(cluster, MixedCluster)
    pin = {"pp": 4, "tp": 2, "micro_batch": 1, "recompute": "none"}
    return search(graph_at, JOB, cluster, pin=pin, top=1), graph_at, JOB, cluster


def test_the_certificate_is_of_each_stages_own_device() -> None:
    result, graph_at, job, cluster = _result()
    assert result.best is not None and "time" in result.checked and not result.unchecked
    plan, estimate = result.best.plan, result.best.estimate
    graph = graph_at(plan.micro_batch)
    assert price(graph, plan, job, cluster) == estimate
    for other in (MixedCluster("turned", cluster.parts[::-1]), Cluster.of("h100-sxm", nodes=2)):
        assert not verify_plan(graph, plan, job, other).holds
        unnamed = replace(plan, stages=tuple(replace(stage, device="") for stage in plan.stages))
        with pytest.raises(CertificateError, match=r"memory limit|step"):
            check_candidate(graph, Candidate(unnamed, estimate), job, other)
    little = replace(cluster.parts[1], device=replace(cluster.parts[1].device, usable_bytes=3 * 10**9))
    with pytest.raises(CertificateError, match="memory limit"):
        check_candidate(graph, result.best, job, MixedCluster("little", (cluster.parts[0], little)))
    straddling = replace(plan, pp=1, dp=4 * plan.dp, stages=plan.stages[:1])
    assert any("of two types" in str(f) for f in _devices_of(straddling, cluster))


def _devices_of(plan: Plan, cluster: MixedCluster) -> list[Any]:
    from autoplan.verify.devices import parts_of_ranks
    from autoplan.verify.verdict import Verdict

    verdict = Verdict()
    parts_of_ranks(verdict, plan, cluster)
    return verdict.findings


def test_a_plan_says_devices_of_all_stages_or_of_none(tmp_path: Path) -> None:
    plan = best(find(MIXED, pin={"pp": 4}))
    write_plan(plan, tmp_path / "plan.json")
    assert read_plan(tmp_path / "plan.json") == plan
    silent = replace(plan, stages=tuple(replace(stage, device="") for stage in plan.stages))
    assert plan.hash() != silent.hash() and '"device"' not in plan_json(silent)
    broken = replace(plan, stages=(replace(plan.stages[0], device=""), *plan.stages[1:]))
    with pytest.raises(
        PlanError, match=r"stages\[1\].device: got 'slow', expected none, as other stages say"
    ):
        validate_plan(broken)


@pytest.mark.parametrize("schedule", [None, "gpipe"])
def test_an_estimate_by_hand(schedule: str | None, capsys: pytest.CaptureFixture[str]) -> None:
    """Equal parts are one cluster; a slower part costs more than none of it and less than all of it."""
    words = ["llama3-8b", "--tp", "4", "--pp", "4", "--global-batch", "64", "--json"]
    words += ["--schedule", schedule] if schedule else []
    steps = []
    for name in ("h100-sxm:2", "a100-80-sxm:1+h100-sxm:1", "a100-80-sxm:2"):
        assert main(["estimate", *words, "--cluster", name]) == 0
        steps.append(json.loads(capsys.readouterr().out)["estimate"]["step_time_s"])
    assert steps[0] < steps[1] < steps[2] * (1 + 1e-9)
    assert (
        main(["estimate", *words[:3], "--pp", "1", *words[5:], "--cluster", "a100-80-sxm:1+h100-sxm:1"]) == 2
    )
    assert "--pp: got 1, expected a multiple of 2" in capsys.readouterr().err


def test_equal_parts_estimate_as_one_cluster() -> None:
    from autoplan.cost.transformer.config_file import model_shape
    from autoplan.cost.transformer.configuration import Configuration
    from autoplan.cost.transformer.formats import formats_of
    from autoplan.cost.transformer.one import estimate_one
    from autoplan.cost.transformer.software import SOFTWARE

    _, shape, seq = model_shape("llama3-8b")
    c = Configuration(seq=seq, micro_batch=1, micro_batches=16, tp=4, pp=4, dp=2, sp=True)
    h100 = Cluster.of("h100-sxm", nodes=2)
    asked = formats_of("bf16"), SOFTWARE["megatron-core"], "1f1b"
    apart = estimate_one(shape, c, MixedCluster.of([(h100, 2), (replace(h100, name="other"), 2)]), *asked)
    plain = estimate_one(shape, c, Cluster.of(h100, nodes=4), *asked)
    assert apart.step_time_s == pytest.approx(plain.step_time_s, rel=1e-9)
    assert apart.stages == plain.stages


def _runs(case: Case) -> tuple[str, ...]:
    model, loss = make(case.model, case.dtype)
    batch = make_batch(case.model, case.global_batch, 0)
    first, second = part("one", node_size=1, slow=True), part("two", node_size=1)
    program = autoplan.parallelize(
        model,
        batch,
        loss,
        optimizer_for(case.dtype),
        cluster=mixed(first, second),
        precision=case.dtype,
    )
    with pytest.raises(ProfileError, match="one type of device"):
        program.measure(program.shard(batch))
    program.step(program.shard(batch))
    _, expected, _ = reference(case, steps=1)
    assert difference(program.full_gradients(), expected) < 1e-10
    return tuple(stage.device for stage in program.plan.stages)


def test_a_plan_for_two_types_runs(two: Ranks) -> None:
    assert two(_runs, Case()) == [("one", "two")] * 2


def test_other_schedules_are_priced_too() -> None:
    """A plan written by hand may have even stages under another schedule; the search does not offer those."""
    plan = best(find(toy_cluster(nodes=2), pin={"pp": 2, "schedule": "gpipe"}))
    job = Job(global_batch=32, tokens_per_sample=1024)
    graph = toy_graph(plan.micro_batch, 6, seq=1024, hidden=2048, vocabulary=32768)
    assert plan.schedule is Schedule.GPIPE
    both = [price(graph, plan, job, c, strategies_of=toy_strategies) for c in (toy_cluster(2), MIXED)]
    assert both[0].step_time_s < both[1].step_time_s
