"""Axes of contractions: linear layers, matrix products, embedding, attention, loss."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import fx

from autoplan.graph.axes.spec import AxisSpec, Dims, register, shape_of
from autoplan.graph.gemms import argument, tensor_arguments
from autoplan.graph.layout import PARTIAL, REPLICATE, Collective, shard
from autoplan.graph.randomness import is_random
from autoplan.graph.strategy import InternalCollective, Strategy

_aten = torch.ops.aten


@register(_aten.linear.default)
def linear(node: fx.Node) -> AxisSpec | None:
    """``… i, o i, o -> … o``."""
    x, w = shape_of(node.args[0]), shape_of(node.args[1])
    lead = tuple((f"d{i}",) if n > 1 else () for i, n in enumerate(x[:-1]))
    sizes = {f"d{i}": n for i, n in enumerate(x[:-1]) if n > 1} | {"o": w[0], "i": w[1]}
    inputs: list[Dims] = [(*lead, ("i",)), (("o",), ("i",))]
    if len(tensor_arguments(node)) == 3:
        inputs.append((("o",),))
    roles = dict.fromkeys(sizes, "m") | {"o": "n", "i": "k"}
    return AxisSpec(tuple(inputs), (*lead, ("o",)), sizes, gemm=roles, added_once=frozenset({2}))


@register(_aten.addmm.default)
def addmm(node: fx.Node) -> AxisSpec | None:
    """``o, m i, i o -> m o`` (GPT-2's Conv1D)."""
    if len(shape_of(node.args[0])) != 1:
        return None
    m, n = shape_of(node)
    sizes = {"m": m, "o": n, "i": shape_of(node.args[1])[1]}
    inputs: tuple[Dims, ...] = ((("o",),), (("m",), ("i",)), (("i",), ("o",)))
    return AxisSpec(
        inputs, (("m",), ("o",)), sizes, gemm={"m": "m", "o": "n", "i": "k"}, added_once=frozenset({0})
    )


@register(_aten.mm.default, _aten.bmm.default, _aten.matmul.default)
def matmul(node: fx.Node) -> AxisSpec | None:
    """``… m k, … k n -> … m n`` with the leading dims broadcast."""
    a, b = shape_of(node.args[0]), shape_of(node.args[1])
    if len(a) < 2 or len(b) < 2:
        return None
    shape = shape_of(node)
    lead = tuple((f"d{i}",) if n > 1 else () for i, n in enumerate(shape[:-2]))
    sizes = {f"d{i}": n for i, n in enumerate(shape[:-2]) if n > 1} | {"m": a[-2], "n": b[-1], "k": a[-1]}

    def leading(own: tuple[int, ...]) -> Dims:
        offset = len(shape) - len(own)
        return tuple(lead[offset + i] if n > 1 else () for i, n in enumerate(own[:-2]))

    batched = len(b) > 2
    roles = dict.fromkeys(sizes, "batch" if batched else "m") | {"m": "m", "n": "n", "k": "k"}
    inputs: tuple[Dims, ...] = ((*leading(a), ("m",), ("k",)), (*leading(b), ("k",), ("n",)))
    return AxisSpec(inputs, (*lead, ("m",), ("n",)), sizes, gemm=roles)


@register(_aten.embedding.default)
def embedding(node: fx.Node) -> AxisSpec | None:
    """``v h, … -> … h``; cutting v needs a kernel that looks up only the rows a rank has."""
    if argument(node, 3, "scale_grad_by_freq", False) or argument(node, 4, "sparse", False):
        return None  # the gradient counts how often a row is read anywhere, or is not a plain tensor
    weight, index = shape_of(node.args[0]), shape_of(node.args[1])
    lead = tuple((f"d{i}",) if n > 1 else () for i, n in enumerate(index))
    sizes = {f"d{i}": n for i, n in enumerate(index) if n > 1} | {"h": weight[1]}

    def rows(degree: int) -> Sequence[Strategy]:
        if weight[0] % degree:
            return ()
        return (Strategy("cut v", (shard(0), REPLICATE), PARTIAL, share=True, kernel="vocab_embedding"),)

    return AxisSpec(
        ((("v",), ("h",)), lead),
        (*lead, ("h",)),
        sizes | {"v": weight[0]},
        fixed=frozenset({"v"}),
        extra=rows,
    )


@register(_aten.scaled_dot_product_attention.default)
def attention(node: fx.Node) -> AxisSpec | None:
    """q ``… q d``, k ``… k d``, v ``… k e``; leading dims (batch, heads) can be cut, sequences not (yet)."""
    if is_random(node):
        return None
    sources = tensor_arguments(node)
    shapes = [shape_of(source) for source in sources]
    q, k, v = shapes[:3]
    if shape_of(node)[:-2] != q[:-2]:
        return None
    lead = tuple((f"d{i}",) if n > 1 else () for i, n in enumerate(q[:-2]))
    sizes = {f"d{i}": n for i, n in enumerate(q[:-2]) if n > 1} | {
        "q": q[-2],
        "k": k[-2],
        "d": q[-1],
        "e": v[-1],
    }
    # keys shared by several heads or samples cannot be cut along with their queries
    shared = {f"d{i}" for i in range(len(lead)) if not q[i] == k[i] == v[i]}
    fixed = {"q", "k", "d", "e"} | shared
    inputs: list[Dims] = [(*lead, ("q",), ("d",)), (*lead, ("k",), ("d",)), (*lead, ("k",), ("e",))]
    for mask in shapes[3:]:
        own = [1] * (len(q) - len(mask)) + list(mask)
        dims = tuple(lead[i] if n > 1 else () for i, n in enumerate(own[:-2]))
        rows, columns = own[-2], own[-1]
        inputs.append(
            (*dims, ("q",) if rows > 1 else (), ("k",) if columns > 1 else ())[len(q) - len(mask) :]
        )
    roles = dict.fromkeys((f"d{i}" for i in range(len(lead))), "batch")
    return AxisSpec(tuple(inputs), (*lead, ("q",), ("e",)), sizes, fixed=frozenset(fixed), gemm=roles)


@register(_aten.cross_entropy_loss.default)
def cross_entropy(node: fx.Node) -> AxisSpec | None:
    """Logits ``t v``, targets ``t``. The mean over tokens stays whole; v is cut by a kernel of its own."""
    logits = shape_of(node.args[0])
    plain = (
        len(tensor_arguments(node)) == 2
        and len(logits) == 2
        and len(shape_of(node.args[1])) == 1
        and argument(node, 3, "reduction", 1) == 1
        and argument(node, 5, "label_smoothing", 0.0) == 0.0
    )
    if not plain:
        return None
    tokens, vocabulary = logits

    def classes(degree: int) -> Sequence[Strategy]:
        if vocabulary % degree:
            return ()
        # the largest logit, the sum of exponentials, the target's logit: one number a token each, in fp32
        sent = tuple(InternalCollective(Collective.ALL_REDUCE, 4 * tokens, "forward") for _ in range(3))
        return (
            Strategy(
                "cut v",
                (shard(1), REPLICATE),
                REPLICATE,
                share=True,
                kernel="vocab_cross_entropy",
                internal=sent,
            ),
        )

    return AxisSpec(
        ((("t",), ("v",)), (("t",),)),
        (),
        {"t": tokens, "v": vocabulary},
        fixed=frozenset({"t", "v"}),
        extra=classes,
    )
