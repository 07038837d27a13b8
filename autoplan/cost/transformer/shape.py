"""A decoder-only transformer by its dimensions: what a price needs when there is no graph.

Every dimension may be a number, or an array with one entry for each configuration that is priced
together; ``moe`` and ``mla`` are structure and the same for all of them.

Letters in formulas: L layers, h hidden, a heads, g key heads, d head size, f width of an MLP, V rows of
the embedding, E experts.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

__all__ = ["Hybrid", "Latent", "Transformer"]


@dataclass(frozen=True, slots=True)
class Latent:
    """Multi-head latent attention (DeepSeek-V2, arXiv:2405.04434, section 2.1).

    Args:
        query_rank: width of the compressed query; 0 projects queries directly.
        key_rank: width of the compressed keys and values.
        plain, rotary: parts of a query's or key's head without and with a position.
        value: width of a value's head.
    """

    query_rank: int
    key_rank: int
    plain: int
    rotary: int
    value: int


@dataclass(frozen=True, slots=True)
class Hybrid:
    """Layers of one mixer each: attention, an MLP (or experts), or a state-space mixer (Mamba-2, Dao and Gu,
    2024, arXiv:2405.21060).

    Args:
        attention, mlp, ssm: shares of the layers; they add up to 1.
        heads, head_size: of the state-space mixer; their product is its inner width.
        groups, state: groups that share input and output maps, and the size of a head's state.
        chunk: tokens that are mixed by products at a time.
    """

    attention: float
    mlp: float
    ssm: float
    heads: int
    head_size: int
    groups: int
    state: int
    chunk: int = 128

    @property
    def width(self) -> int:
        return self.heads * self.head_size

    @property
    def columns(self) -> int:
        """Of the projection that makes gates, inputs, the maps of the groups, and step sizes."""
        return 2 * self.width + 2 * self.groups * self.state + self.heads

    @property
    def flops_per_token(self) -> float:
        """Forward, of the mixing itself: within a chunk (half of it causal), and through the states."""
        inside = self.chunk * (self.groups * self.state + self.width)
        return inside + 4 * self.width * self.state


@dataclass(frozen=True, slots=True)
class Transformer:
    """Dimensions of the model; see the module for the letters.

    Args:
        layers: blocks in all.
        ffn: width of a dense MLP.
        gated: an MLP has three matrices (SwiGLU, GeGLU) in place of two.
        vocabulary: rows of the embedding.
        tied: the output projection is the embedding.
        vectors: parameters of a layer's norms and biases, in units of h (RMSNorm: 2 without biases).
        positions: learned positions, rows; 0 for none.
        moe: some layers hold experts.
        experts, experts_per_token, expert_ffn: of a mixture layer.
        shared_ffn: width of the experts that every token visits, together.
        dense_layers: layers at the start without experts.
        mla: latent attention; None for ordinary heads.
        hybrid: layers have one mixer each; None where each has attention and an MLP. Properties of one
            layer are then those of the average layer.
        clamped: gates are clamped and experts have biases, in kernels of their own (gpt-oss).
    """

    layers: Any
    hidden: Any
    heads: Any
    key_heads: Any
    head_size: Any
    ffn: Any
    gated: Any
    vocabulary: Any
    tied: Any = False
    vectors: Any = 2.0
    positions: Any = 0
    moe: bool = False
    experts: Any = 0
    experts_per_token: Any = 0
    expert_ffn: Any = 0
    shared_ffn: Any = 0
    dense_layers: Any = 0
    mla: Latent | None = None
    hybrid: Hybrid | None = None
    clamped: Any = False

    @property
    def mlp_share(self) -> float:
        """Layers that have an MLP or experts, over all."""
        return 1.0 if self.hybrid is None else self.hybrid.mlp

    @property
    def attention_share(self) -> float:
        """Layers that have attention, over all."""
        return 1.0 if self.hybrid is None else self.hybrid.attention

    @property
    def matrices(self) -> Any:
        """Matrices of one MLP."""
        return 2 + np.asarray(self.gated, dtype=float)

    @property
    def attention_parameters(self) -> Any:
        """Matrix elements of one layer's attention, or of the average layer's mixers that are no MLP."""
        h, a = self.hidden, self.heads
        if self.hybrid is not None:
            ordinary = h * self.head_size * (2 * a + 2 * self.key_heads)
            mixer = h * (self.hybrid.columns + self.hybrid.width)
            return self.hybrid.attention * ordinary + self.hybrid.ssm * mixer
        if self.mla is None:
            return h * self.head_size * (2 * a + 2 * self.key_heads)
        m = self.mla
        head = m.plain + m.rotary
        query = h * m.query_rank + m.query_rank * a * head if m.query_rank else h * a * head
        key = h * (m.key_rank + m.rotary) + m.key_rank * a * (m.plain + m.value)
        return query + key + a * m.value * h

    @property
    def mlp_parameters(self) -> Any:
        """Matrix elements of a dense MLP."""
        return self.mlp_share * self.matrices * self.hidden * self.ffn

    @property
    def expert_parameters(self) -> Any:
        """Matrix elements of all routed experts of a layer."""
        return self.mlp_share * self.experts * self.matrices * self.hidden * self.expert_ffn

    @property
    def common_parameters(self) -> Any:
        """Matrix elements of a mixture layer beside its experts: the router and shared experts."""
        return self.mlp_share * self.hidden * (self.experts + self.matrices * self.shared_ffn)

    @property
    def vector_parameters(self) -> Any:
        """Norms and biases of a layer, and the norms inside latent attention."""
        inner = 0 if self.mla is None else self.mla.query_rank + self.mla.key_rank
        return self.vectors * self.hidden + inner

    @property
    def embedding_parameters(self) -> Any:
        return self.vocabulary * self.hidden

    @property
    def mixture_layers(self) -> Any:
        """Layers with experts."""
        return np.maximum(self.layers - self.dense_layers, 0) if self.moe else 0 * self.layers

    @property
    def parameters(self) -> Any:
        """Parameters in all."""
        layers, mixture = np.asarray(self.layers, dtype=float), self.mixture_layers
        each = np.asarray(self.attention_parameters + self.vector_parameters, dtype=float)
        total = layers * each + (layers - mixture) * self.mlp_parameters
        if self.moe:
            total = total + mixture * (self.expert_parameters + self.common_parameters)
        head = np.where(self.tied, 0, 1)
        final = np.where(self.gated, 1, 2) * self.hidden
        rows = np.asarray(self.embedding_parameters, dtype=float)
        return total + (1 + head) * rows + self.positions * self.hidden + final

    def forward_flops_per_token(self, seq: Any, *, full_attention: bool) -> Any:
        """FLOP of one token's forward pass: 2 for each matrix element it meets, and attention's
        ``4 s a d`` (half when causal); Narayanan et al., 2021, appendix."""
        mixture = self.mixture_layers
        met = self.layers * self.attention_parameters + (self.layers - mixture) * self.mlp_parameters
        if self.moe:
            active = self.mlp_share * self.experts_per_token * self.matrices * self.hidden * self.expert_ffn
            met = met + mixture * (active + self.common_parameters)
        scores = (
            self.layers * self.attention_share * self.attention_width * 2 * seq * (2 if full_attention else 1)
        )
        if self.hybrid is not None:
            scores = scores + self.layers * self.hybrid.ssm * self.hybrid.flops_per_token
        return 2 * (met + self.embedding_parameters) + scores

    @property
    def attention_width(self) -> Any:
        """a d; with latent attention, the mean of what the two products contract and make."""
        if self.mla is None:
            return self.heads * self.head_size
        return self.heads * (self.mla.plain + self.mla.rotary + self.mla.value) / 2
