"""Decoder-only language models of Hugging Face's transformers, each from explicit sizes.

The sizes are those of the published model that the entry is named after. Tiny sizes keep what makes the
architecture (grouped keys, experts, layer types) and shrink the rest.
"""

from __future__ import annotations

from typing import Any

import torch

from zoo.architecture import Architecture, Example

__all__ = ["DECODERS"]

TINY_SEQ = 16
TINY = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 64,
    "max_position_embeddings": 64,
    "pad_token_id": None,
    "bos_token_id": 0,
    "eos_token_id": 1,
}


def decoder(name: str, kind: str, seq: int, full: dict[str, Any], tiny: dict[str, Any]) -> Architecture:
    """The causal language model of ``model_type`` ``kind``; ``full`` and ``tiny`` are its config's fields."""
    return Architecture(
        name,
        "decoder",
        lambda: _example(kind, full, seq),
        lambda: _example(kind, TINY | full_without_sizes(full) | tiny, TINY_SEQ),
    )


def full_without_sizes(full: dict[str, Any]) -> dict[str, Any]:
    """The fields that are no numbers, which both sizes share: ``hidden_act``, ``tie_word_embeddings``."""
    return {key: value for key, value in full.items() if isinstance(value, bool | str)}


def _example(kind: str, fields: dict[str, Any], seq: int) -> Example:
    from transformers import AutoConfig, AutoModelForCausalLM

    def build() -> torch.nn.Module:
        config = AutoConfig.for_model(kind, **fields)
        return AutoModelForCausalLM.from_config(config).train()

    def batch(samples: int) -> dict[str, torch.Tensor]:
        vocabulary = AutoConfig.for_model(kind, **fields).get_text_config().vocab_size
        ids = torch.randint(2, vocabulary, (samples, seq))
        return {"input_ids": ids, "labels": ids.clone()}

    return Example(build, batch, samples=2 if seq == TINY_SEQ else 1)


DECODERS: tuple[Architecture, ...] = (
    decoder(
        "llama-3-8b",
        "llama",
        8192,
        {
            "hidden_size": 4096,
            "intermediate_size": 14336,
            "num_hidden_layers": 32,
            "num_attention_heads": 32,
            "num_key_value_heads": 8,
            "vocab_size": 128256,
            "max_position_embeddings": 8192,
        },
        {},
    ),
)
