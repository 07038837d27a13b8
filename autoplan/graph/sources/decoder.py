"""A decoder-only transformer of the Llama kind, in plain PyTorch: Llama, Mistral, Qwen, Mixtral.

Shape suffixes: B batch, S sequence, D model width, N query heads, G key heads, H head size, F MLP width,
V vocabulary.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from autoplan.graph.sources.loss import next_token_loss
from autoplan.graph.sources.moe import MixtureOfExperts
from autoplan.graph.sources.sizes import DecoderConfig

__all__ = ["RotaryDecoder"]


class RotaryDecoder(nn.Module):
    """Token ids and labels in, mean next-token cross-entropy out.

    Parameters carry the names of Hugging Face's ``LlamaForCausalLM`` without its leading ``model.``.
    """

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.config = config
        self.embed_tokens = nn.Embedding(config.vocabulary, config.hidden)
        self.layers = nn.ModuleList(DecoderLayer(config) for _ in range(config.layers))
        self.norm = RMSNorm(config.hidden, config.norm_eps)
        self.lm_head = nn.Linear(config.hidden, config.vocabulary, bias=False)
        if config.tied:
            self.lm_head.weight = self.embed_tokens.weight

    def forward(self, input_ids: Tensor, labels: Tensor) -> Tensor:
        """(B, S) ids and labels (-100: ignored) → scalar loss."""
        x_BSD = self.embed_tokens(input_ids)
        cos_SH, sin_SH = rotary_table(input_ids.shape[1], self.config, x_BSD)
        for layer in self.layers:
            x_BSD = layer(x_BSD, cos_SH, sin_SH)
        return next_token_loss(self.lm_head(self.norm(x_BSD)), labels)


class DecoderLayer(nn.Module):
    """Pre-norm attention and MLP, each added to the residual stream."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(config.hidden, config.norm_eps)
        self.self_attn = Attention(config)
        self.post_attention_layernorm = RMSNorm(config.hidden, config.norm_eps)
        self.mlp = MixtureOfExperts(config) if config.experts else SwiGLU(config)

    def forward(self, x_BSD: Tensor, cos_SH: Tensor, sin_SH: Tensor) -> Tensor:
        x_BSD = x_BSD + self.self_attn(self.input_layernorm(x_BSD), cos_SH, sin_SH)
        return x_BSD + self.mlp(self.post_attention_layernorm(x_BSD))


class Attention(nn.Module):
    """Causal attention with rotary positions and grouped keys."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.head_size = config.head_size
        self.queries_per_key = config.heads // config.key_heads
        queries, keys = config.heads * config.head_size, config.key_heads * config.head_size
        self.q_proj = nn.Linear(config.hidden, queries, bias=config.qkv_bias)
        self.k_proj = nn.Linear(config.hidden, keys, bias=config.qkv_bias)
        self.v_proj = nn.Linear(config.hidden, keys, bias=config.qkv_bias)
        self.o_proj = nn.Linear(queries, config.hidden, bias=False)

    def forward(self, x_BSD: Tensor, cos_SH: Tensor, sin_SH: Tensor) -> Tensor:
        q_BNSH = rotated(self._heads(self.q_proj(x_BSD)), cos_SH, sin_SH)
        k_BGSH = rotated(self._heads(self.k_proj(x_BSD)), cos_SH, sin_SH)
        v_BGSH = self._heads(self.v_proj(x_BSD))
        k_BNSH = repeated(k_BGSH, self.queries_per_key)
        v_BNSH = repeated(v_BGSH, self.queries_per_key)
        out_BNSH = F.scaled_dot_product_attention(q_BNSH, k_BNSH, v_BNSH, is_causal=True)
        return self.o_proj(out_BNSH.transpose(1, 2).reshape(x_BSD.shape[0], x_BSD.shape[1], -1))

    def _heads(self, x_BSD: Tensor) -> Tensor:
        b, s, _ = x_BSD.shape
        return x_BSD.view(b, s, -1, self.head_size).transpose(1, 2)


class SwiGLU(nn.Module):
    """Gated MLP (arXiv:2002.05202)."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden, config.ffn, bias=False)
        self.up_proj = nn.Linear(config.hidden, config.ffn, bias=False)
        self.down_proj = nn.Linear(config.ffn, config.hidden, bias=False)

    def forward(self, x_BSD: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x_BSD)) * self.up_proj(x_BSD))


class RMSNorm(nn.Module):
    """Root-mean-square norm with a gain (arXiv:1910.07467)."""

    def __init__(self, hidden: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(hidden))

    def forward(self, x_BSD: Tensor) -> Tensor:
        return F.rms_norm(x_BSD, self.weight.shape, self.weight, self.eps)


def rotary_table(seq: int, config: DecoderConfig, like: Tensor) -> tuple[Tensor, Tensor]:
    """Cosines and sines of the rotary angles, each (S, H), in the dtype and on the device of ``like``.

    Angle of position t and pair i: t · theta^(-2i/H) (arXiv:2104.09864, equation 15); both halves of a
    head share the angles, as in Hugging Face's Llama.
    """
    exponent_H = (
        torch.arange(0, config.head_size, 2, device=like.device, dtype=torch.float32) / config.head_size
    )
    frequency_H = config.rope_theta**-exponent_H
    position_S = torch.arange(seq, device=like.device, dtype=torch.float32)
    angle_SH = (position_S[:, None] * frequency_H).repeat(1, 2)
    return angle_SH.cos().to(like.dtype), angle_SH.sin().to(like.dtype)


def rotated(x_BNSH: Tensor, cos_SH: Tensor, sin_SH: Tensor) -> Tensor:
    """Each head turned by its position's angles: the first half of a head pairs with the second."""
    half = x_BNSH.shape[-1] // 2
    first, second = x_BNSH[..., :half], x_BNSH[..., half:]
    return x_BNSH * cos_SH + torch.cat((-second, first), dim=-1) * sin_SH


def repeated(x_BGSH: Tensor, times: int) -> Tensor:
    """Each key head ``times`` times in a row: (B, G, S, H) → (B, G·times, S, H)."""
    if times == 1:
        return x_BGSH
    b, g, s, h = x_BGSH.shape
    return x_BGSH[:, :, None].expand(b, g, times, s, h).reshape(b, g * times, s, h)
