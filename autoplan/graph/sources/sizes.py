"""The built-in model sizes, as data; reading them needs no torch.

Each entry names the document its architecture was taken from. ``seq`` is the context length of the main
pre-training run and is the default of ``--seq``; for learned positions it is also the longest sequence.
"""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["ALIASES", "SIZES", "DecoderConfig"]

LLAMA_2 = "Llama 2, arXiv:2307.09288, table 1; meta-llama/Llama-2-*-hf config.json"
LLAMA_3 = "The Llama 3 Herd of Models, arXiv:2407.21783, table 3; meta-llama/Llama-3.1-* config.json"
LLAMA_3_2 = "meta-llama/Llama-3.2-* config.json"
MISTRAL = "Mistral 7B, arXiv:2310.06825, table 1; mistralai/Mistral-7B-v0.1 config.json"
MIXTRAL = "Mixtral of Experts, arXiv:2401.04088, table 1; mistralai/Mixtral-8x7B-v0.1 config.json"
MIXTRAL_22B = "mistralai/Mixtral-8x22B-v0.1 config.json"
QWEN_2_5 = "Qwen2.5 Technical Report, arXiv:2412.15115, table 1; Qwen/Qwen2.5-* config.json"
GPT_2 = "Language Models are Unsupervised Multitask Learners, table 2; openai-community/gpt2* config.json"
GPT_3 = "Language Models are Few-Shot Learners, arXiv:2005.14165, table 2.1, all layers dense"


@dataclass(frozen=True, slots=True)
class DecoderConfig:
    """The shape of a decoder-only transformer.

    Args:
        family: ``rotary`` (RMSNorm, rotary positions, SwiGLU: Llama, Mistral, Qwen, Mixtral) or ``gpt``
            (LayerNorm, learned positions, GELU, biases everywhere: GPT-2, GPT-3).
        vocabulary: rows of the embedding.
        hidden: width of the residual stream.
        layers: number of blocks.
        heads: query heads.
        key_heads: key and value heads; fewer than ``heads`` is grouped-query attention.
        head_size: width of one head.
        ffn: width of the MLP, of one expert's where there are experts.
        seq: tokens per sample of the main pre-training run.
        source: the document that publishes these figures.
        tied: the output projection is the embedding.
        qkv_bias: the query, key and value projections of a ``rotary`` model have biases.
        experts: experts of a layer; 0 is a dense MLP.
        experts_per_token: experts that each token is sent to.
        rope_theta: base of the rotary frequencies. Llama 3.1's rescaling of the frequencies for long
            contexts is left out: it changes no shape and no cost.
        norm_eps: epsilon of the norms.
    """

    family: str
    vocabulary: int
    hidden: int
    layers: int
    heads: int
    key_heads: int
    head_size: int
    ffn: int
    seq: int
    source: str
    tied: bool = False
    qkv_bias: bool = False
    experts: int = 0
    experts_per_token: int = 0
    rope_theta: float = 10_000.0
    norm_eps: float = 1e-5


def _llama_2(hidden: int, layers: int, heads: int, key_heads: int, ffn: int) -> DecoderConfig:
    return DecoderConfig("rotary", 32_000, hidden, layers, heads, key_heads, 128, ffn, 4096, LLAMA_2)


def _llama_3(hidden: int, layers: int, heads: int, ffn: int) -> DecoderConfig:
    return DecoderConfig(
        "rotary", 128_256, hidden, layers, heads, 8, 128, ffn, 8192, LLAMA_3, rope_theta=500_000.0
    )


def _llama_3_2(hidden: int, layers: int, heads: int, head_size: int) -> DecoderConfig:
    return DecoderConfig(
        "rotary",
        128_256,
        hidden,
        layers,
        heads,
        8,
        head_size,
        8192,
        8192,
        LLAMA_3_2,
        tied=True,
        rope_theta=500_000.0,
    )


def _mixtral(
    hidden: int, layers: int, heads: int, ffn: int, seq: int, theta: float, source: str
) -> DecoderConfig:
    return DecoderConfig(
        "rotary",
        32_000,
        hidden,
        layers,
        heads,
        8,
        128,
        ffn,
        seq,
        source,
        experts=8,
        experts_per_token=2,
        rope_theta=theta,
    )


def _qwen_2_5(
    vocabulary: int, hidden: int, layers: int, heads: int, key_heads: int, ffn: int
) -> DecoderConfig:
    return DecoderConfig(
        "rotary",
        vocabulary,
        hidden,
        layers,
        heads,
        key_heads,
        128,
        ffn,
        4096,
        QWEN_2_5,
        qkv_bias=True,
        rope_theta=1_000_000.0,
        norm_eps=1e-6,
    )


def _gpt(hidden: int, layers: int, heads: int, seq: int, source: str) -> DecoderConfig:
    return DecoderConfig(
        "gpt", 50_257, hidden, layers, heads, heads, hidden // heads, 4 * hidden, seq, source, tied=True
    )


SIZES: dict[str, DecoderConfig] = {
    "llama2-7b": _llama_2(4096, 32, 32, 32, 11_008),
    "llama2-13b": _llama_2(5120, 40, 40, 40, 13_824),
    "llama2-70b": _llama_2(8192, 80, 64, 8, 28_672),
    "llama3-8b": _llama_3(4096, 32, 32, 14_336),
    "llama3-70b": _llama_3(8192, 80, 64, 28_672),
    "llama3-405b": _llama_3(16_384, 126, 128, 53_248),
    "llama3.2-1b": _llama_3_2(2048, 16, 32, 64),
    "llama3.2-3b": _llama_3_2(3072, 28, 24, 128),
    "mistral-7b": DecoderConfig("rotary", 32_000, 4096, 32, 32, 8, 128, 14_336, 8192, MISTRAL),
    "mixtral-8x7b": _mixtral(4096, 32, 32, 14_336, 32_768, 1_000_000.0, MIXTRAL),
    "mixtral-8x22b": _mixtral(6144, 56, 48, 16_384, 65_536, 1_000_000.0, MIXTRAL_22B),
    "qwen2.5-7b": _qwen_2_5(152_064, 3584, 28, 28, 4, 18_944),
    "qwen2.5-14b": _qwen_2_5(152_064, 5120, 48, 40, 8, 13_824),
    "qwen2.5-32b": _qwen_2_5(152_064, 5120, 64, 40, 8, 27_648),
    "qwen2.5-72b": _qwen_2_5(152_064, 8192, 80, 64, 8, 29_568),
    "gpt2": _gpt(768, 12, 12, 1024, GPT_2),
    "gpt2-medium": _gpt(1024, 24, 16, 1024, GPT_2),
    "gpt2-large": _gpt(1280, 36, 20, 1024, GPT_2),
    "gpt2-xl": _gpt(1600, 48, 25, 1024, GPT_2),
    "gpt3-6.7b": _gpt(4096, 32, 32, 2048, GPT_3),
    # The paper prints a width of 5140, which 40 heads of 128 cannot have; 5120 is what they make.
    "gpt3-13b": _gpt(5120, 40, 40, 2048, GPT_3),
    "gpt3-175b": _gpt(12_288, 96, 96, 2048, GPT_3),
}
"""Every built-in size by name."""

ALIASES: dict[str, str] = {
    "gpt2-124m": "gpt2",
    "gpt2-350m": "gpt2-medium",
    "gpt2-774m": "gpt2-large",
    "gpt2-1.5b": "gpt2-xl",
}
"""Other names that people use for some of them."""
