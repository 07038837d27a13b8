"""Small models for what people read: two kinds of block in turns, a tied head, keyword inputs."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional


class Mixer(nn.Module):
    """Attention written by hand with einsum, over all tokens or within windows of ``window``."""

    def __init__(self, width: int, heads: int, window: int | None, drop: float = 0.0) -> None:
        super().__init__()
        self.drop = drop
        self.heads = heads
        self.window = window
        self.norm = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, width = x.shape
        window = self.window or tokens
        shape = (batch * tokens // window, window, self.heads, width // self.heads)
        q, k, v = (part.reshape(shape) for part in self.qkv(self.norm(x)).chunk(3, dim=-1))
        scores = torch.einsum("bqhd,bkhd->bhqk", q, k) * shape[-1] ** -0.5
        mixed = torch.einsum("bhqk,bkhd->bqhd", scores.softmax(-1), v)
        y = self.out(mixed.reshape(batch, tokens, width))
        return x + (functional.dropout(y, self.drop, self.training) if self.drop else y)


class Windows(nn.Module):
    """Every second layer looks at all tokens, the others at windows of four."""

    def __init__(self, drop: float = 0.0) -> None:
        super().__init__()
        self.embed = nn.Embedding(128, 32)
        self.layers = nn.ModuleList(Mixer(32, 4, None if i % 2 else 4, drop) for i in range(6))
        self.head = nn.Linear(32, 128, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, tokens: Tensor, targets: Tensor) -> Tensor:
        x = self.embed(tokens)
        for layer in self.layers:
            x = layer(x)
        return functional.cross_entropy(self.head(x).flatten(0, 1), targets.flatten())


def windows() -> tuple[nn.Module, dict[str, Tensor]]:
    """A factory, as ``autoplan graph tests/small_models.py:windows`` reads it."""
    tokens = torch.zeros(2, 16, dtype=torch.long)
    return Windows(), {"tokens": tokens, "targets": tokens}


def dropping() -> tuple[nn.Module, dict[str, Tensor]]:
    """The same with dropout."""
    return Windows(0.2), windows()[1]
