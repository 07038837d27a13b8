"""Traces: what Perfetto is given is what was simulated."""

from __future__ import annotations

import json
from collections import defaultdict
from itertools import pairwise
from typing import Any

import pytest

from autoplan.cost.pipeline import (
    SCHEDULES,
    Pass,
    Simulation,
    StageSeconds,
    StreamOp,
    compiled,
    memory_curves,
    peak_activation_bytes,
    run_streams,
    simulate,
    step_events,
    step_trace,
)

PP, M = 4, 8


def simulated(schedule: str) -> Simulation:
    vpp = SCHEDULES[schedule].vpp or 2
    chunks = PP * vpp
    return simulate(
        compiled(schedule, PP, vpp, M),
        StageSeconds(
            forward_s=[1.0 + 0.125 * c for c in range(chunks)],
            backward_s=[2.0] * chunks,
            weight_s=[1.0] * chunks,
            send_s=[0.25] * (chunks - 1),
            head_s=[0.5] * PP,
            tail_s=[0.75] * PP,
            reduce_s=[0.25] * chunks,
        ),
    )


def read(trace: dict[str, Any]) -> list[dict[str, Any]]:
    """Through JSON and back, as a reader sees it."""
    return json.loads(json.dumps(trace, allow_nan=False))["traceEvents"]


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_every_pass_and_send_is_there_once_and_rows_do_not_overlap(schedule: str) -> None:
    run = simulated(schedule)
    order = run.program.order
    rows = defaultdict(list)
    for record in read(step_trace(run)):
        if record["ph"] == "X":
            rows[record["pid"], record["tid"]].append((record["ts"], record["ts"] + record["dur"], record))
    names = [record["name"] for row in rows.values() for _, _, record in row]
    passes = sum(map(len, order.ranks))
    assert len(names) == passes + len(run.program.send_of) + 2 * PP + order.chunks
    assert len({(r["name"], r["pid"]) for row in rows.values() for _, _, r in row}) == len(names)
    for row in rows.values():
        row.sort(key=lambda item: item[:2])
        for (_, end, _), (start, _, _) in pairwise(row):
            assert start >= end - 1e-3
    assert max(end for row in rows.values() for _, end, _ in row) == pytest.approx(run.step_s * 1e6)


def test_names_and_rows() -> None:
    run = simulated("interleaved")
    records = read(step_trace(run))
    threads = {
        (r["pid"], r["tid"]): r["args"]["name"]
        for r in records
        if r["ph"] == "M" and r["name"] == "thread_name"
    }
    assert [threads[1, tid] for tid in range(5)] == [
        "compute",
        "communication",
        "gradients",
        "send to rank 0",
        "send to rank 2",
    ]
    found = next(r for r in records if r["name"] == "F5.3 chunk 1" and r["ph"] == "X")
    assert (found["pid"], threads[1, found["tid"]]) == (1, "compute")
    assert found["args"] == {"stage": 5, "pass": "F", "micro_batch": 3}
    one_chunk = {r["name"] for r in read(step_trace(simulated("1f1b")))}
    assert {"F3.1", "B3.1", "send F2.1", "send B3.1", "reduce 3", "after the last pass"} <= one_chunk


def test_arrows_lead_from_a_send_to_the_pass_that_it_feeds() -> None:
    records = read(step_trace(simulated("zbv")))
    slices = {(r["pid"], r["name"]): r for r in records if r["ph"] == "X"}
    starts, ends = ({r["id"]: r for r in records if r["ph"] == phase} for phase in "sf")
    assert starts.keys() == ends.keys()
    assert starts
    for number, start in starts.items():
        send = slices[start["pid"], start["name"]]
        assert start["ts"] == send["ts"]
        end = ends[number]
        assert end["ts"] >= send["ts"] + send["dur"] - 1e-3
        assert any(r["pid"] == end["pid"] and r["ts"] == end["ts"] and r["tid"] == 0 for r in slices.values())


def test_memory_is_counted_beside_what_is_always_held() -> None:
    run = simulated("zb-h1")
    kept = [8.0 + c for c in range(2 * PP)]
    records = read(step_trace(run, memory_curves(run, kept), [100.0] * PP))
    peak = peak_activation_bytes("zb-h1", PP, 2, M, kept)
    for rank in range(PP):
        counted = [r["args"] for r in records if r["ph"] == "C" and r["pid"] == rank]
        assert max(c["activations"] for c in counted) == peak[rank]
        assert counted[-1] == {"activations": 0.0, "all else": 100.0}


def test_ops_of_a_pass_lie_inside_it() -> None:
    run = simulated("1f1b")
    layers = [
        StreamOp("layer", 0.75),
        StreamOp("gather", 0.5, beside=True),
        StreamOp("tp", 0.25, waited=True),
    ]
    inside = {(0, Pass.FORWARD): run_streams(layers)}
    events = step_events(run, inside)
    outer = {e.action: e for e in events if e.name.startswith("F0.")}
    found = [e for e in events if e.name in ("layer", "gather", "tp")]
    assert len(found) == 3 * M
    for event in found:
        around = outer[event.action]
        assert around.start_s <= event.start_s < event.end_s <= around.end_s
        assert event.stream == ("compute" if event.name == "layer" else "communication")
