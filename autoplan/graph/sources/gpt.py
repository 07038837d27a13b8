"""A decoder-only transformer of the GPT-2 and GPT-3 kind, in plain PyTorch.

Queries, keys and values have a projection each, where OpenAI fused them: the numbers and the FLOPs are
the same, and each can be cut by heads. Shape suffixes: see ``decoder.py``.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from autoplan.graph.sources.loss import next_token_loss
from autoplan.graph.sources.sizes import DecoderConfig

__all__ = ["GPTDecoder"]


class GPTDecoder(nn.Module):
    """Token ids and labels in, mean next-token cross-entropy out."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.wte = nn.Embedding(config.vocabulary, config.hidden)
        self.wpe = nn.Embedding(config.seq, config.hidden)
        self.h = nn.ModuleList(GPTLayer(config) for _ in range(config.layers))
        self.ln_f = nn.LayerNorm(config.hidden, config.norm_eps)
        self.lm_head = nn.Linear(config.hidden, config.vocabulary, bias=False)
        if config.tied:
            self.lm_head.weight = self.wte.weight

    def forward(self, input_ids: Tensor, labels: Tensor) -> Tensor:
        """(B, S) ids and labels (-100: ignored) → scalar loss."""
        position_S = torch.arange(input_ids.shape[1], device=input_ids.device)
        x_BSD = self.wte(input_ids) + self.wpe(position_S)
        for layer in self.h:
            x_BSD = layer(x_BSD)
        return next_token_loss(self.lm_head(self.ln_f(x_BSD)), labels)


class GPTLayer(nn.Module):
    """Pre-norm attention and MLP, each added to the residual stream."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.ln_1 = nn.LayerNorm(config.hidden, config.norm_eps)
        self.attn = GPTAttention(config)
        self.ln_2 = nn.LayerNorm(config.hidden, config.norm_eps)
        self.mlp = GPTMLP(config)

    def forward(self, x_BSD: Tensor) -> Tensor:
        x_BSD = x_BSD + self.attn(self.ln_1(x_BSD))
        return x_BSD + self.mlp(self.ln_2(x_BSD))


class GPTAttention(nn.Module):
    """Causal attention with biases."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.head_size = config.head_size
        self.q_proj = nn.Linear(config.hidden, config.hidden)
        self.k_proj = nn.Linear(config.hidden, config.hidden)
        self.v_proj = nn.Linear(config.hidden, config.hidden)
        self.c_proj = nn.Linear(config.hidden, config.hidden)

    def forward(self, x_BSD: Tensor) -> Tensor:
        q_BNSH, k_BNSH, v_BNSH = (
            self._heads(proj(x_BSD)) for proj in (self.q_proj, self.k_proj, self.v_proj)
        )
        out_BNSH = F.scaled_dot_product_attention(q_BNSH, k_BNSH, v_BNSH, is_causal=True)
        return self.c_proj(out_BNSH.transpose(1, 2).reshape(x_BSD.shape[0], x_BSD.shape[1], -1))

    def _heads(self, x_BSD: Tensor) -> Tensor:
        b, s, _ = x_BSD.shape
        return x_BSD.view(b, s, -1, self.head_size).transpose(1, 2)


class GPTMLP(nn.Module):
    """Two layers with the tanh form of GELU, as OpenAI's code has it."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.c_fc = nn.Linear(config.hidden, config.ffn)
        self.c_proj = nn.Linear(config.ffn, config.hidden)

    def forward(self, x_BSD: Tensor) -> Tensor:
        return self.c_proj(F.gelu(self.c_fc(x_BSD), approximate="tanh"))
