"""Weights that come from elsewhere: initialised shard by shard on ranks, or read from and written for Hugging Face."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from equality import SEQ, VOCAB, Case, PlainGPT, difference, gpt_loss, make_batch, optimizer_for, plan_for
from ranks import Ranks
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

import autoplan
from autoplan.errors import CheckpointError, ModelError
from autoplan.graph.trace import trace
from autoplan.plan import Precision
from autoplan.runtime import Program

SAMPLES = 4
CONFIG = LlamaConfig(
    hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=8, num_key_value_heads=4,
    vocab_size=VOCAB, max_position_embeddings=SEQ, tie_word_embeddings=True, initializer_range=0.1,
)  # fmt: skip


def _build(name: str) -> nn.Module:
    return LlamaForCausalLM(CONFIG) if name == "llama" else PlainGPT()


def _program(case: Case, device: str = "meta", seed: int = 3) -> Program:
    torch.manual_seed(seed)
    with torch.device(device):
        model = _build(case.model)
    loss = gpt_loss if case.model == "gpt" else None
    plan = plan_for(trace(model, make_batch(case.model, case.micro_batch, 0), loss, Precision.FP32), case)
    batch = make_batch(case.model, SAMPLES, 0)
    return autoplan.parallelize(model, batch, loss, optimizer_for("fp32"), plan=plan)


def _started(case: Case) -> tuple[dict[str, Tensor], float]:
    """The weights of a program whose model was on the meta device, and its first loss."""
    program = _program(case)
    assert not any(tensor.is_meta for tensor in program.state_dict().values())
    weights = {name: tensor.clone() for name, tensor in program.full_state_dict().items()}
    return weights, program.step(program.shard(make_batch(case.model, SAMPLES, 0))).item()


def _case(model: str, **degrees: Any) -> Case:
    micro_batches = SAMPLES // (degrees.get("dp", 1) * degrees.get("fsdp", 1))
    return Case(model, dtype="fp32", num_micro_batches=micro_batches, **degrees)


@pytest.mark.parametrize("model", ["llama", "gpt"])
def test_a_meta_model_starts_from_the_same_weights_under_every_plan(two: Ranks, model: str) -> None:
    alone, first = _started(_case(model))
    for case in (
        _case(model, tp=2, seed=4), _case(model, fsdp=2, zero=3), _case(model, pp=2, schedule="zbv", vpp=2)
    ):  # fmt: skip
        for weights, loss in two(_started, case):
            assert weights.keys() == alone.keys()
            assert all(torch.equal(weights[name], tensor) for name, tensor in alone.items())
            assert loss == pytest.approx(first, rel=1e-5)
    torch.manual_seed(0)
    for name, built in _build(model).named_parameters():  # spread as a model that was built with weights
        if built.dim() > 1:
            torch.testing.assert_close(alone[name].std(), built.std(), rtol=0.3, atol=0)
        elif "ln" in name or "norm" in name:
            assert torch.equal(alone[name], built)


class _Scaled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 8)
        self.scale = nn.Parameter(torch.ones(8))

    def forward(self, x: Tensor) -> Tensor:
        return (self.linear(x) * self.scale).square().mean()


def test_what_nothing_initialises_is_named() -> None:
    with torch.device("meta"):
        model = _Scaled()
    plan = plan_for(
        trace(model, torch.zeros(4, 8), None, Precision.FP32),
        Case(micro_batch=4, num_micro_batches=1, dtype="fp32"),
    )
    with pytest.raises(ModelError, match=r"model.scale: .*reset_parameters\(\) of _Scaled"):
        autoplan.parallelize(model, torch.zeros(4, 8), plan=plan)


def _exported(case: Case, directory: str, source: str) -> dict[str, Tensor]:
    """Read ``source``, write ``directory``; the weights in between."""
    program = _program(case)
    program.load_safetensors(source)
    program.save_safetensors(directory, file_bytes=20_000)
    return program.full_state_dict()


def test_hugging_face_reads_what_any_plan_writes_and_the_other_way_round(
    four: Ranks, two: Ranks, tmp_path: Path
) -> None:
    torch.manual_seed(11)
    model = LlamaForCausalLM(CONFIG)
    expected = dict(model.named_parameters())
    source = tmp_path / "source"
    model.save_pretrained(source, max_shard_size="30KB")
    assert len(list(source.glob("*.safetensors"))) > 1
    for pool, case in (
        (four, _case("llama", fsdp=2, tp=2, zero=3, seed=6)),
        (two, _case("llama", pp=2, schedule="zbv", vpp=2)),
        (None, _case("llama")),
    ):
        written = tmp_path / f"{case.pp}-{case.tp}"
        arguments = (case, str(written), str(source))
        for weights in [_exported(*arguments)] if pool is None else pool(_exported, *arguments):
            assert difference(weights, expected) == 0
        CONFIG.save_pretrained(written)
        again = LlamaForCausalLM.from_pretrained(written)
        assert difference(dict(again.named_parameters()), expected) == 0
        assert not [file for file in written.iterdir() if file.name.endswith(".saving")]
        source = written


def _refused(source: str) -> str:
    program = _program(_case("gpt", dp=2), "cpu")
    before = program.full_state_dict()
    with pytest.raises(CheckpointError) as caught:
        program.load_safetensors(source)
    assert difference(program.full_state_dict(), before) == 0
    return str(caught.value)


def test_damaged_weights_are_refused_on_every_rank(two: Ranks, tmp_path: Path) -> None:
    program = _program(_case("gpt"), "cpu")
    program.save_safetensors(tmp_path, file_bytes=40_000)
    files = sorted(tmp_path.glob("*.safetensors"))
    index = tmp_path / "model.safetensors.index.json"
    whole = json.loads(index.read_text())
    index.write_text(
        json.dumps({"weight_map": {k: v for k, v in whole["weight_map"].items() if "ln_f" not in k}})
    )
    assert "no tensor ln_f." in two(_refused, str(tmp_path))[0]
    index.write_text("[")
    assert str(index) in two(_refused, str(tmp_path))[1]
    index.write_text(json.dumps(whole))
    os.truncate(files[-1], 100)
    first, second = two(_refused, str(tmp_path))
    assert first == second
    assert first.startswith(str(files[-1]))
