"""How an entry for one of transformers' causal language models is written down: the fields of its config."""

from __future__ import annotations

from typing import Any

import torch

from zoo.architecture import Architecture, Example

__all__ = ["decoder", "sizes", "without_dropout"]

TINY_SEQ = 16


def sizes(
    hidden: int, ffn: int, layers: int, heads: int, key_heads: int, vocabulary: int, **more: Any
) -> dict[str, Any]:
    """The fields that most configs share, under the names that most use, and ``more``."""
    return {
        "hidden_size": hidden,
        "intermediate_size": ffn,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": key_heads,
        "vocab_size": vocabulary,
    } | more


TINY = sizes(32, 48, 4, 4, 2, 64, max_position_embeddings=64)
SPECIAL_TOKENS = {"pad_token_id": None, "bos_token_id": 0, "eos_token_id": 1}


def decoder(
    name: str,
    kind: str,
    seq: int,
    full: dict[str, Any],
    tiny: dict[str, Any] | None = None,
    samples: int = 1,
    precision: str = "bf16",
) -> Architecture:
    """The causal language model of ``model_type`` ``kind``.

    ``full`` holds the config's fields at the realistic size, where a sample has ``seq`` tokens. The tiny
    config has ``TINY`` for the common sizes, the other fields of ``full`` that are no sizes (names, switches),
    and over all that ``tiny``.
    """
    switches = {key: value for key, value in full.items() if isinstance(value, bool | str | float)}
    small = {key: value for key, value in TINY.items() if key in full}
    return Architecture(
        name,
        "decoder",
        lambda: _example(kind, SPECIAL_TOKENS | full, seq, samples, precision),
        lambda: _example(kind, SPECIAL_TOKENS | small | switches | (tiny or {}), TINY_SEQ, 2, "fp32"),
    )


def _example(kind: str, fields: dict[str, Any], seq: int, samples: int, precision: str) -> Example:
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.for_model(kind, **fields)
    if seq == TINY_SEQ:
        without_dropout(config)

    def build() -> torch.nn.Module:
        return AutoModelForCausalLM.from_config(config).train()

    def batch(samples: int) -> dict[str, torch.Tensor]:
        ids = torch.randint(2, config.get_text_config().vocab_size, (samples, seq))
        return {"input_ids": ids, "labels": ids.clone()}

    return Example(build, batch, samples, precision=precision)


def without_dropout(config: Any) -> None:
    """A tiny model is compared with its graph number by number, and with torch's count for unfused dropout."""
    for name, value in vars(config).items():
        if isinstance(value, float) and ("drop" in name or name.endswith("_pdrop") or "jitter" in name):
            setattr(config, name, 0.0)
