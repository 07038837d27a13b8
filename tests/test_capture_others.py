"""Everything that is no decoder-only language model, at tiny sizes: the graph has the model's parameters, loss, gradients, FLOPs."""

from __future__ import annotations

import copy
from collections import Counter
from typing import Any

import pytest
import torch
from architectures import FLOPS_DIFFER, counted_flops, total_flops
from graph_runner import run
from torch import Tensor, nn
from zoo.architecture import Architecture
from zoo.others import OTHERS
from zoo.plain import PLAIN

from autoplan.errors import TraceError
from autoplan.graph.ir import ModelGraph
from autoplan.graph.trace import flatten_batch, trace

ALL = {architecture.name: architecture for architecture in (*OTHERS, *PLAIN)}
REFUSED = {
    "led-base-16384": "modeling_led.py",
    "longformer-base-4096": "modeling_longformer.py",
    "switch-base-8": "modeling_switch_transformers.py",
    "wav2vec2-large": "ctc_loss",
    "bigbird-base": "numpy",
}
"""What forward does cannot be one program: branches on the data, code or numbers of its own. The place is named."""
QUICK = {
    "t5-3b": {"T5Block": 7},
    "bart-large": {"BartEncoderLayer": 2, "BartDecoderLayer": 3},
    "bert-large": {"BertLayer": 3},
    "albert-xxlarge": {"AlbertLayerGroup": 3},
    "deberta-v3-large": {"DebertaV2Layer": 3},
    "beit-large-16": {"BeitLayer": 3},
    "convnext-base": {"ConvNextLayer": 7},
    "clip-vit-base": {"CLIPEncoderLayer": 6},
    "llava-1.5-7b": {"CLIPEncoderLayer": 2, "LlamaDecoderLayer": 3},
    "whisper-large-v3": {"WhisperEncoderLayer": 2, "WhisperDecoderLayer": 3},
    "resnet-50": {"Bottleneck": 5},
    "unet": {"DoubleConv": 6},
    "dit-xl-2": {"DiTBlock": 3},
    "lstm": {"model": 1},
    "dlrm": {"model": 1},
    "gpt-by-hand": {"GPTBlock": 3},
    "gpt-by-einsum": {"GPTBlock": 3},
    "transformer-encoder": {"TransformerEncoderLayer": 3},
    "transformer": {"TransformerEncoderLayer": 2, "TransformerDecoderLayer": 2},
}
"""One of each kind, and how often its blocks are called."""
MEET = {"resnet-50", "clip-vit-base", "siglip-base", "segformer-b5", "patchtst", "transformer-encoder"}


def check(architecture: Architecture) -> ModelGraph:
    example = architecture.tiny()
    torch.manual_seed(0)
    model, batch = example.build(), example.batch(example.samples)
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    graph = trace(model, batch, example.loss, device="cpu")
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, state[name]), f"tracing changed {name}"
    assert graph.parameter_count == sum(p.numel() for p in model.parameters())
    twin = copy.deepcopy(model)
    torch.manual_seed(1)
    expected = loss_of(twin, batch, example.loss)
    names, tensors, _ = flatten_batch(batch)
    torch.manual_seed(1)
    got = run(graph, model, dict(zip(names, tensors, strict=True)))[graph.loss].reshape(())
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-6)
    theirs = gradients(twin, expected)
    for name, gradient in gradients(model, got).items():
        scale = max(float(theirs[name].abs().max()), 1e-3)
        torch.testing.assert_close(
            gradient, theirs[name], rtol=1e-4, atol=1e-5 * scale, msg=lambda text, n=name: f"{n}: {text}"
        )
    for (name, buffer), (_, other) in zip(model.named_buffers(), twin.named_buffers(), strict=True):
        torch.testing.assert_close(buffer, other, msg=lambda text, n=name: f"{n}: {text}")
    assert bool(graph.meetings) or architecture.name not in MEET
    equal = total_flops(graph) == counted_flops(twin, batch, example)
    assert equal == (architecture.name not in FLOPS_DIFFER)
    return graph


def loss_of(model: nn.Module, batch: Any, loss: Any) -> Tensor:
    output = model(**batch)
    if loss is not None:
        value = loss(output, batch)
    elif isinstance(output, Tensor):
        value = output
    else:
        value = output["loss"]
    return value.reshape(())


def gradients(model: nn.Module, loss: Tensor) -> dict[str, Tensor]:
    parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
    found = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True, materialize_grads=True)
    return dict(zip(parameters, found, strict=True))


@pytest.mark.parametrize("name", QUICK)
def test_a_graph_of_each_kind_is_the_model(name: str) -> None:
    graph = check(ALL[name])
    counts: Counter[str] = Counter()
    for unit in graph.units:
        counts[unit.kind.rpartition("_")[0] or unit.kind] += 1
    assert {kind: counts[kind] for kind in QUICK[name]} == QUICK[name]


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in ALL if name not in QUICK and name not in REFUSED])
def test_a_graph_is_the_model(name: str) -> None:
    check(ALL[name])


@pytest.mark.slow
@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_captured_is_refused_by_its_place(name: str) -> None:
    example = ALL[name].tiny()
    model, batch = example.build(), example.batch(example.samples)
    with pytest.raises(TraceError) as caught:
        trace(model, batch, example.loss)
    assert REFUSED[name] in str(caught.value)
    assert caught.value.remedy


def test_which_layers_run_may_not_be_drawn_at_random() -> None:
    from transformers import M2M100Config, M2M100ForConditionalGeneration

    config = M2M100Config(
        d_model=16, encoder_layers=2, decoder_layers=2, encoder_attention_heads=2, decoder_attention_heads=2,
        encoder_ffn_dim=16, decoder_ffn_dim=16, vocab_size=20, max_position_embeddings=16, encoder_layerdrop=0.2,
        use_cache=False,
    )  # fmt: skip
    with torch.device("meta"):
        model = M2M100ForConditionalGeneration(config)
        ids = torch.empty(2, 8, dtype=torch.int64)
    with pytest.raises(
        TraceError, match=r"a branch that is taken with probability 0\.2.*set the model's layer drop to 0"
    ):
        trace(model, {"input_ids": ids, "labels": ids})
