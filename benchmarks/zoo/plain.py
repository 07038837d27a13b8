"""Models in plain PyTorch, as people write them: no transformers, no torchvision.

Vision (ResNet-50, a U-Net), recurrent, recommendation and diffusion models, and small GPTs that differ in how they are
written: attention by hand, by einsum, by ``nn.MultiheadAttention``, by ``nn.TransformerEncoder``.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.architecture import Architecture, Example

__all__ = ["PLAIN"]


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy(logits.flatten(0, -2), labels.flatten())


# Vision


class Bottleneck(nn.Module):
    """A residual block of ResNet (arXiv:1512.03385, section 4.1): the first of a layer changes width and stride."""

    def __init__(self, inner: int, width: int, stride: int, wider: int = 4) -> None:
        super().__init__()
        outer = wider * width
        self.conv1, self.bn1 = nn.Conv2d(inner, width, 1, bias=False), nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3, self.bn3 = nn.Conv2d(width, outer, 1, bias=False), nn.BatchNorm2d(outer)
        self.downsample = None
        if stride != 1 or inner != outer:
            self.downsample = nn.Sequential(
                nn.Conv2d(inner, outer, 1, stride, bias=False), nn.BatchNorm2d(outer)
            )

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x)))
        y = F.relu(self.bn2(self.conv2(y)))
        y = self.bn3(self.conv3(y))
        return F.relu(y + (x if self.downsample is None else self.downsample(x)))


class ResNet(nn.Module):
    def __init__(self, depths: tuple[int, ...], width: int, classes: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        inner = width
        for number, depth in enumerate(depths):
            blocks = []
            for index in range(depth):
                blocks.append(Bottleneck(inner, width << number, 2 if number and not index else 1))
                inner = 4 * (width << number)
            self.add_module(f"layer{number + 1}", nn.Sequential(*blocks))
        self.layers = len(depths)
        self.fc = nn.Linear(inner, classes)

    def forward(self, images: Tensor, labels: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu(self.bn1(self.conv1(images))), 3, 2, 1)
        for number in range(self.layers):
            x = getattr(self, f"layer{number + 1}")(x)
        return F.cross_entropy(self.fc(x.mean((2, 3))), labels)


class DoubleConv(nn.Module):
    def __init__(self, inner: int, outer: int) -> None:
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(inner, outer, 3, padding=1), nn.GroupNorm(8, outer)
        self.conv2, self.norm2 = nn.Conv2d(outer, outer, 3, padding=1), nn.GroupNorm(8, outer)

    def forward(self, x: Tensor) -> Tensor:
        return F.silu(self.norm2(self.conv2(F.silu(self.norm1(self.conv1(x))))))


class UNet(nn.Module):
    """Each level's features are kept and joined again on the way up (arXiv:1505.04597, figure 1)."""

    def __init__(self, channels: int, levels: int, classes: int) -> None:
        super().__init__()
        widths = [channels << level for level in range(levels + 1)]
        self.first = DoubleConv(3, widths[0])
        self.down = nn.ModuleList(DoubleConv(a, b) for a, b in itertools.pairwise(widths))
        self.grow = nn.ModuleList(nn.ConvTranspose2d(b, a, 2, 2) for a, b in itertools.pairwise(widths))
        self.up = nn.ModuleList(DoubleConv(2 * a, a) for a in widths[:-1])
        self.last = nn.Conv2d(widths[0], classes, 1)

    def forward(self, images: Tensor) -> Tensor:
        x = self.first(images)
        kept = []
        for down in self.down:
            kept.append(x)
            x = down(F.max_pool2d(x, 2))
        for grow, up in zip(reversed(self.grow), reversed(self.up), strict=True):
            x = up(torch.cat([kept.pop(), grow(x)], 1))
        return self.last(x)


class DiTBlock(nn.Module):
    """Attention and MLP, scaled and shifted by what the time step and the class say (arXiv:2212.09748, figure 3)."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1 = nn.LayerNorm(width, elementwise_affine=False)
        self.norm2 = nn.LayerNorm(width, elementwise_affine=False)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU("tanh"), nn.Linear(4 * width, width))
        self.modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 6 * width))

    def forward(self, x: Tensor, *, condition: Tensor) -> Tensor:
        shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = self.modulation(condition)[:, None].chunk(6, -1)
        b, s, c = x.shape
        y = self.norm1(x) * (1 + scale_a) + shift_a
        q, k, v = self.qkv(y).view(b, s, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, s, c)
        x = x + gate_a * self.out(y)
        return x + gate_m * self.mlp(self.norm2(x) * (1 + scale_m) + shift_m)


class DiT(nn.Module):
    def __init__(self, size: int, patch: int, width: int, depth: int, heads: int, classes: int) -> None:
        super().__init__()
        self.width = width
        self.patch = nn.Conv2d(4, width, patch, patch)
        self.register_buffer("positions", torch.randn(1, (size // patch) ** 2, width) * 0.02)
        self.time = nn.Sequential(nn.Linear(256, width), nn.SiLU(), nn.Linear(width, width))
        self.label = nn.Embedding(classes + 1, width)
        self.blocks = nn.ModuleList(DiTBlock(width, heads) for _ in range(depth))
        self.norm = nn.LayerNorm(width, elementwise_affine=False)
        self.last = nn.Linear(width, patch * patch * 4)

    def forward(self, latents: Tensor, noise: Tensor, time: Tensor, label: Tensor) -> Tensor:
        frequency = torch.exp(-math.log(10_000) * torch.arange(128, device=time.device) / 128)
        angle = time[:, None].float() * frequency
        wave = torch.cat([angle.cos(), angle.sin()], -1).to(latents.dtype)
        condition = self.time(wave) + self.label(label)
        level = torch.cos(time.to(latents.dtype) / 1000)[:, None, None, None]
        x = level * latents + (1 - level) * noise
        x = self.patch(x).flatten(2).transpose(1, 2) + self.positions
        for block in self.blocks:
            x = block(x, condition=condition)
        b, c, h, w = latents.shape
        out = self.last(self.norm(x)).view(b, -1, c).transpose(1, 2).reshape(b, c, h, w)
        return F.mse_loss(out, noise)


# Recurrent, recommendation


class LSTMLanguageModel(nn.Module):
    def __init__(self, vocabulary: int, width: int, layers: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, width)
        self.lstm = nn.LSTM(width, width, layers, batch_first=True, dropout=0.1)
        self.head = nn.Linear(width, vocabulary)

    def forward(self, ids: Tensor, labels: Tensor) -> dict[str, Tensor]:
        hidden, _ = self.lstm(self.embedding(ids))
        logits = self.head(hidden)
        return {"loss": cross_entropy(logits, labels), "logits": logits}


class DLRM(nn.Module):
    """Dense features through an MLP, sparse ones through tables, and all pairs of them (arXiv:1906.00091)."""

    def __init__(self, dense: int, tables: int, rows: int, width: int, hidden: int) -> None:
        super().__init__()
        self.bottom = nn.Sequential(nn.Linear(dense, hidden), nn.ReLU(), nn.Linear(hidden, width), nn.ReLU())
        self.tables = nn.ModuleList(nn.Embedding(rows, width) for _ in range(tables))
        pairs = (tables + 1) * tables // 2
        self.register_buffer("pairs", torch.ones(tables + 1, tables + 1).tril(-1).flatten().nonzero().flatten()
                             if torch.get_default_device().type != "meta" else torch.empty(pairs, dtype=torch.int64))  # fmt: skip
        self.top = nn.Sequential(nn.Linear(width + pairs, hidden), nn.ReLU(), nn.Linear(hidden, 1))

    def forward(self, dense: Tensor, sparse: Tensor) -> Tensor:
        x = self.bottom(dense)
        rows = [table(sparse[:, index]) for index, table in enumerate(self.tables)]
        z = torch.stack([x, *rows], 1)
        products = torch.bmm(z, z.transpose(1, 2)).flatten(1).index_select(1, self.pairs)
        return self.top(torch.cat([x, products], 1)).squeeze(1)


# Language models, each written another way


class HandAttention(nn.Module):
    """Scores, mask and softmax spelled out; the mask is a buffer."""

    def __init__(self, width: int, heads: int, seq: int) -> None:
        super().__init__()
        self.heads = heads
        self.c_attn, self.c_proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.dropout = nn.Dropout(0.1)
        self.register_buffer("bias", torch.ones(seq, seq).tril().view(1, 1, seq, seq))

    def forward(self, x: Tensor) -> Tensor:
        b, s, c = x.shape
        q, k, v = (
            t.view(b, s, self.heads, c // self.heads).transpose(1, 2) for t in self.c_attn(x).split(c, 2)
        )
        scores = (q @ k.transpose(-2, -1)) / math.sqrt(q.shape[-1])
        scores = scores.masked_fill(self.bias[:, :, :s, :s] == 0, float("-inf"))
        y = self.dropout(scores.softmax(-1)) @ v
        return self.c_proj(y.transpose(1, 2).contiguous().view(b, s, c))


class EinsumAttention(nn.Module):
    """One projection a head, all by einsum."""

    def __init__(self, width: int, heads: int, seq: int) -> None:
        super().__init__()
        self.qkv_CDHE = nn.Parameter(torch.randn(3, width, heads, width // heads) * width**-0.5)
        self.out_HED = nn.Parameter(torch.randn(heads, width // heads, width) * width**-0.5)

    def forward(self, x_BSD: Tensor) -> Tensor:
        q, k, v = torch.einsum("bsd,cdhe->cbshe", x_BSD, self.qkv_CDHE)
        scores = torch.einsum("bqhe,bkhe->bhqk", q, k) * q.shape[-1] ** -0.5
        s = x_BSD.shape[1]
        mask = torch.ones(s, s, dtype=torch.bool, device=x_BSD.device).tril()
        weights = torch.where(mask, scores, torch.finfo(scores.dtype).min).softmax(-1)
        y = torch.einsum("bhqk,bkhe->bqhe", weights, v)
        return torch.einsum("bqhe,hed->bqd", y, self.out_HED)


class StockAttention(nn.Module):
    """``nn.MultiheadAttention`` with a mask that forward makes."""

    def __init__(self, width: int, heads: int, seq: int) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(width, heads, dropout=0.1, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        s = x.shape[1]
        mask = torch.ones(s, s, dtype=torch.bool, device=x.device).triu(1)
        return self.attention(x, x, x, attn_mask=mask, need_weights=False)[0]


class GPTBlock(nn.Module):
    def __init__(self, attention: nn.Module, width: int) -> None:
        super().__init__()
        self.ln_1, self.attn, self.ln_2 = nn.LayerNorm(width), attention, nn.LayerNorm(width)
        self.mlp = nn.Sequential(
            nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width), nn.Dropout(0.1)
        )

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.ln_1(x))
        return x + self.mlp(self.ln_2(x))


class GPT(nn.Module):
    """Learned positions; keyword inputs; returns (logits, loss). ``tied`` shares the embedding with the head."""

    def __init__(
        self, attention: Callable[..., nn.Module], vocabulary: int, width: int, layers: int, heads: int, seq: int,
        tied: bool,
    ) -> None:  # fmt: skip
        super().__init__()
        self.wte, self.wpe = nn.Embedding(vocabulary, width), nn.Embedding(seq, width)
        self.h = nn.ModuleList(GPTBlock(attention(width, heads, seq), width) for _ in range(layers))
        self.ln_f = nn.LayerNorm(width)
        self.head = nn.Linear(width, vocabulary, bias=False)
        if tied:
            self.head.weight = self.wte.weight

    def forward(self, *, ids: Tensor, targets: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        x = self.wte(ids) + self.wpe(torch.arange(ids.shape[1], device=ids.device))
        for block in self.h:
            x = block(x)
        logits = self.head(self.ln_f(x))
        return logits, None if targets is None else cross_entropy(logits, targets)


class EncoderClassifier(nn.Module):
    """``nn.TransformerEncoder`` with a padding mask, and two heads: several outputs, two losses."""

    def __init__(self, vocabulary: int, width: int, layers: int, heads: int, seq: int, classes: int) -> None:
        super().__init__()
        self.embedding, self.positions = nn.Embedding(vocabulary, width), nn.Embedding(seq, width)
        layer = nn.TransformerEncoderLayer(width, heads, 4 * width, 0.1, batch_first=True, norm_first=True)
        self.encoder = nn.TransformerEncoder(layer, layers, nn.LayerNorm(width), enable_nested_tensor=False)
        self.classes, self.score = nn.Linear(width, classes), nn.Linear(width, 1)

    def forward(self, ids: Tensor, labels: Tensor, scores: Tensor) -> dict[str, Tensor]:
        x = self.embedding(ids) + self.positions.weight[: ids.shape[1]]
        x = self.encoder(x, src_key_padding_mask=ids == 0)[:, 0]
        return {"classes": self.classes(x), "scores": self.score(x).squeeze(-1)}


class Seq2Seq(nn.Module):
    """``nn.Transformer``: an encoder whose result every layer of the decoder reads."""

    def __init__(self, vocabulary: int, width: int, layers: int, heads: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, width)
        self.transformer = nn.Transformer(width, heads, layers, layers, 4 * width, 0.1, batch_first=True)
        self.head = nn.Linear(width, vocabulary)

    def forward(self, source: Tensor, target: Tensor, labels: Tensor) -> Tensor:
        s = target.shape[1]
        mask = torch.ones(s, s, dtype=torch.bool, device=target.device).triu(1)
        x = self.transformer(
            self.embedding(source), self.embedding(target), tgt_mask=mask, tgt_is_causal=True
        )
        return cross_entropy(self.head(x), labels)


# What they are trained on


def integers(high: int, *shape: int) -> Callable[[int], Tensor]:
    return lambda samples: torch.randint(0, high, (samples, *shape))


def normal(*shape: int) -> Callable[[int], Tensor]:
    return lambda samples: torch.randn(samples, *shape)


def entry(
    name: str, family: str, full: tuple[int, Callable[[], nn.Module], dict[str, Any]],
    tiny: tuple[int, Callable[[], nn.Module], dict[str, Any]], loss: Callable[[Any, Any], Tensor] | None = None,
) -> Architecture:  # fmt: skip
    """Both sizes as (samples, how to build it, its inputs)."""

    def example(
        samples: int, build: Callable[[], nn.Module], inputs: dict[str, Callable[[int], Tensor]]
    ) -> Example:
        def batch(rows: int) -> dict[str, Tensor]:
            return {key: make(rows) for key, make in inputs.items()}

        return Example(build, batch, samples, loss)

    return Architecture(name, family, lambda: example(*full), lambda: example(*tiny))


def second(output: Any, batch: Any) -> Tensor:
    return output[1]


def _gpt(name: str, attention: Callable[..., nn.Module], tied: bool) -> Architecture:
    def sizes(samples: int, vocabulary: int, width: int, layers: int, heads: int, seq: int) -> Any:
        inputs = {"ids": integers(vocabulary, seq), "targets": integers(vocabulary, seq)}
        return samples, lambda: GPT(attention, vocabulary, width, layers, heads, seq, tied), inputs

    return entry(
        name, "plain", sizes(4, 50_304, 1600, 48, 25, 1024), sizes(2, 64, 32, 3, 4, 16), second
    )  # fmt: skip


def _unet_loss(output: Tensor, batch: Any) -> Tensor:
    return F.mse_loss(output, batch["images"].mean(1, keepdim=True).expand_as(output))


def _two_losses(output: Any, batch: Any) -> Tensor:
    return F.cross_entropy(output["classes"], batch["labels"]) + F.mse_loss(output["scores"], batch["scores"])


def _clicks(output: Tensor, batch: Any) -> Tensor:
    return F.binary_cross_entropy_with_logits(output, (batch["dense"][:, 0] > 0).to(output.dtype))


def _images(size: int, classes: int) -> dict[str, Any]:
    return {"images": normal(3, size, size), "labels": integers(classes)}


def _dit(size: int, classes: int) -> dict[str, Any]:
    return {
        "latents": normal(4, size, size),
        "noise": normal(4, size, size),
        "time": integers(1000),
        "label": integers(classes),
    }


def _tokens(vocabulary: int, seq: int, *names: str) -> dict[str, Any]:
    return {name: integers(vocabulary, seq) for name in names}


def _classified(vocabulary: int, seq: int, classes: int) -> dict[str, Any]:
    return {"ids": integers(vocabulary, seq), "labels": integers(classes), "scores": normal()}


PLAIN: tuple[Architecture, ...] = (
    entry("resnet-50", "plain",
          (64, lambda: ResNet((3, 4, 6, 3), 64, 1000), _images(224, 1000)),
          (3, lambda: ResNet((2, 3), 8, 7), _images(32, 7))),
    entry("unet", "plain",
          (8, lambda: UNet(64, 4, 21), {"images": normal(3, 256, 256)}),
          (2, lambda: UNet(16, 3, 5), {"images": normal(3, 16, 16)}), _unet_loss),
    entry("dit-xl-2", "plain",
          (8, lambda: DiT(32, 2, 1152, 28, 16, 1000), _dit(32, 1000)),
          (2, lambda: DiT(8, 2, 32, 3, 4, 10), _dit(8, 10))),
    entry("lstm", "plain",
          (32, lambda: LSTMLanguageModel(33_278, 1500, 2), _tokens(33_278, 70, "ids", "labels")),
          (2, lambda: LSTMLanguageModel(50, 16, 2), _tokens(50, 8, "ids", "labels"))),
    entry("dlrm", "plain",
          (2048, lambda: DLRM(13, 26, 1_000_000, 128, 512), {"dense": normal(13), "sparse": integers(1_000_000, 26)}),
          (4, lambda: DLRM(5, 4, 50, 8, 16), {"dense": normal(5), "sparse": integers(50, 4)}), _clicks),
    _gpt("gpt-by-hand", HandAttention, tied=True),
    _gpt("gpt-by-einsum", EinsumAttention, tied=False),
    _gpt("gpt-multihead-attention", StockAttention, tied=True),
    entry("transformer-encoder", "plain",
          (16, lambda: EncoderClassifier(30_522, 1024, 24, 16, 512, 20), _classified(30_522, 512, 20)),
          (2, lambda: EncoderClassifier(50, 32, 3, 4, 16, 5), _classified(50, 16, 5)), _two_losses),
    entry("transformer", "plain",
          (16, lambda: Seq2Seq(32_000, 1024, 6, 16), _tokens(32_000, 256, "source", "target", "labels")),
          (2, lambda: Seq2Seq(50, 32, 2, 4), _tokens(50, 8, "source", "target", "labels"))),
)  # fmt: skip
"""Every plain model, each at a published size and at a tiny one."""
