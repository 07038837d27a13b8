"""The dimensions of a Hugging Face ``config.json``, read without transformers.

Llama-like (grouped queries), GPT-2-like, mixtures as Mixtral, Qwen and OLMoE write them, and DeepSeek's
latent attention with shared experts and dense first layers. Field names are those of transformers'
configuration classes.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from autoplan.cost.transformer.row_model import shape_of_size
from autoplan.cost.transformer.shape import Latent, Transformer
from autoplan.errors import ModelError
from autoplan.graph.sources.sizes import ALIASES, SIZES

__all__ = ["model_shape", "shape_of_config"]

_PLAIN = {
    "gpt2",
    "gpt_neo",
    "gpt_neox",
    "gptj",
    "opt",
    "bloom",
    "falcon",
    "mpt",
    "phi",
    "nemotron",
    "starcoder2",
}
"""Kinds whose MLPs have two matrices."""

_TIED = {"gpt2", "bloom", "mpt", "opt", "gemma", "gemma2", "gemma3", "falcon"}
"""Kinds whose output projection is the embedding unless the file says otherwise."""

_NAMES: dict[str, tuple[str, ...]] = {
    "layers": ("num_hidden_layers", "n_layer", "num_layers", "n_layers"),
    "hidden": ("hidden_size", "n_embd", "d_model"),
    "heads": ("num_attention_heads", "n_head", "num_heads", "n_heads"),
    "key_heads": ("num_key_value_heads", "num_kv_heads", "n_head_kv"),
    "head_size": ("head_dim",),
    "ffn": ("intermediate_size", "n_inner", "ffn_dim", "ffn_hidden_size"),
    "vocabulary": ("vocab_size",),
    "positions": ("n_positions", "max_position_embeddings"),
    "experts": ("num_local_experts", "n_routed_experts", "num_experts"),
    "experts_per_token": ("num_experts_per_tok", "moe_top_k", "num_experts_per_token"),
    "expert_ffn": ("moe_intermediate_size",),
    "shared_ffn": ("shared_expert_intermediate_size",),
    "shared_experts": ("n_shared_experts", "num_shared_experts"),
    "dense_layers": ("first_k_dense_replace", "num_dense_layers"),
}


def model_shape(spec: str) -> tuple[str, Transformer, int]:
    """Name, dimensions and usual sequence length of a built-in size, or of a config file or its directory.

    Raises:
        ModelError: there is no such model, or its file lacks a dimension.
    """
    lowered = spec.lower()
    if (size := SIZES.get(ALIASES.get(lowered, lowered))) is not None:
        return ALIASES.get(lowered, lowered), shape_of_size(size), size.seq
    path = Path(spec)
    file = path / "config.json" if path.is_dir() else path
    try:
        fields = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(
            "MODEL",
            spec,
            f"a built-in size ({', '.join(SIZES)}) or a Hugging Face config.json ({error})",
            "correct the name or the path",
        ) from None
    if not isinstance(fields, dict):
        raise ModelError("MODEL", spec, "a JSON object", "give a Hugging Face config.json")
    shape = shape_of_config(fields, str(file))
    longest = _count(fields, "positions", str(file), 4096)
    name = file.resolve().parent.name if file.name == "config.json" else file.stem
    return name, shape, min(longest, 4096)


def shape_of_config(fields: Mapping[str, Any], where: str) -> Transformer:
    """The dimensions in ``fields``; ``where`` names the file in errors. Raises ModelError."""
    if isinstance(inner := fields.get("text_config"), Mapping):
        fields = {**inner, **{k: v for k, v in fields.items() if k == "tie_word_embeddings"}}
    kind = str(fields.get("model_type", ""))
    hidden = _count(fields, "hidden", where)
    heads = _count(fields, "heads", where)
    gated = kind not in _PLAIN
    ffn = _count(fields, "ffn", where, 4 * hidden)
    learned = kind in ("gpt2", "gpt_neo", "opt")
    tied = fields.get("tie_word_embeddings")
    shape = {
        "layers": _count(fields, "layers", where),
        "hidden": hidden,
        "heads": heads,
        "key_heads": 1
        if fields.get("multi_query") and kind == "falcon"
        else _count(fields, "key_heads", where, heads),
        "head_size": _count(fields, "head_size", where, max(hidden // heads, 1)),
        "ffn": ffn,
        "gated": gated,
        "vocabulary": _count(fields, "vocabulary", where),
        "tied": bool(tied) if isinstance(tied, bool) else kind in _TIED,
        "positions": _count(fields, "positions", where, 1024) if learned else 0,
    }
    size, groups = shape["head_size"], shape["key_heads"]
    shape["vectors"] = _vectors(kind, fields, gated, ffn / hidden, (heads + 2 * groups) * size / hidden)
    experts = _count(fields, "experts", where, 0, least=0)
    if experts > 1:
        shape |= _mixture(fields, where, experts, ffn)
    if fields.get("kv_lora_rank"):
        shape["mla"] = _latent(fields, where)
    return Transformer(**shape)


def _vectors(kind: str, fields: Mapping[str, Any], gated: bool, ffn: float, queries: float) -> float:
    """Norms and biases of a layer in units of the width."""
    if gated:
        biased = kind in ("qwen2", "qwen2_moe") or fields.get("attention_bias") is True
        return 2.0 + (queries if biased else 0.0)
    if kind in ("mpt", "nemotron") or fields.get("bias") is False:
        return 4.0
    return 4.0 + queries + 1.0 + ffn + 1.0


def _mixture(fields: Mapping[str, Any], where: str, experts: int, ffn: int) -> dict[str, Any]:
    width = _count(fields, "expert_ffn", where, ffn)
    shared = _count(fields, "shared_experts", where, 0, least=0) * width
    return {
        "moe": True,
        "experts": experts,
        "experts_per_token": min(_count(fields, "experts_per_token", where, 2), experts),
        "expert_ffn": width,
        "shared_ffn": _count(fields, "shared_ffn", where, shared, least=0),
        "dense_layers": _count(fields, "dense_layers", where, 0, least=0),
    }


def _latent(fields: Mapping[str, Any], where: str) -> Latent:
    def rank(name: str, usual: int) -> int:
        return _checked(fields.get(name, usual) or 0, name, where, 0)

    return Latent(
        query_rank=rank("q_lora_rank", 0),
        key_rank=rank("kv_lora_rank", 512),
        plain=rank("qk_nope_head_dim", 128),
        rotary=rank("qk_rope_head_dim", 64),
        value=rank("v_head_dim", 128),
    )


def _count(fields: Mapping[str, Any], name: str, where: str, usual: int | None = None, least: int = 1) -> int:
    for key in _NAMES[name]:
        if fields.get(key) is not None:
            return _checked(fields[key], key, where, least)
    if usual is None:
        raise ModelError(f"{where}: {_NAMES[name][0]}", None, "a whole number", "add it to the config")
    return usual


def _checked(value: Any, key: str, where: str, least: int) -> int:
    whole = isinstance(value, int) and not isinstance(value, bool)
    if not whole or not least <= value <= 10**9:
        raise ModelError(
            f"{where}: {key}", value, f"a whole number of at least {least}", "correct the config"
        )
    return value
