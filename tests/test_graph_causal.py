"""A mask that is causal becomes ``is_causal``, one that hides nothing goes; any other stays the tensor that it is."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from equality import SEQ, VOCAB, llama_loss, make, make_batch
from graph_runner import run
from torch import Tensor, nn

from autoplan.graph.ir import ModelGraph, Op, OpKind, Window
from autoplan.graph.trace import trace


def attention_ops(graph: ModelGraph) -> list[Op]:
    return [op for u in graph.units for op in graph.kinds[u.kind].ops if op.kind is OpKind.ATTENTION]


@pytest.mark.parametrize("samples", [1, 3])
@pytest.mark.parametrize("layers", [1, 4])
def test_hugging_face_s_mask_is_recognised(samples: int, layers: int) -> None:
    model, _ = make("llama", "fp32")
    model.model.layers = model.model.layers[:layers]
    graph = trace(model, make_batch("llama", samples, 0), llama_loss)
    assert [op.causal for op in attention_ops(graph)] == [True] * layers
    assert all(len(op.inputs) == 3 for op in attention_ops(graph))
    masks = [value for value in graph.free.values.values() if value.shape[-2:] == (SEQ, SEQ)]
    assert masks == []


def test_a_sliding_window_keeps_its_mask_and_is_told() -> None:
    from transformers import MistralConfig, MistralForCausalLM

    config = MistralConfig(
        hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=4,
        vocab_size=VOCAB, sliding_window=5, use_cache=False,
    )  # fmt: skip
    torch.manual_seed(0)
    model = MistralForCausalLM(config)
    batch = make_batch("llama", 2, 0)
    graph = trace(model, batch, llama_loss)
    pairs = sum(min(query + 1, 5) for query in range(SEQ))
    window = Window(5, pairs / SEQ**2, causal=True)
    assert [(op.causal, len(op.inputs), op.window) for op in attention_ops(graph)] == [(False, 4, window)] * 2
    got = run(graph, model, batch)[graph.loss]
    torch.testing.assert_close(got, llama_loss(model(**batch), batch))


class Masked(nn.Module):
    """Attention layers that share one mask; ``mask(size)`` makes it, in forward."""

    def __init__(
        self, mask: Callable[[int], Tensor], rest: Callable[[Tensor, Tensor], Tensor] | None = None
    ) -> None:
        super().__init__()
        self.layers = nn.ModuleList(MaskedLayer(rest) for _ in range(3))
        self.mask = mask

    def forward(self, x: Tensor) -> Tensor:
        mask = self.mask(x.shape[-2])
        for layer in self.layers:
            x = layer(x, mask)
        return x


class MaskedLayer(nn.Module):
    def __init__(self, rest: Callable[[Tensor, Tensor], Tensor] | None) -> None:
        super().__init__()
        self.q, self.kv = nn.Linear(8, 8), nn.Linear(8, 8)
        self.rest = rest

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        q, k = self.q(x).unsqueeze(1), self.kv(x).unsqueeze(1)
        y = F.scaled_dot_product_attention(q, k, k, attn_mask=mask).squeeze(1)
        return self.rest(y, mask) if self.rest else y


def causal(size: int) -> Tensor:
    return torch.ones(size, size, dtype=torch.bool).tril()


def prefix(size: int) -> Tensor:
    return causal(size) | (torch.arange(size) < 3)


@pytest.mark.parametrize(
    ("mask", "rest", "meaning"),
    [
        (causal, None, "causal"),
        (lambda size: causal(size)[None, None], None, "causal"),
        (lambda size: causal(size).expand(2, 1, size, size), None, "causal"),
        (lambda size: torch.stack([causal(size)] * 2).unsqueeze(1), None, "causal"),
        (prefix, None, Window(6, (3 + 3 + 3 + 4 + 5 + 6) / 36, causal=False)),
        (
            lambda size: causal(size) | torch.eye(size, dtype=torch.bool).roll(1, 1),
            None,
            Window(6, (2 + 3 + 4 + 5 + 6 + 6) / 36, causal=False),
        ),
        (lambda size: torch.stack([causal(size), prefix(size)]).unsqueeze(1), None, None),
        (lambda size: torch.ones(size, size, dtype=torch.bool), None, "all"),
        (lambda size: torch.zeros(size, size).masked_fill(~causal(size), -1e9), None, None),
        (
            lambda size: causal(size) & ~causal(size).roll(2, 0).tril(-2),
            None,
            Window(2, 11 / 36, causal=True),
        ),
        (lambda size: torch.rand(size, size) > 0, None, None),
        (causal, lambda y, mask: y * mask.sum(-1, keepdim=True), "causal"),
    ],
    ids=[
        "plain",
        "4-D",
        "expanded",
        "per sample",
        "prefix",
        "shifted",
        "one of two",
        "all",
        "additive",
        "sliding",
        "random",
        "used twice",
    ],
)
def test_what_a_mask_means(mask: Any, rest: Any, meaning: Any) -> None:
    torch.manual_seed(0)
    model, batch = Masked(mask, rest), torch.randn(2, 6, 8)

    def loss(out: Tensor, batch: Tensor) -> Tensor:
        return out.square().mean()

    graph = trace(model, batch, loss)
    assert {op.causal for op in attention_ops(graph)} == {meaning == "causal"}
    assert {op.window for op in attention_ops(graph)} == {meaning if isinstance(meaning, Window) else None}
    assert {len(op.inputs) for op in attention_ops(graph)} == {3 if isinstance(meaning, str) else 4}
    torch.testing.assert_close(run(graph, model, {"input": batch})[graph.loss], loss(model(batch), batch))


def test_a_mask_that_comes_with_the_batch_is_never_taken_for_causal() -> None:
    class Given(Masked):
        def forward(self, x: Tensor, mask: Tensor) -> Tensor:  # type: ignore[override]
            for layer in self.layers:
                x = layer(x, mask)
            return x

    batch = {"x": torch.randn(2, 6, 8), "mask": causal(6).expand(2, 1, 6, 6)}
    graph = trace(Given(causal), batch, lambda out, batch: out.mean())
    assert {op.causal for op in attention_ops(graph)} == {False}
