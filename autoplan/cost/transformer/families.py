"""What a model's name tells beyond the columns of a table: gating, ties, positions, latent attention."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

from autoplan.cost.transformer.shape import Hybrid, Latent

__all__ = ["DEEPSEEK_V2", "DEEPSEEK_V3", "Family", "family_of", "hybrid_of_layers"]

DEEPSEEK_V2 = Latent(1536, 512, 128, 64, 128)
DEEPSEEK_V3 = Latent(1536, 512, 128, 64, 128)
DEEPSEEK_V2_LITE = Latent(0, 512, 128, 64, 128)


@dataclass(frozen=True, slots=True)
class Family:
    """Habits of a family of models.

    Args:
        gated: MLPs have three matrices.
        tied: the output projection is the embedding.
        biases: linear layers and norms have biases (LayerNorm).
        learned: positions are learned.
        latent, dense_layers, dense_ffn, shared_ffn: of DeepSeek's mixtures.
        hybrid: layers have one mixer each, most of them no attention.
        clamped: gates are clamped and experts have biases.
    """

    gated: bool
    tied: bool = False
    biases: bool = False
    learned: bool = False
    latent: Latent | None = None
    dense_layers: int = 0
    dense_ffn: int = 0
    shared_ffn: int = 0
    hybrid: Hybrid | None = None
    clamped: bool = False


def hybrid_of_layers(like: Hybrid, attention: int, mlp: int, ssm: int) -> Hybrid:
    """``like`` with that many layers of each kind."""
    total = attention + mlp + ssm
    return replace(like, attention=attention / total, mlp=mlp / total, ssm=ssm / total)


# Nemotron-H, arXiv:2504.03624, table 1; Nemotron Nano 3's config.json. Attention, MLPs, state-space mixers.
_NEMOTRON_H = Hybrid(4 / 52, 24 / 52, 24 / 52, heads=128, head_size=64, groups=8, state=128)
_NEMOTRON_H_56B = Hybrid(10 / 118, 54 / 118, 54 / 118, heads=256, head_size=64, groups=8, state=256)
_NEMOTRON_NANO = Hybrid(6 / 52, 23 / 52, 23 / 52, heads=64, head_size=64, groups=8, state=128)

_GPT = Family(False, tied=True, biases=True, learned=True)
_LLAMA = Family(True)
_FAMILIES: tuple[tuple[str, Family], ...] = (
    (
        r"deepseek-?(v3|r1)|kimi-?k2",
        Family(True, latent=DEEPSEEK_V3, dense_layers=3, dense_ffn=18_432, shared_ffn=2048),
    ),
    (
        r"deepseek-?(coder-)?v2-?lite",
        Family(True, latent=DEEPSEEK_V2_LITE, dense_layers=1, dense_ffn=10_944, shared_ffn=2816),
    ),
    (
        r"deepseek-?(coder-)?v2",
        Family(True, latent=DEEPSEEK_V2, dense_layers=1, dense_ffn=12_288, shared_ffn=3072),
    ),
    (r"nemotron-?h-?(56|47)b", Family(False, hybrid=_NEMOTRON_H_56B)),
    (r"nemotron-?3-?nano", Family(False, hybrid=_NEMOTRON_NANO, shared_ffn=3712)),
    (r"nemotron-?(h|3|nano|super|ultra|3\.5)", Family(False, hybrid=_NEMOTRON_H)),
    (r"nemotron", Family(False)),
    (r"gpt-oss", Family(True, clamped=True)),
    (r"mpt", Family(False, tied=True)),
    (r"bloom", Family(False, tied=True, biases=True)),
    (r"gpt|megatron|opt-|turing", _GPT),
    (r"falcon|pythia|neox|phi-?[12]\b", Family(False, biases=True)),
)


def family_of(name: str) -> Family:
    """The habits that go with ``name``; Llama's where nothing better is known."""
    lowered = name.lower()
    return next((family for pattern, family in _FAMILIES if re.search(pattern, lowered)), _LLAMA)
