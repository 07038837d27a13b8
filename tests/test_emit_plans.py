"""Scripts of plans of every kind give the losses of their programs, bit for bit.

Both run in ranks that are there already; ``test_emit`` starts scripts as somebody would, where autoplan is not.
"""

from __future__ import annotations

import contextlib
import io
import re
import sys
import types
from pathlib import Path
from unittest.mock import patch

import own_ops
import pytest
import torch
import torch.distributed as dist
from case_lists import and_slow, case_name
from equality import SEQ, VOCAB, Case, make, make_batch, plan_for, traced
from ranks import Ranks

import autoplan
from autoplan.cli.main import main
from autoplan.emit import emit_script
from autoplan.graph.sources import load_source
from autoplan.graph.sources.sizes import SIZES, DecoderConfig
from autoplan.graph.trace import trace
from autoplan.plan import write_plan

STEPS = 3
_BUILD = '''
def build_model():
    """(model with weights, no example)."""
    from equality import make

    return make({model!r}, {dtype!r})[0], None
'''
_OWN = '''
def build_model():
    """(model with weights, no example)."""
    import own_ops

    return own_ops.OwnModel(), None
'''

_TWO = [
    Case("gpt", pp=2, dtype="fp32", recompute="mixed", num_micro_batches=3),
    Case("gpt", pp=2, schedule="zbv", vpp=2, num_micro_batches=3, dtype="fp32", policy="random"),
    Case("gpt", cp=2, cp_attention="ring", zero=2, dtype="fp32", seed=1),
    Case("moe", fsdp=2, ep=2, zero=3, dtype="fp32", recompute="full"),
]
_MORE_TWO = [
    Case("gpt-dropout", pp=2, schedule="gpipe", num_micro_batches=2),
    Case("gpt", pp=2, schedule="interleaved", vpp=2, num_micro_batches=3),
    Case("gpt-untied", pp=2, schedule="zb-h1", num_micro_batches=4, recompute="full"),
    Case("gpt", pp=2, schedule="dualpipe-v", vpp=2, num_micro_batches=5, recompute="mixed"),
    Case("gpt-dropout", cp=2, seed=2, cp_order="zigzag"),
    Case("gpt", cp=2, cp_attention="rows", policy="random", seed=9),
    Case("llama", cp=2, cp_attention="heads", zero=3, recompute="full"),
    Case("moe", dp=2, ep=2, policy="random", seed=2),
    Case("moe-odd", fsdp=2, ep=2, zero=1, micro_batch=2),
    Case("mixtral", tp=2, seed=1, dtype="fp32"),
    Case("gpt", dp=2, num_micro_batches=3),
]
_FOUR = [
    Case("gpt", pp=2, fsdp=2, zero=3, dtype="fp32", num_micro_batches=3),
    Case("gpt", pp=2, dp=2, schedule="zb-h1", num_micro_batches=4),
    Case("gpt", pp=2, tp=2, schedule="zb-h1", num_micro_batches=4, policy="random", seed=10),
    Case("gpt", pp=2, dp=2, schedule="interleaved", vpp=2, num_micro_batches=3),
    Case("gpt", pp=2, fsdp=2, zero=2, schedule="zbv", vpp=2, num_micro_batches=3, dtype="fp32"),
    Case("gpt", cp=2, tp=2, cp_attention="ring", seed=2, boundary="S(1)"),
    Case("moe-odd", fsdp=2, ep=2, tp=2, zero=3, seed=1),
    Case("moe", fsdp=2, ep=2, pp=2, zero=2, schedule="zb-h1"),
]


@pytest.mark.parametrize("case", and_slow(_TWO, _MORE_TWO), ids=case_name)
def test_two_ranks(two: Ranks, case: Case) -> None:
    _compare(two, case)


@pytest.mark.parametrize("case", and_slow([], _FOUR), ids=case_name)
def test_four_ranks(four: Ranks, case: Case) -> None:
    _compare(four, case)


def _compare(ranks: Ranks, case: Case) -> None:
    program, script = ranks(_losses, case)[0]
    assert script == program
    assert len(set(script)) == STEPS


def _losses(case: Case) -> tuple[list[str], list[str]]:
    """Those of the program and of the script, as rank 0 prints them."""
    graph = traced(case)
    plan = plan_for(graph, case)
    batches = [make_batch(case.model, case.global_batch, step, case.dtype) for step in range(STEPS)]
    model, loss = make(case.model, case.dtype)
    program = autoplan.parallelize(model, batches[0], loss, plan=plan, precision=case.dtype)
    expected = [repr(program.step(program.shard(batch)).item()) for batch in batches]
    script = emit_script(graph, plan, _BUILD.format(model=case.model, dtype=case.dtype), "A test.")
    return expected, _run(script, batches)


@pytest.mark.parametrize("policy", ["", "random"])
def test_one_process_with_ops_of_ones_own(policy: str) -> None:
    generator = torch.Generator().manual_seed(3)
    draws = torch.randn(STEPS, 2, 2, 6, 16, generator=generator)
    batches = [{"x": x, "y": y} for x, y in draws]
    graph = trace(own_ops.OwnModel(), batches[0])
    case = Case(micro_batch=2, num_micro_batches=1, dtype="fp32", policy=policy, recompute="mixed")
    plan = plan_for(graph, case)
    script = emit_script(graph, plan, _OWN, "A test.")
    torch.manual_seed(0)
    program = autoplan.parallelize(own_ops.OwnModel(), batches[0], plan=plan)
    assert _run(script, batches) == [repr(program.step(batch).item()) for batch in batches]


def _run(script: str, batches: list[dict[str, torch.Tensor]]) -> list[str]:
    emitted = types.ModuleType("emitted")
    said = io.StringIO()
    with (
        patch.dict(sys.modules, emitted=emitted),
        patch.object(dist, "init_process_group"),
        patch.object(dist, "destroy_process_group"),
        patch.object(sys, "argv", ["emitted", "--steps", str(STEPS)]),
        contextlib.redirect_stdout(said),
    ):
        exec(compile(script, "emitted.py", "exec"), emitted.__dict__)
        emitted.__dict__["batches"] = lambda example, file: batches
        emitted.__dict__["main"]()
    return re.findall(r"loss (\S+)", said.getvalue())


def test_a_built_in_size_brings_its_classes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shape = {
        "vocabulary": VOCAB,
        "hidden": 32,
        "layers": 2,
        "heads": 4,
        "key_heads": 2,
        "head_size": 8,
        "ffn": 48,
    }
    mixture = {"experts": 4, "experts_per_token": 2, "source": "a small Mixtral", "seq": SEQ}
    monkeypatch.setitem(SIZES, "tiny", DecoderConfig("rotary", **shape, **mixture))
    source, batches = load_source("tiny", None), [make_batch("moe", 2, step) for step in range(STEPS)]
    graph = trace(source.build(), source.example_batch(1), name="tiny")
    plan = plan_for(graph, Case(dtype="fp32"))
    write_plan(plan, tmp_path / "plan.json")
    assert main(["emit", f"{tmp_path}/plan.json", "--model", "tiny", "--out", f"{tmp_path}/alone.py"]) == 0
    script = (tmp_path / "alone.py").read_text()
    assert "class RotaryDecoder(nn.Module)" in script and "import autoplan" not in script
    torch.manual_seed(0)
    program = autoplan.parallelize(source.build(), batches[0], plan=plan)
    assert _run(script, batches) == [repr(program.step(batch).item()) for batch in batches]
