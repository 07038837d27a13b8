"""Architectures of the zoo at tiny sizes: the graph has the model's parameters, loss, gradients, FLOPs and layers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from architectures import FLOPS_DIFFER, counted_flops, total_flops
from graph_runner import run
from torch import Tensor, nn
from zoo.architecture import Architecture
from zoo.decoders import DECODERS
from zoo.mixtures import MIXTURES
from zoo.recurrent import RECURRENT

from autoplan.graph.ir import ModelGraph
from autoplan.graph.trace import flatten_batch, trace

ALL = {architecture.name: architecture for architecture in (*DECODERS, *MIXTURES, *RECURRENT)}
QUICK = ("llama-3-8b", "gemma-2-9b", "gpt2-xl", "mixtral-8x22b", "deepseek-v3", "mamba-2.8b")
"""One of each kind: dense, alternating, fused weights, routed, latent attention with dense layers first, recurrent."""


def check(architecture: Architecture) -> ModelGraph:
    example = architecture.tiny()
    torch.manual_seed(0)
    model, batch = example.build(), example.batch(example.samples)
    graph = trace(model, batch, example.loss, device="cpu")
    assert graph.parameter_count == sum(p.numel() for p in model.parameters())
    names, tensors, _ = flatten_batch(batch)
    expected = loss_of(model, batch, example.loss)
    got = run(graph, model, dict(zip(names, tensors, strict=True)))[graph.loss]
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-6)
    same_gradients(model, got, expected)
    equal = total_flops(graph) == counted_flops(model, batch, example)
    assert equal == (architecture.name not in FLOPS_DIFFER)
    return graph


def loss_of(model: nn.Module, batch: Any, loss: Any) -> Tensor:
    output = model(**batch)
    return output.loss if loss is None else loss(output, batch)


def same_gradients(model: nn.Module, got: Tensor, expected: Tensor) -> None:
    parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
    ours, theirs = (
        torch.autograd.grad(value, list(parameters.values()), allow_unused=True, materialize_grads=True)
        for value in (got, expected)
    )
    for name, a, b in zip(parameters, ours, theirs, strict=True):
        scale = float(b.abs().max())
        torch.testing.assert_close(
            a, b, rtol=1e-4, atol=1e-5 * max(scale, 1e-3), msg=lambda text, n=name: f"{n}: {text}"
        )


def layers(model: nn.Module) -> int:
    """The length of the longest ModuleList: the model's depth."""
    return max(len(module) for module in model.modules() if isinstance(module, nn.ModuleList))


@pytest.mark.parametrize("name", QUICK)
def test_a_graph_is_its_model(name: str) -> None:
    graph = check(ALL[name])
    with torch.device("meta"):
        depth = layers(ALL[name].tiny().build())
    assert sum(unit.path.rpartition(".")[2].isdecimal() for unit in graph.units) == depth


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(ALL.keys() - set(QUICK)))
def test_every_graph_is_its_model(name: str) -> None:
    check(ALL[name])


def test_local_and_global_layers_alternate_as_two_kinds() -> None:
    example = ALL["gemma-3-12b"].tiny()
    with torch.device("meta"):
        graph = trace(example.build(), example.batch(2))
    kinds = [unit.kind for unit in graph.units if unit.path]
    local, whole = "Gemma3DecoderLayer_0", "Gemma3DecoderLayer_1"
    assert kinds == ([local] * 5 + [whole]) * 2
    (window,) = {op.window for op in graph.kinds[local].ops if op.window is not None}
    assert (window.keys, window.causal) == (8, True)
    assert {op.causal for op in graph.kinds[whole].ops if op.kind == "attention"} == {True}


def test_dense_layers_before_the_experts_are_a_kind_of_their_own() -> None:
    example = ALL["deepseek-v3"].tiny()
    with torch.device("meta"):
        graph = trace(example.build(), example.batch(2))
    kinds = [unit.kind for unit in graph.units if unit.path]
    assert kinds == ["DeepseekV3DecoderLayer_0"] * 2 + ["DeepseekV3DecoderLayer_1"] * 3
    grouped = [op for op in graph.kinds["DeepseekV3DecoderLayer_1"].ops if "grouped_mm" in op.target]
    assert [op.gemm.batch for op in grouped if op.gemm] == [8, 8]
