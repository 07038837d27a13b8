"""``program.measure``: every moment of a step is told apart, on every rank alike, and no number changes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch
from equality import Case, make_batch, program_of

from autoplan.errors import InputError
from autoplan.hardware import Cluster
from autoplan.hardware.calibrate import calibrated
from autoplan.hardware.measurement import Measurement
from autoplan.runtime.live_bytes import LiveBytes
from autoplan.runtime.timeline import Timeline

if TYPE_CHECKING:
    from ranks import Ranks

CASES = [
    Case(tp=2, dtype="fp32", seed=3, recompute="mixed"),
    Case(fsdp=2, zero=3, dtype="fp32"),
    Case(pp=2, dtype="fp32", num_micro_batches=4),
    Case(pp=2, dtype="fp32", num_micro_batches=4, vpp=2, schedule="zbv"),
]


def measured_and_not(case: Case) -> tuple[Measurement, bool]:
    """A measurement, and whether its steps left what as many plain ones leave, to the last bit."""
    program, plain = (program_of(case, cluster="cpu-gloo-4") for _ in range(2))
    batch = program.shard(make_batch(case.model, case.global_batch, 0))
    found = program.measure(batch, steps=2)
    for _ in range(4):
        plain.step(batch)
    mine, others = program.full_state_dict(), plain.full_state_dict()
    same = all(torch.equal(mine[name], others[name]) for name in others)
    return found, same and program.steps_done == plain.steps_done


@pytest.mark.parametrize("case", CASES, ids=["tp", "fsdp", "pp", "zbv"])
def test_every_part_is_seen(two: Ranks, case: Case) -> None:
    answers = two(measured_and_not, case)
    found, _ = answers[0]
    assert all(one == found for one, _ in answers) and all(same for _, same in answers)
    assert found.steps == 2 and found.world_size == 2 and found.predicted_step_s > 0
    for stage in found.stages:
        parts = {part.name: part.measured_s for part in stage.parts}
        assert min(parts[name] for name in ("forward", "backward", "optimizer")) > 0
        assert (parts["recompute"] > 0) == (case.recompute != "none")
        assert (parts["tp"] > 0, parts["fsdp"] > 0) == (case.tp > 1, case.fsdp > 1)
        assert (parts["waiting"] > 0) or case.pp == 1
        assert stage.memory_bytes > 0
    passes = {(c.name, c.phase): c.count for c in found.computed}
    assert passes["PlainBlock_0", "forward"] == passes["PlainBlock_0", "backward"]
    assert passes["PlainBlock_0", "forward"] == 4 * case.num_micro_batches / case.pp
    sent = {(s.axis, s.kind) for s in found.sent}
    wanted = {
        "tp": {("tp", "all_reduce")},
        "fsdp": {("fsdp", "all_gather"), ("fsdp", "reduce_scatter")},
        "pp": {("pp", "send_recv")},
    }
    assert wanted["tp" if case.tp > 1 else "fsdp" if case.fsdp > 1 else "pp"] <= sent
    assert "one collective" in str(found)
    mended = calibrated(Cluster.of("cpu-gloo-4", gpus=2), [_on_profile(found)])
    assert mended.curves


def _on_profile(found: Measurement) -> Measurement:
    """The measurement as if this machine were the profile's."""
    import msgspec

    return msgspec.structs.replace(found, device=Cluster.load("cpu-gloo-4").device.name)


def test_alone_and_refused() -> None:
    program = program_of(Case(dtype="fp32", num_micro_batches=2), cluster="cpu-gloo-4")
    batch = program.shard(make_batch("gpt", 2, 0))
    with pytest.raises(InputError, match="steps"):
        program.measure(batch, steps=0)
    found = program.measure(batch, steps=1, cluster=Cluster.of("cpu-gloo-4", gpus=1))
    assert not found.sent and len(found.stages) == 1
    held = sum(p.numel() * p.element_size() for p in program.parameters())
    assert found.stages[0].memory_bytes > 4 * held  # with gradients and two moments, and activations


def test_timeline_gives_every_moment_to_one_label(monkeypatch: pytest.MonkeyPatch) -> None:
    moments = iter([0.0, 1.0, 3.0, 6.0, 10.0, 15.0])
    monkeypatch.setattr("time.perf_counter", lambda: next(moments))
    timeline = Timeline(torch.device("cpu"))
    timeline.start()
    timeline.push("a")
    timeline.push("b")
    timeline.pop()
    timeline.turn("c")
    timing = timeline.stop()
    assert timing.total_s == 15.0
    assert timing.by_label == {"other": 1.0, "a": 2.0 + 4.0, "b": 3.0, "c": 5.0}


def test_live_bytes() -> None:
    kept = torch.zeros(1000, dtype=torch.float64)
    with LiveBytes([kept, kept[:10]]) as live:
        assert live.now == 8000
        made = kept + 1
        view = made.view(10, 100)
        del made
        assert live.now == 16000
        del view
        assert (live.now, live.peak) == (8000, 16000)
        live.restart()
        kept.untyped_storage().resize_(0)
        kept.untyped_storage().resize_(4000)
    assert (live.now, live.peak) == (4000, 8000)
