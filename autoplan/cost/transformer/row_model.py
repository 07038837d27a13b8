"""The model of a table's row, from its dimensions."""

from __future__ import annotations

import re
from dataclasses import replace

from autoplan.cost.transformer.families import DEEPSEEK_V3, Family, family_of, hybrid_of_layers
from autoplan.cost.transformer.row_fields import Fields
from autoplan.cost.transformer.shape import Hybrid, Transformer
from autoplan.graph.sources.sizes import ALIASES, SIZES, DecoderConfig

__all__ = ["row_model", "shape_of_size"]

FAR = 0.15
"""Difference between the parameters of the dimensions and those stated that is worth a word."""


def row_model(fields: Fields) -> Transformer:
    """The dimensions of a row. Raises InputError where what is blank has no usual value."""
    name = fields.text("model")
    family = family_of(name)
    if fields.count("layers") is None and (known := _built_in(name)) is not None:
        fields.assume("dimensions", name, "built-in")
        return shape_of_size(known)
    layers = fields.need("layers", None, "")
    hidden = fields.need("hidden", None, "")
    heads = fields.need("heads", _usual_heads(hidden, fields), "")
    head_size = fields.count("head_dim") or max(hidden // heads, 1)
    key_heads = fields.need("kv_heads", heads, "as many as heads")
    gated = fields.flag("gated_mlp")
    usual_ffn = 4 * hidden if not family.gated else round(8 * hidden / 3 / 256) * 256 or 256
    ffn = fields.need("ffn_hidden", usual_ffn, "")
    experts = fields.count("experts", least=0) or 0
    vocabulary = fields.need("vocab", 50_304 if family.tied else 128_256, "")
    if fields.noted(r"untie-embeddings"):
        family = replace(family, tied=False)
    guess = family.gated if gated is None else gated
    vectors = (9 + ffn / hidden if family.biases else 2.0) if not guess else 2.0
    if family.biases and not guess and experts == 0:
        vectors = 9.0 + ffn / hidden
    shape = Transformer(
        layers=layers,
        hidden=hidden,
        heads=heads,
        key_heads=min(key_heads, heads),
        head_size=head_size,
        ffn=ffn,
        gated=guess,
        vocabulary=vocabulary,
        tied=family.tied,
        vectors=vectors,
        positions=(fields.count("seq_len") or 0) if family.learned else 0,
        hybrid=_hybrid(fields, family, layers),
        clamped=family.clamped,
    )
    if experts > 1:
        shape = _mixture(shape, fields, family, experts, ffn)
    if gated is None:
        shape = _gated_by_count(shape, fields)
    _compare_parameters(shape, fields)
    return shape


def shape_of_size(size: DecoderConfig) -> Transformer:
    """The dimensions of a built-in size."""
    gpt = size.family == "gpt"
    bias = (size.heads + 2 * size.key_heads) * size.head_size / size.hidden if size.qkv_bias else 0.0
    return Transformer(
        layers=size.layers,
        hidden=size.hidden,
        heads=size.heads,
        key_heads=size.key_heads,
        head_size=size.head_size,
        ffn=size.ffn,
        gated=not gpt,
        vocabulary=size.vocabulary,
        tied=size.tied,
        vectors=9 + size.ffn / size.hidden if gpt else 2 + bias,
        positions=size.seq if gpt else 0,
        moe=size.experts > 0,
        experts=size.experts,
        experts_per_token=size.experts_per_token,
        expert_ffn=size.ffn if size.experts else 0,
    )


def _built_in(name: str) -> DecoderConfig | None:
    """By a name as people and hubs write it: ``meta-llama/Llama-3.1-8B-Instruct`` is llama3-8b."""
    plain = re.sub(r"[\s_]+", "-", name.lower().rsplit("/", 1)[-1])
    plain = re.sub(r"^(llama|gpt)-(?=\d)", r"\1", plain.removeprefix("meta-"))
    plain = re.sub(r"-(?:instruct|chat|base|hf|v\d[\d.]*)\b.*$", "", plain).replace("llama3.1-", "llama3-")
    return SIZES.get(ALIASES.get(plain, plain))


def _usual_heads(hidden: int, fields: Fields) -> int:
    size = fields.count("head_dim") or 128
    return max(hidden // size, 1)


def _mixture(shape: Transformer, fields: Fields, family: Family, experts: int, ffn: int) -> Transformer:
    """Experts of width ``ffn``; what the columns cannot say comes from the notes, or else from the family."""
    top_k = fields.need("top_k", min(2, experts), "")
    latent = family.latent
    if latent is None and fields.noted(r"multi-latent-attention|\bMLA\b"):
        latent = DEEPSEEK_V3
        fields.assume("MLA", "the ranks of DeepSeek-V3")
    width, shared, dense, dense_ffn = ffn, family.shared_ffn, family.dense_layers, family.dense_ffn or ffn
    if match := fields.noted(r"moe-ffn-hidden-size=(\d+)"):
        width = int(match[1])
    if match := fields.noted(r"moe-shared-expert-intermediate-size=(\d+)"):
        shared = int(match[1])
    if match := fields.noted(r"dense_layers=(\d+)"):
        dense = int(match[1])
    elif match := fields.noted(r"moe-layer-freq=\(?\[0\]\*(\d+)"):
        dense, dense_ffn = int(match[1]), max(dense_ffn, 18_432 if latent else ffn)
    if family.latent is not None:
        fields.assume(
            "MLA, shared experts, first dense layers", f"as published ({dense} dense)", fields.text("model")
        )
    elif not shared:
        fields.assume("shared experts", "none")
    return replace(
        shape,
        moe=True,
        mla=latent,
        experts=experts,
        experts_per_token=min(top_k, experts),
        expert_ffn=width,
        shared_ffn=shared,
        dense_layers=min(dense, shape.layers),
        ffn=dense_ffn,
    )


def _hybrid(fields: Fields, family: Family, layers: int) -> Hybrid | None:
    """Mixers as the notes count or spell them (M state-space, * attention, others MLP); else as the family's."""
    if family.hybrid is None:
        return None
    if match := fields.noted(r"(\d+) mamba, (\d+) mlp, (\d+) attn"):
        ssm, mlp, attention = (int(n) for n in match.groups())
    elif match := fields.noted(rf"\b(?-i:[ME*-]{{{layers}}})"):
        attention, ssm = match[0].count("*"), match[0].count("M")
        mlp = layers - attention - ssm
    else:
        fields.assume("layers of each kind", "as published for the family")
        return family.hybrid
    return hybrid_of_layers(family.hybrid, attention, mlp, ssm)


def _gated_by_count(shape: Transformer, fields: Fields) -> Transformer:
    """Two matrices or three, whichever makes the stated parameters; the family's habit if none are stated."""
    stated = fields.number("params_b")
    if not stated:
        fields.assume("gated_mlp", int(bool(shape.gated)), "by the model's family")
        return shape
    options = [replace(shape, gated=gated) for gated in (False, True)]
    best = min(options, key=lambda s: abs(float(s.parameters) / 1e9 - stated))
    fields.assume("gated_mlp", int(bool(best.gated)), "by the parameters stated")
    return best


def _compare_parameters(shape: Transformer, fields: Fields) -> None:
    stated, found = fields.number("params_b"), float(shape.parameters) / 1e9
    if stated and abs(found / stated - 1) > FAR and not re.search("proxy|active", fields.text("model")):
        fields.assume("parameters", f"{found:.3g} B from the dimensions", f"the row says {stated:g} B")
