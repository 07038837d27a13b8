"""A byte-level GPT and its text, as any PyTorch user would write them: nothing here knows of autoplan.

10.8 M parameters at the default width; trained on the sources of Python's own standard library, which
are on every machine that can run this. Shape suffixes: B batch, S sequence, D width, V vocabulary.
"""

from __future__ import annotations

import hashlib
import sysconfig
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

VOCABULARY = 256
SKIPPED = {"site-packages", "__pycache__", "test", "tests", "idle_test"}


class ByteGPT(nn.Module):
    """(B, S) byte values → (B, S, V) logits of the byte that follows each."""

    def __init__(self, width: int = 384, layers: int = 6, heads: int = 6, longest: int = 256) -> None:
        super().__init__()
        self.wte = nn.Embedding(VOCABULARY, width)
        self.wpe = nn.Embedding(longest, width)
        self.h = nn.ModuleList(Layer(width, heads) for _ in range(layers))
        self.ln_f = nn.LayerNorm(width)
        self.lm_head = nn.Linear(width, VOCABULARY, bias=False)
        for name, parameter in self.named_parameters():
            if name.endswith("c_proj.weight"):
                nn.init.normal_(parameter, std=0.02 / (2 * layers) ** 0.5)
            elif parameter.dim() > 1:
                nn.init.normal_(parameter, std=0.02)

    def forward(self, tokens_BS: Tensor) -> Tensor:
        position_S = torch.arange(tokens_BS.shape[1], device=tokens_BS.device)
        x_BSD = self.wte(tokens_BS) + self.wpe(position_S)
        for layer in self.h:
            x_BSD = layer(x_BSD)
        return self.lm_head(self.ln_f(x_BSD))


class Layer(nn.Module):
    """Pre-norm attention and MLP."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.ln_1 = nn.LayerNorm(width)
        self.attn = Attention(width, heads)
        self.ln_2 = nn.LayerNorm(width)
        self.mlp = MLP(width)

    def forward(self, x_BSD: Tensor) -> Tensor:
        x_BSD = x_BSD + self.attn(self.ln_1(x_BSD))
        return x_BSD + self.mlp(self.ln_2(x_BSD))


class Attention(nn.Module):
    """Causal self-attention with one projection for queries, keys and values."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.width, self.heads = width, heads
        self.c_attn = nn.Linear(width, 3 * width)
        self.c_proj = nn.Linear(width, width)

    def forward(self, x_BSD: Tensor) -> Tensor:
        b, s, d = x_BSD.shape
        q, k, v = self.c_attn(x_BSD).split(self.width, dim=2)
        q = q.view(b, s, self.heads, d // self.heads).transpose(1, 2)
        k = k.view(b, s, self.heads, d // self.heads).transpose(1, 2)
        v = v.view(b, s, self.heads, d // self.heads).transpose(1, 2)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.c_proj(y.transpose(1, 2).contiguous().view(b, s, d))


class MLP(nn.Module):
    """Two layers with GELU between them."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.c_fc = nn.Linear(width, 4 * width)
        self.c_proj = nn.Linear(4 * width, width)

    def forward(self, x_BSD: Tensor) -> Tensor:
        return self.c_proj(F.gelu(self.c_fc(x_BSD)))


def next_byte_loss(logits_BSV: Tensor, tokens_BS: Tensor) -> Tensor:
    """Mean cross-entropy of each position against the next byte; the last position has none."""
    target_BS = F.pad(tokens_BS[:, 1:], (0, 1), value=-100)
    return F.cross_entropy(logits_BSV.view(-1, VOCABULARY), target_BS.reshape(-1), ignore_index=-100)


def example() -> tuple[nn.Module, Tensor, Callable[[Tensor, Tensor], Tensor]]:
    """Model, example batch and loss, for ``autoplan search benchmarks/byte_gpt.py:example``."""
    return ByteGPT(), torch.zeros(8, 64, dtype=torch.int64), next_byte_loss


@dataclass(frozen=True)
class Text:
    """The bytes to learn from, and batches of them by step number."""

    data: Tensor
    sha256: str

    @classmethod
    def of_standard_library(cls) -> Text:
        """Every ``.py`` of the standard library, tests left out, in the order of their paths."""
        root = Path(sysconfig.get_paths()["stdlib"])
        files = (path.relative_to(root) for path in root.rglob("*.py"))
        chosen = sorted(path.as_posix() for path in files if not SKIPPED.intersection(path.parts))
        data = b"\n".join((root / path).read_bytes() for path in chosen)
        return cls(torch.frombuffer(bytearray(data), dtype=torch.uint8), hashlib.sha256(data).hexdigest())

    def batch(self, step: int, samples: int, seq: int) -> Tensor:
        """(samples, seq) int64 byte values at random places: the same for the same step, everywhere."""
        generator = torch.Generator().manual_seed(step)
        start_B = torch.randint(0, len(self.data) - seq, (samples,), generator=generator)
        return self.data[start_B[:, None] + torch.arange(seq)].long()
