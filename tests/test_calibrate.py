"""A measurement folded into a profile brings the prediction to what was measured; what does not fit is refused."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import pytest
from equality import Case, make, make_batch, plan_for
from msgspec.structs import replace

from autoplan.cli.main import main
from autoplan.cost import price
from autoplan.cost.parts import PredictedParts, predicted_parts
from autoplan.errors import ProfileError
from autoplan.graph.ir import ModelGraph
from autoplan.graph.trace import trace
from autoplan.hardware import Cluster, SourceKind, write_profile
from autoplan.hardware.calibrate import calibrated
from autoplan.hardware.measurement import (
    Computed,
    Measurement,
    Part,
    Sent,
    StageParts,
    profile_digest,
    read_measurement,
)
from autoplan.plan import Job, Plan, Precision

TP = Case(tp=2, fsdp=2, zero=3, dtype="fp32", seed=3, recompute="mixed")
PP = Case(pp=2, dp=2, dtype="fp32", num_micro_batches=4)


@functools.cache
def program(case: Case) -> tuple[ModelGraph, Plan, Job]:
    model, loss = make("gpt", "fp32")
    graph = trace(model, make_batch("gpt", case.micro_batch, 0), loss, Precision.FP32)
    return graph, plan_for(graph, case), Job(global_batch=case.global_batch, precision=Precision.FP32)


def base() -> Cluster:
    return Cluster.load("cpu-gloo-4")


def slower(cluster: Cluster, product: float = 1.7, memory: float = 1.3, launch: float = 2.5) -> Cluster:
    """The same machine as it might really be: other rates, and collectives that need longer."""
    device = cluster.device
    tables = tuple(
        replace(t, points=tuple(replace(p, flops_per_s=p.flops_per_s / product) for p in t.points))
        for t in device.gemm
    )
    batched = tuple(
        replace(t, points=tuple(replace(p, flops_per_s=p.flops_per_s / product) for p in t.points))
        for t in device.batched_gemm
    )
    stream = device.memory
    assert stream is not None
    points = tuple(replace(p, bytes_per_s=p.bytes_per_s / memory) for p in stream.points)
    device = replace(
        device,
        gemm=tables,
        batched_gemm=batched,
        memory=replace(stream, points=points),
        launch_s=device.launch_s * launch,
    )
    factor = {
        "all_reduce": 1.4,
        "all_gather": 0.8,
        "reduce_scatter": 2.0,
        "send_recv": 3.0,
        "all_to_all": 1.1,
    }
    levels = tuple(
        replace(
            level,
            curves=tuple(
                replace(
                    t,
                    points=tuple(
                        replace(p, bus_bytes_per_s=p.bus_bytes_per_s / factor[t.collective]) for p in t.points
                    ),
                )
                for t in level.curves
            ),
        )
        for level in cluster.levels
    )
    return replace(cluster, device=device, levels=levels)


class Recorder:
    """A cluster that remembers which messages it was asked to price."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self.types = (self,)
        self.messages: dict[tuple[Any, ...], int] = {}

    def collective_time_s(self, kind: str, nbytes: float, size: int, stride: int = 1) -> float:
        key = kind, int(nbytes), size, stride
        self.messages[key] = self.messages.get(key, 0) + 1
        return self._cluster.collective_time_s(kind, nbytes, size, stride)

    def p2p_time_s(self, nbytes: float, stride: int, size: int = 2) -> float:
        return self.collective_time_s("send_recv", nbytes, size, stride)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._cluster, name)


def measured(case: Case, cluster: Cluster, truth: Cluster, **changes: Any) -> Measurement:
    """What ``program.measure`` would give if the machine were exactly ``truth``."""
    graph, plan, job = program(case)
    wanted, real = (predicted_parts(graph, plan, job, one) for one in (cluster, truth))
    recorder = Recorder(truth)
    predicted_parts(graph, plan, job, recorder)  # type: ignore[arg-type]
    counts = {kind: sum(unit.kind == kind for unit in graph.units) for kind in graph.kinds}
    computed = [
        Computed(
            name=kind,
            phase=phase,
            count=counts[kind] * plan.num_micro_batches,
            measured_s=sum(real.units[kind, phase].values()),
            predicted_s=seconds,
            samples=5,
        )
        for (kind, phase), seconds in wanted.units.items()
    ]
    computed.append(optimizer(wanted, real))
    sent = [
        Sent(
            kind=kind,
            axis="tp",
            size=size,
            stride=stride,
            nbytes=nbytes,
            count=count,
            measured_s=truth.collective_time_s(kind, nbytes, size, stride),
            predicted_s=cluster.collective_time_s(kind, nbytes, size, stride),
            samples=5,
        )
        for (kind, nbytes, size, stride), count in recorder.messages.items()
        if nbytes and size > 1
    ]
    fields: dict[str, Any] = {
        "model": plan.model,
        "plan": plan.hash(),
        "device": cluster.device.name,
        "world_size": plan.world_size,
        "levels": tuple((level.name, level.size) for level in cluster.levels),
        "profile": cluster.name,
        "profile_digest": profile_digest(cluster),
        "date": "2026-01-31",
        "tool": "a test",
        "versions": {},
        "dtype": "float32",
        "steps": 5,
        "step_s": real.step_s,
        "step_spread": 0.0,
        "predicted_step_s": wanted.step_s,
        "stages": tuple(
            StageParts(
                pp_rank=p,
                parts=tuple(
                    Part(name=n, measured_s=real.stages[p][n], predicted_s=s) for n, s in parts.items()
                ),
                memory_bytes=real.memory[p],
                predicted_memory_bytes=wanted.memory[p],
            )
            for p, parts in enumerate(wanted.stages)
        ),
        "computed": tuple(computed),
        "sent": tuple(sent),
    }
    return Measurement(**{**fields, **changes})


def optimizer(wanted: PredictedParts, real: PredictedParts) -> Computed:
    return Computed(
        name="optimizer",
        phase="step",
        count=1,
        measured_s=sum(real.optimizer[0].values()),
        predicted_s=wanted.optimizer[0],
        samples=5,
    )


def step_s(case: Case, cluster: Cluster) -> float:
    graph, plan, job = program(case)
    return price(graph, plan, job, cluster).step_time_s


@pytest.mark.parametrize("case", [TP, PP], ids=["tp", "pp"])
def test_parts_add_up_to_the_step(case: Case) -> None:
    graph, plan, job = program(case)
    parts = predicted_parts(graph, plan, job, base())
    assert parts.step_s == step_s(case, base())
    for stage in parts.stages:
        assert sum(stage.values()) == pytest.approx(parts.step_s, rel=1e-9)
    assert all(sum(seconds.values()) > 0 for seconds in parts.units.values())


@pytest.mark.parametrize("case", [TP, PP], ids=["tp", "pp"])
def test_prediction_comes_nearer(case: Case) -> None:
    cluster = base()
    truth = slower(cluster)
    found = calibrated(cluster, [measured(case, cluster, truth)])
    real_s = step_s(case, truth)
    before, after = (abs(step_s(case, c) / real_s - 1) for c in (cluster, found.cluster))
    assert after < 0.02 < 0.2 < before
    for sent in measured(case, cluster, truth).sent:
        mended = found.cluster.collective_time_s(sent.kind, sent.nbytes, sent.size, sent.stride)
        assert mended == pytest.approx(sent.measured_s, rel=0.02)
    source = found.cluster.sources["steps"]
    assert source.kind is SourceKind.MEASURED and source.date == "2026-01-31" and source.samples > 0
    assert found.cluster.device.source["launch_s"] == "steps"


def test_several_programs_at_once() -> None:
    cluster = base()
    truth = slower(cluster)
    after = calibrated(cluster, [measured(case, cluster, truth) for case in (TP, PP)]).cluster
    for case in (TP, PP):
        real_s = step_s(case, truth)
        assert abs(step_s(case, after) / real_s - 1) < 0.03 < abs(step_s(case, cluster) / real_s - 1)


def test_a_right_prediction_stays() -> None:
    cluster = base()
    after = calibrated(cluster, [measured(TP, cluster, cluster)])
    assert all(factor == pytest.approx(1, rel=1e-6) for factor in after.factors.values())
    assert step_s(TP, after.cluster) == pytest.approx(step_s(TP, cluster), rel=1e-3)


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"device": "another"}, "device"),
        ({"world_size": 2, "levels": (("node", 2),)}, "world_size"),
        ({"levels": (("nvlink", 4),)}, "levels"),
        ({"profile_digest": "0" * 16}, "profile"),
    ],
)
def test_what_does_not_fit_is_refused(changes: dict[str, Any], field: str) -> None:
    cluster = base()
    with pytest.raises(ProfileError) as caught:
        calibrated(cluster, [measured(PP, cluster, cluster, **changes)])
    assert caught.value.field == field


def test_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cluster = base()
    truth = slower(cluster)
    file, out = tmp_path / "measured.json", tmp_path / "mended.toml"
    kept = measured(TP, cluster, truth)
    kept.save(file)
    assert read_measurement(file) == kept
    assert "one collective" in str(kept) and "× 1" in str(kept)
    assert main(["calibrate", str(file), "--profile", "cpu-gloo-4", "--out", str(out)]) == 0
    assert "seconds of compute bound by gemm: × " in capsys.readouterr().out
    real_s = step_s(TP, truth)
    assert abs(step_s(TP, Cluster.load(out)) / real_s - 1) < 0.02
    write_profile(truth, tmp_path / "other.toml")
    assert main(["calibrate", str(file), "--profile", str(tmp_path / "other.toml"), "--out", str(out)]) == 2
    file.write_text("{}")
    assert main(["calibrate", str(file), "--profile", "cpu-gloo-4", "--out", str(out)]) == 2
    assert "expected a measurement" in capsys.readouterr().err
