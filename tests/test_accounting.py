"""FLOPs, parameters and kept bytes of a traced graph are those that torch counts when the model really runs."""

from __future__ import annotations

import pytest
from accounted_models import MIXTURES, MODELS, PLAIN
from accounting import graph_flops, real_block_saved_bytes, real_flops, real_saved_bytes, run_loss
from torch import nn

from autoplan.graph.ir import ModelGraph, OpKind
from autoplan.graph.saved import saved_bytes
from autoplan.graph.trace import trace

DEFAULT = {
    *PLAIN, "llama-sdpa", "llama-eager", "qwen3-sdpa", "gemma3_text-sdpa", "phi3-sdpa", "gpt2-sdpa", "gpt2-eager",
    "falcon-sdpa", "gptj-eager", "mpt-eager", "opt-sdpa", "gpt_neox-eager", "bert-sdpa", "modernbert-eager",
    "bart-eager", "vit-sdpa", "vit-eager", "mixtral-eager", "deepseek_v3-eager",
}  # fmt: skip
"""Models of the default run; the rest are slow."""

INSIDE_WHEN_RUN = {"t5-sdpa"}
"""Models that make their mask anew in each block when they run, and once for all when they are exported."""

WHOLE = set(MODELS) - {
    f"{kind}-{attention}" for kind in ("t5", "bart", "bert", "gemma3_text", "gemma2") for attention in ("sdpa", "eager")
}  # fmt: skip
"""Models that between blocks make no constant that a graph keeps once and a run several times."""


def model_of(name: str) -> nn.Module:
    """The model as its FLOPs are counted: experts one after the other, as FlopCounterMode knows no grouped product."""
    model = MODELS[name]()[0]
    if name.rpartition("-")[0] in MIXTURES:
        model.set_experts_implementation("eager")  # type: ignore[operator]
    return model


@pytest.mark.parametrize(
    "name", [name if name in DEFAULT else pytest.param(name, marks=pytest.mark.slow) for name in MODELS]
)
def test_accounts_are_those_of_a_real_run(name: str) -> None:
    model, batch, loss = MODELS[name]()
    graph = trace(model, batch, loss, device="cpu")
    assert graph_flops(graph) == real_flops(model_of(name), batch, loss)
    assert graph.parameter_count == sum(p.numel() for p in model.parameters())
    assert_gemms_hold_the_flops(graph)
    paths = {unit.kind: unit.path for unit in reversed(graph.units) if unit.path}
    for kind, path in paths.items() if name not in INSIDE_WHEN_RUN else ():
        real = real_block_saved_bytes(MODELS[name]()[0], path, batch, loss)
        assert graph.kinds[kind].saved_bytes == real, kind
    if name in WHOLE:
        model, batch, loss = MODELS[name]()
        stay = [*model.parameters(), *model.buffers()]
        assert saved_bytes(graph) == real_saved_bytes(lambda: run_loss(model, batch, loss), stay)


def assert_gemms_hold_the_flops(graph: ModelGraph) -> None:
    """What the cost model prices a product by has the product's FLOPs."""
    for block in graph.kinds.values():
        for op in block.ops:
            if op.gemm is not None:
                products = 2 if op.kind is OpKind.ATTENTION else 1
                assert op.flops_forward == products * op.gemm.flops, op.target
