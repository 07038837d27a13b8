"""Bytes that a layer keeps for backward on one rank, for one micro-batch.

Korthikanti et al., 2022, section 4, told apart by tensor so that grouped queries, gated MLPs, experts
and latent attention have their places. T tokens, t = tp, z = t with sequence parallel, else 1:

    norms            in and out of both                          8 T h / z
    attention        q, k, v and the output                      2 T d (2 a + 2 g) / t
    scores           only unfused: softmax, mask, dropped        5 b a s s / t (without dropout 2)
    MLP              its hidden values before and after          (4 or 6) T f / t
    masks            with dropout                                2 T h / z

With h wide, a = g heads and f = 4 h this is their s b h (34 + 5 a s / h). Where products are quantized,
their inputs (the norms' outputs, the MLP's last hidden value) are kept so.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from autoplan.cost.transformer.configuration import Configuration, Recompute
from autoplan.cost.transformer.formats import Formats
from autoplan.cost.transformer.shape import Transformer
from autoplan.cost.transformer.software import Software
from autoplan.hardware.dtypes import DTYPE_BYTES

__all__ = ["ends_saved_bytes", "layer_saved_bytes", "whole_layer_bytes"]


def layer_saved_bytes(
    shape: Transformer, c: Configuration, formats: Formats, software: Software, *, mixture: bool
) -> Any:
    """What stays until backward: all of it, only the layer's input, or in between with selective
    recomputation: without attention's scores, or where attention is fused and so has none, without what
    norms and activations make and latent attention's wide heads (Megatron-Core's modules)."""
    rows = c.tokens * shape.hidden / c.sequence_cut
    recompute = np.asarray(c.recompute)
    kept = whole_layer_bytes(shape, c, formats, software, mixture=mixture)
    cheap = _input_bytes(formats) * (2 * rows + _inner_elements(shape, c, mixture=mixture))
    if shape.hybrid is not None:
        cheap = cheap - _input_bytes(formats) * (
            rows + (1 - shape.mlp_share) * _inner_elements(shape, c, mixture=mixture)
        )
    if shape.mla is not None:
        cheap = cheap + _attention_bytes(shape, c)
    some = kept - np.where(c.flash, cheap, shape.attention_share * _scores_bytes(shape, c, software))
    if software.recomputes_memory_bound:
        some = 2.0 * rows
    full = recompute == Recompute.FULL
    return np.where(full, 2.0 * rows, np.where(recompute == Recompute.SELECTIVE, some, kept))


def whole_layer_bytes(
    shape: Transformer, c: Configuration, formats: Formats, software: Software, *, mixture: bool
) -> Any:
    """Everything that one layer keeps when nothing is run again."""
    drop = 2 if software.dropout else 0
    rows = c.tokens * shape.hidden / c.sequence_cut
    each = _input_bytes(formats)
    if shape.hybrid is not None:
        return _hybrid_bytes(shape, c, formats, software, mixture=mixture)
    total = (4 + 2 * each + drop) * rows + _attention_bytes(shape, c) + _scores_bytes(shape, c, software)
    inner = _inner_elements(shape, c, mixture=mixture)
    gate = 1 + np.asarray(shape.gated, dtype=float)
    total = total + (2 * gate + each) * inner
    if not mixture:
        return total
    copies = c.tokens / c.tp * shape.experts_per_token * c.etp
    return total + each * copies * shape.hidden + 12 * c.tokens / c.sequence_cut * shape.experts


def _hybrid_bytes(
    shape: Transformer, c: Configuration, formats: Formats, software: Software, *, mixture: bool
) -> Any:
    """Of the average layer: one norm, and its mixer. A state-space mixer keeps what its projection makes,
    what its convolution makes of it, its output and that normed, and a state in 32 bit for each chunk."""
    hybrid, each = shape.hybrid, _input_bytes(formats)
    assert hybrid is not None
    rows = c.tokens * shape.hidden / c.sequence_cut
    drop = 1 if software.dropout else 0
    attention = _attention_bytes(shape, c) + _scores_bytes(shape, c, software)
    mixed = (
        2 * hybrid.columns + 2 * (hybrid.width + 2 * hybrid.groups * hybrid.state) + (2 + each) * hybrid.width
    )
    mixed = (mixed + 4 * hybrid.width * hybrid.state / hybrid.chunk) * c.tokens / c.tp
    gate = 1 + np.asarray(shape.gated, dtype=float)
    inner = (2 * gate + each) * _inner_elements(shape, c, mixture=mixture)
    if mixture:
        copies = c.tokens / c.tp * shape.experts_per_token * c.etp
        inner = inner + each * copies * shape.hidden + 12 * c.tokens / c.sequence_cut * shape.experts
    return (2 + each + drop) * rows + hybrid.attention * attention + hybrid.mlp * inner + hybrid.ssm * mixed


def _input_bytes(formats: Formats) -> float:
    """Of an element that a product keeps as its input: quantized where products are."""
    return DTYPE_BYTES[formats.products] if formats.cast_bytes else 2.0


def _inner_elements(shape: Transformer, c: Configuration, *, mixture: bool) -> Any:
    """Elements of an MLP's hidden value, of all its experts together."""
    if not mixture:
        return c.tokens * shape.ffn / c.tp
    copies = c.tokens / c.tp * shape.experts_per_token * c.etp
    return copies * shape.expert_ffn / c.etp + c.tokens * shape.shared_ffn / c.tp


def _attention_bytes(shape: Transformer, c: Configuration) -> Any:
    heads = shape.heads / c.tp
    if shape.mla is None:
        columns = (2 * heads + 2 * np.maximum(shape.key_heads / c.tp, 1)) * shape.head_size
        return 2 * c.tokens * columns + 4 * c.tokens * heads
    m = shape.mla
    ranks = 2 * (m.query_rank + m.key_rank + m.rotary) / c.sequence_cut
    columns = heads * (2 * (m.plain + m.rotary) + 2 * m.value)
    return 2 * c.tokens * (columns + ranks) + 4 * c.tokens * heads


def _scores_bytes(shape: Transformer, c: Configuration, software: Software) -> Any:
    scores = c.micro_batch * shape.heads / c.tp * c.seq / c.cp * c.seq
    return np.where(c.flash, 0.0, (5 if software.dropout else 2) * scores)


def ends_saved_bytes(shape: Transformer, c: Configuration, software: Software) -> tuple[Any, Any]:
    """Of the embedding (dropout's mask) and of the last norm, the logits and the loss.

    Logits: 16 bits, and 32 bits of the loss, where their softmax and then their gradient take place.
    """
    rows = c.tokens * shape.hidden / c.sequence_cut
    first = (1 if software.dropout else 0) * rows
    return first, 4 * rows + software.logit_bytes * c.tokens * shape.vocabulary / c.tp
