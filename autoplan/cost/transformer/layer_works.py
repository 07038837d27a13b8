"""What one rank does in one layer for one micro-batch: products, attention, bytes touched, and messages.

Sources: the layer of Megatron-LM (Shoeybi et al., 2019, section 3; Korthikanti et al., 2022, section 4),
counted op by op. T tokens of the micro-batch on this rank, t = tp, z = t with sequence parallel, else 1.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from autoplan.cost.transformer.configuration import Configuration
from autoplan.cost.transformer.shape import Hybrid, Latent, Transformer
from autoplan.cost.transformer.software import Software

ROUTING_OPS = 90.0
"""Ops of routing, sorting, permuting and their bookkeeping, in the layers of Megatron-Core (0.10 to 0.13)."""

SSM_OPS = 14.0
"""Ops of a state-space layer forward: norm, projections, convolution, five kernels of mixing, gated norm."""

SCAN_RATE = 0.25
"""Rate of the mixing's products over that of large ones: tiles of one chunk and one head, decays in between."""

CLAMP_BYTES = 14.0
"""For each hidden value of an expert whose two gates (16 bits each) get a bias and are clamped by kernels of
their own: both clamped (8), and scaled and offset (6)."""

SOFTMAX_OPS = 5.0
"""Ops more when scale, mask, softmax and the conversions around it are not one kernel."""

__all__ = ["Message", "Product", "Works", "dense_works", "ends_works", "hybrid_works", "mixture_works"]


@dataclass(frozen=True, slots=True)
class Product:
    """``batch`` products of (m, k) by (k, n) in forward; backward makes one for the input, one for the
    weight. ``core``: it belongs to attention's core, has two inputs and no weight. ``grouped``: one for each
    expert, of sizes that the data decides."""

    batch: Any
    m: Any
    n: Any
    k: Any
    core: bool = False
    grouped: bool = False


@dataclass(frozen=True, slots=True)
class Message:
    """A collective of ``nbytes``: ``forward`` times in forward, ``backward`` times in backward.

    Args:
        axis: ``tp``, ``cp`` or ``ep``.
        copies: of each token that are among the bytes.
    """

    axis: str
    kind: str
    nbytes: Any
    forward: Any
    backward: Any
    copies: Any = 1


@dataclass(slots=True)
class Works:
    """Of one layer (or of the ends of the chain), forward and backward.

    Args:
        products: matrix products, fused attention apart.
        attention: ``(batch, queries, keys, size)`` of fused attention, and whether it is used.
        forward_bytes, backward_bytes: touched by memory-bound ops.
        core_bytes: the part of ``forward_bytes`` that attention's core touches when it is not fused.
        forward_ops, backward_ops: kernels that the host must issue.
        dynamic: sizes depend on the data, so that the host issues every op even in a program of graphs.
    """

    products: list[Product] = field(default_factory=list)
    attention: tuple[Any, Any, Any, Any] | None = None
    forward_bytes: Any = 0.0
    backward_bytes: Any = 0.0
    core_bytes: Any = 0.0
    core_backward_bytes: Any = 0.0
    forward_ops: Any = 0.0
    backward_ops: Any = 0.0
    messages: list[Message] = field(default_factory=list)
    dynamic: bool = False


def dense_works(shape: Transformer, c: Configuration, software: Software) -> Works:
    """A layer with a dense MLP."""
    works = _attention_works(shape, c, software)
    width = shape.ffn / c.tp
    _add_mlp(works, shape, c.tokens, width)
    return works


def mixture_works(shape: Transformer, c: Configuration, software: Software) -> Works:
    """A layer with experts: routing, dispatch, grouped products, combine, and shared experts.

    Tokens are spread evenly over experts. A rank sends each of its T/t tokens to the experts it is
    routed to: ``experts_per_token`` times its bytes leave in dispatch and come back in combine.
    """
    works = _attention_works(shape, c, software)
    _add_experts(works, shape, c)
    return works


def hybrid_works(shape: Transformer, c: Configuration, software: Software) -> list[tuple[float, Works]]:
    """The layers of a hybrid model, each of one mixer with its norm and residual, and the share of each."""
    assert shape.hybrid is not None
    attention = _attention_works(shape, c, software)
    rows = c.tokens / c.sequence_cut * shape.hidden
    drop = 1 if software.dropout else 0
    attention.forward_bytes = attention.forward_bytes - (10 + drop) * rows
    attention.backward_bytes = attention.backward_bytes - (11 + 3 * drop) * rows
    attention.forward_ops, attention.backward_ops = attention.forward_ops - 8, attention.backward_ops - 16
    attention.messages = [
        _halved(message) if message.axis == "tp" else message for message in attention.messages
    ]

    def plain(ops: float) -> Works:
        return Works(
            forward_bytes=(10 + drop) * rows,
            backward_bytes=(11 + 3 * drop) * rows,
            forward_ops=ops,
            backward_ops=2 * ops,
            messages=[message for message in attention.messages if message.axis == "tp"],
        )

    mlp, ssm = plain(8.0), plain(SSM_OPS)
    if shape.moe:
        _add_experts(mlp, shape, c)
    else:
        _add_mlp(mlp, shape, c.tokens, shape.ffn / c.tp)
    _add_state_space(ssm, shape.hybrid, shape.hidden, c)
    return [(shape.hybrid.attention, attention), (shape.hybrid.mlp, mlp), (shape.hybrid.ssm, ssm)]


def _halved(message: Message) -> Message:
    return replace(message, forward=message.forward / 2, backward=message.backward / 2)


def _add_state_space(works: Works, hybrid: Hybrid, hidden: Any, c: Configuration) -> None:
    """Mamba-2's projections, convolution, chunked products and gated norm (arXiv:2405.21060, section 6)."""
    t, tokens, q = c.tp, c.tokens, hybrid.chunk
    slow = tokens / q / SCAN_RATE
    works.products += [
        Product(1, tokens, hybrid.columns / t, hidden),
        Product(1, tokens, hidden, hybrid.width / t),
        Product(slow * hybrid.groups / t, q, q, hybrid.state, core=True),
        Product(slow * hybrid.heads / t, q, hybrid.head_size, q, core=True),
        Product(slow * hybrid.heads / t, hybrid.state, hybrid.head_size, q, core=True),
        Product(slow * hybrid.heads / t, q, hybrid.head_size, hybrid.state, core=True),
    ]
    # Convolution reads and writes, mixing reads and writes with a state of 32 bit for each chunk, the gated
    # norm reads two and writes one; backward goes over each about twice.
    maps = 2 * hybrid.groups * hybrid.state
    each = 4 * (hybrid.width + maps) + 4 * hybrid.width + 2 * maps + 6 * hybrid.width
    each = each + 8 * hybrid.width * hybrid.state / q
    works.forward_bytes = works.forward_bytes + each * tokens / t
    works.backward_bytes = works.backward_bytes + 2 * each * tokens / t


def _add_experts(works: Works, shape: Transformer, c: Configuration) -> None:
    h, tokens = shape.hidden, c.tokens
    local = tokens / c.tp * shape.experts_per_token * c.etp  # copies of tokens that this rank's experts see
    held = np.maximum(shape.experts / c.ep, 1)
    each = local / held
    width = shape.expert_ffn / c.etp
    works.products += [
        Product(held, each, np.asarray(shape.matrices - 1) * width, h, grouped=True),
        Product(held, each, h, width, grouped=True),
    ]
    gate = np.asarray(shape.gated, dtype=float)
    clamps = np.where(shape.clamped, 1.0, 0.0)  # clamped, and written, and read again
    works.forward_bytes = works.forward_bytes + (4 + 2 * gate + CLAMP_BYTES * clamps) * local * width
    works.backward_bytes = works.backward_bytes + (6 + 4 * gate + 1.5 * CLAMP_BYTES * clamps) * local * width
    # Permute and unpermute on both sides of the wire: each copy is read and written twice each way, and
    # weighted sums once; the router works in 32 bit on the logits of T/z tokens.
    moved = local * h * 2
    routed = tokens / c.sequence_cut * shape.experts
    works.forward_bytes = works.forward_bytes + 7 * moved + 12 * routed + 2 * tokens / c.sequence_cut * h
    works.backward_bytes = works.backward_bytes + 8 * moved + 12 * routed + 2 * tokens / c.sequence_cut * h
    works.products.append(Product(1, tokens / c.sequence_cut, shape.experts, h))
    if np.any(np.asarray(shape.shared_ffn) > 0):
        _add_mlp(works, shape, tokens, shape.shared_ffn / c.tp)
    works.forward_ops = works.forward_ops + ROUTING_OPS
    works.backward_ops = works.backward_ops + 1.5 * ROUTING_OPS
    works.dynamic = True
    sent = tokens / c.tp * shape.experts_per_token * h * 2
    works.messages.append(Message("ep", "all_to_all", sent, 2, 2, shape.experts_per_token))


def _attention_works(shape: Transformer, c: Configuration, software: Software) -> Works:
    """Norm, attention, residual; norm and residual of the MLP."""
    h, t, tokens = shape.hidden, c.tp, c.tokens
    rows = tokens / c.sequence_cut * h
    heads = shape.heads / t
    size = shape.head_size if shape.mla is None else shape.attention_width / shape.heads
    works = Works(forward_ops=20.0, backward_ops=42.0)
    works.products += _projections(shape, shape.mla, c)

    drop = 1 if software.dropout else 0
    works.forward_bytes = (8 + 12 + 2 * drop) * rows
    works.backward_bytes = (16 + 6 + 6 * drop) * rows
    rotary = np.where(np.asarray(shape.positions) > 0, 0.0, 4.0)
    turned = rotary * tokens * (heads + np.maximum(shape.key_heads / t, 1)) * size
    works.forward_bytes = works.forward_bytes + turned
    works.backward_bytes = works.backward_bytes + turned

    queries = c.seq / c.cp
    works.attention = (c.micro_batch * heads * c.packed, queries / c.packed, c.seq / c.packed, size)
    if not np.all(c.flash):
        scores = np.where(c.flash, 0.0, c.micro_batch * heads * queries * c.seq)
        works.products += [
            Product(c.micro_batch * heads, queries, c.seq, size, core=True),
            Product(c.micro_batch * heads, queries, size, c.seq, core=True),
        ]
        # The fused kernel of scale, mask and softmax takes batches x heads in fours; otherwise it is four ops.
        loose = ~np.asarray(c.flash, dtype=bool) & (c.micro_batch * heads % 4 != 0)
        works.core_bytes = (4 + 5 * drop + 18 * loose) * scores
        works.core_backward_bytes = (6 + 5 * drop + 12 * loose) * scores
        works.forward_ops = works.forward_ops + SOFTMAX_OPS * loose
        works.backward_ops = works.backward_ops + SOFTMAX_OPS * loose
    _add_tensor_messages(works, shape, c)
    _add_context_messages(works, shape, c, size)
    return works


def _projections(shape: Transformer, latent: Latent | None, c: Configuration) -> list[Product]:
    h, t, tokens = shape.hidden, c.tp, c.tokens
    if latent is None:
        columns = (shape.heads / t + 2 * np.maximum(shape.key_heads / t, 1)) * shape.head_size
        return [Product(1, tokens, columns, h), Product(1, tokens, h, shape.heads * shape.head_size / t)]
    heads, head = shape.heads / t, latent.plain + latent.rotary
    query = (
        [
            Product(1, tokens / c.sequence_cut, latent.query_rank, h),
            Product(1, tokens, heads * head, latent.query_rank),
        ]
        if latent.query_rank
        else [Product(1, tokens, heads * head, h)]
    )
    return [
        *query,
        Product(1, tokens / c.sequence_cut, latent.key_rank + latent.rotary, h),
        Product(1, tokens, heads * (latent.plain + latent.value), latent.key_rank),
        Product(1, tokens, h, heads * latent.value),
    ]


def _add_mlp(works: Works, shape: Transformer, tokens: Any, width: Any) -> None:
    gate = np.asarray(shape.gated, dtype=float)
    works.products += [
        Product(1, tokens, (1 + gate) * width, shape.hidden),
        Product(1, tokens, shape.hidden, width),
    ]
    works.forward_bytes = works.forward_bytes + (4 + 2 * gate) * tokens * width
    works.backward_bytes = works.backward_bytes + (6 + 4 * gate) * tokens * width


def _add_tensor_messages(works: Works, shape: Transformer, c: Configuration) -> None:
    """Two all-reduces each way, or with sequence parallel two all-gathers and two reduce-scatters, and
    backward the saved input of each column product gathered again."""
    if np.all(np.asarray(c.tp) == 1):
        return
    nbytes = np.where(np.asarray(c.tp) > 1, c.tokens * shape.hidden * 2.0, 0.0)
    whole = np.where(c.sp, 0.0, nbytes)
    cut = np.where(c.sp, nbytes, 0.0)
    works.messages += [
        Message("tp", "all_reduce", whole, 2, 2),
        Message("tp", "all_gather", cut, 2, 4),
        Message("tp", "reduce_scatter", cut, 2, 2),
    ]


def _add_context_messages(works: Works, shape: Transformer, c: Configuration, size: Any) -> None:
    """Keys and values go round the ring; backward sends them again, and their gradients with them
    (Liu et al., 2023, Ring Attention)."""
    if np.all(np.asarray(c.cp) == 1):
        return
    held = np.maximum(shape.key_heads / c.tp, 1) if shape.mla is None else shape.heads / c.tp
    nbytes = np.where(np.asarray(c.cp) > 1, 2 * 2 * c.tokens * held * size, 0.0)
    steps = np.asarray(c.cp) - 1
    works.messages.append(Message("cp", "send_recv", nbytes, steps, 2 * steps))


def ends_works(shape: Transformer, c: Configuration, software: Software) -> tuple[Works, Works]:
    """The embedding (first stage) and the output projection with the loss (last stage).

    An unfused loss makes 32-bit logits and goes over them about six times forward and three times
    backward; the fused one reads 16-bit logits, and writes their gradient in place.
    """
    tokens, rows = c.tokens, c.tokens * shape.hidden
    first = Works(forward_ops=6.0, backward_ops=6.0, forward_bytes=6 * rows, backward_bytes=8 * rows)
    columns = shape.vocabulary / c.tp
    logits = tokens * columns
    forward, backward = (8.0, 6.0) if software.fused_loss else (26.0, 14.0)
    last = Works(
        products=[Product(1, tokens, columns, shape.hidden)],
        forward_bytes=forward * logits + 8 * rows,
        backward_bytes=backward * logits + 8 * rows,
        forward_ops=20.0,
        backward_ops=20.0,
    )
    if np.any(np.asarray(c.tp) > 1):
        nbytes = np.where(np.asarray(c.tp) > 1, rows * 2.0, 0.0)
        first.messages.append(Message("tp", "all_reduce", nbytes, 1, 0))
        last.messages.append(Message("tp", "all_reduce", nbytes, 0, 1))
    return first, last
