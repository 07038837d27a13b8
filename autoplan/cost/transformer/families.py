"""What a model's name tells beyond the columns of a table: gating, ties, positions, latent attention."""

from __future__ import annotations

import re
from dataclasses import dataclass

from autoplan.cost.transformer.shape import Latent

__all__ = ["DEEPSEEK_V2", "DEEPSEEK_V3", "Family", "family_of"]

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
        hybrid: most layers are no attention layers.
    """

    gated: bool
    tied: bool = False
    biases: bool = False
    learned: bool = False
    latent: Latent | None = None
    dense_layers: int = 0
    dense_ffn: int = 0
    shared_ffn: int = 0
    hybrid: bool = False


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
    (r"nemotron-?(h|3|nano|super|ultra|3\.5)", Family(False, hybrid=True)),
    (r"nemotron", Family(False)),
    (r"gpt-oss", _LLAMA),
    (r"mpt", Family(False, tied=True)),
    (r"bloom", Family(False, tied=True, biases=True)),
    (r"gpt|megatron|opt-|turing", _GPT),
    (r"falcon|pythia|neox|phi-?[12]\b", Family(False, biases=True)),
)


def family_of(name: str) -> Family:
    """The habits that go with ``name``; Llama's where nothing better is known."""
    lowered = name.lower()
    return next((family for pattern, family in _FAMILIES if re.search(pattern, lowered)), _LLAMA)
