"""A small call of every op that has a rule, for running each of its strategies on shards.

Sizes are multiples of 4 where a dim should be cut on 4 ranks, and differ from one another, so that a wrong
dim shows. ``cuts`` names the axes that 2 ranks must be able to cut (without parts); a rule that quietly gives
up is then a failure.
"""

from __future__ import annotations

import operator
from collections.abc import Iterator

import torch
from op_example import Example, aten, normal, positive, some, whole
from op_examples_index import index_examples
from op_examples_rest import other_examples
from op_examples_space import space_examples

__all__ = ["Example", "examples"]


def examples() -> Iterator[Example]:
    yield from _elementwise()
    yield from _reductions()
    yield from _products()
    yield from _views()
    yield from _pieces()
    yield from space_examples()
    yield from index_examples()
    yield from other_examples()


def _elementwise() -> Iterator[Example]:
    for name in [
        "neg",
        "alias",
        "contiguous",
        "clone",
        "detach",
        "silu",
        "gelu",
        "relu",
        "tanh",
        "sigmoid",
        "abs",
        "square",
        "cos",
        "sin",
        "erf",
        "softplus",
        "leaky_relu",
        "elu",
        "hardtanh",
        "expm1",
        "mish",
        "hardswish",
        "zeros_like",
        "ones_like",
        "exp",
    ]:
        yield Example(getattr(aten, name).default, (normal(4, 1, 8),), cuts="d0 d2")
    for name in ["rsqrt", "sqrt", "log", "reciprocal", "log1p"]:
        yield Example(getattr(aten, name).default, (positive(4, 8),), cuts="d0 d1")
    for name in ["to.dtype", "_to_copy.default"]:
        op, overload = name.split(".")
        to = (torch.float64,) if op == "to" else ()
        kwargs = {} if to else {"dtype": torch.float64}
        target = getattr(getattr(aten, op), overload)
        yield Example(target, (normal(4, 8).float(), *to), kwargs, cuts="d0 d1")
        yield Example(target, (whole(9, 4, 8), *to), kwargs, cuts="d0 d1", label="from-int")
    yield Example(aten.to.dtype_layout, (normal(4, 8),), {"dtype": torch.float32}, cuts="d0 d1")
    for name in ["add", "sub", "mul", "div"]:
        target = getattr(aten, name).Tensor
        yield Example(target, (normal(4, 8), positive(4, 8)), cuts="d0 d1")
        yield Example(target, (normal(4, 1, 8), positive(12, 1)), cuts="d0 d1 d2", label="broadcast")
        yield Example(target, (normal(4, 8), 3.0), cuts="d0 d1", label="number")
        x = positive(4, 8)
        yield Example(target, (x, x), cuts="d0 d1", label="with-itself")
        yield Example(getattr(aten, name).Scalar, (normal(4, 8), 3.0), cuts="d0 d1")
    yield Example(aten.add.Tensor, (normal(4, 8), normal(8)), {"alpha": 2.0}, cuts="d0 d1", label="alpha")
    yield Example(aten.rsub.Scalar, (normal(4, 8), 3.0), cuts="d0 d1")
    yield Example(aten.pow.Tensor_Scalar, (normal(4, 8), 2), cuts="d0 d1")
    yield Example(aten.pow.Tensor_Tensor, (positive(4, 8), normal(8)), cuts="d0 d1")
    yield Example(aten.maximum.default, (normal(4, 8), normal(4, 8)), cuts="d0 d1")
    yield Example(aten.minimum.default, (normal(4, 8), normal(8)), cuts="d0 d1")
    yield Example(aten.clamp.default, (normal(4, 8), -0.5, 0.5), cuts="d0 d1")
    yield Example(aten.where.self, (some(4, 1), normal(4, 8), normal(8)), cuts="d0 d1")
    yield Example(aten.masked_fill.Scalar, (normal(4, 8), some(4, 8), 0.0), cuts="d0 d1")
    yield Example(aten.masked_fill.Tensor, (normal(4, 8), some(8), normal()), cuts="d0 d1")
    for name in ["eq", "ne", "lt", "le", "gt", "ge"]:
        yield Example(getattr(aten, name).Tensor, (whole(3, 4, 8), whole(3, 8)), cuts="d0 d1")
        yield Example(getattr(aten, name).Scalar, (whole(3, 4, 8), 1), cuts="d0 d1")
    yield Example(aten.logical_not.default, (some(4, 8),), cuts="d0 d1")
    yield Example(aten.bitwise_not.default, (some(4, 8),), cuts="d0 d1")
    yield Example(aten.logical_and.default, (some(4, 8), some(4, 1)), cuts="d0 d1")
    yield Example(aten.__and__.Tensor, (some(4, 8), some(4, 1)), cuts="d0 d1")
    yield Example(aten.softmax.int, (normal(4, 8, 12), -1), cuts="d0 d1")
    yield Example(aten.softmax.int, (normal(4, 8, 12), 0), cuts="d1 d2", label="dim0")
    yield Example(aten.log_softmax.int, (normal(4, 8), 1), cuts="d0")
    yield Example(aten._softmax.default, (normal(4, 8), 1, False), cuts="d0")
    yield Example(aten.dropout.default, (normal(4, 8), 0.5, False), cuts="d0 d1", label="off")
    yield Example(aten.dropout.default, (normal(4, 8), 0.5, True), cuts="d0 d1", label="on")
    yield Example(aten.native_dropout.default, (normal(4, 8), 0.5, True))


def _reductions() -> Iterator[Example]:
    for keep in (False, True):
        label = "keep" if keep else ""
        yield Example(aten.sum.dim_IntList, (normal(4, 8, 12), [1], keep), cuts="d0 d1 d2", label=label)
        yield Example(aten.mean.dim, (normal(4, 8, 12), [-1, 0], keep), cuts="d0 d1 d2", label=label)
        yield Example(aten.amax.default, (normal(4, 8, 12), [-1], keep), cuts="d0 d1", label=label)
        yield Example(aten.amin.default, (normal(4, 8, 12), [1], keep), cuts="d0 d2", label=label)
        yield Example(aten.logsumexp.default, (normal(4, 8, 12), [1], keep), cuts="d0 d2", label=label)
        yield Example(aten.all.dim, (some(4, 8), 1, keep), cuts="d0", label=label)
        yield Example(aten.any.dim, (some(4, 8), 0, keep), cuts="d1", label=label)
        kwargs = {"correction": 0, "keepdim": keep}
        yield Example(
            aten.var.correction, (normal(4, 8, 12), [2]), kwargs, cuts="d0 d1", label=label or "drop"
        )
    yield Example(aten.sum.dim_IntList, (normal(4, 8), None), cuts="d0 d1", label="all")
    yield Example(aten.sum.default, (normal(4, 8),), cuts="d0 d1")
    yield Example(aten.sum.default, (some(4, 8),), label="count")
    yield Example(aten.mean.default, (normal(4, 8),), cuts="d0 d1")
    for affine in ((), (normal(12), normal(12))):
        label = "affine" if affine else ""
        yield Example(aten.layer_norm.default, (normal(4, 8, 12), [12], *affine), cuts="d0 d1", label=label)
        yield Example(
            aten.rms_norm.default,
            (
                normal(4, 8, 12),
                [12],
                *affine[:1],
            ),
            cuts="d0 d1",
            label=label,
        )
    yield Example(aten.layer_norm.default, (normal(4, 8, 12), [8, 12], normal(8, 12)), cuts="d0", label="two")
    yield Example(aten.layer_norm.default, (normal(4, 12), [12], None, normal(12)), cuts="d0", label="bias")


def _products() -> Iterator[Example]:
    yield Example(aten.linear.default, (normal(4, 8, 12), normal(20, 12)), cuts="d0 d1 o i")
    yield Example(
        aten.linear.default, (normal(4, 12), normal(20, 12), normal(20)), cuts="d0 o i", label="bias"
    )
    yield Example(aten.linear.default, (normal(12), normal(20, 12), normal(20)), cuts="o i", label="vector")
    yield Example(aten.addmm.default, (normal(20), normal(8, 12), normal(12, 20)), cuts="m o i")
    kwargs = {"beta": 3.0, "alpha": 0.5}
    yield Example(
        aten.addmm.default, (normal(20), normal(8, 12), normal(12, 20)), kwargs, cuts="m o i", label="scaled"
    )
    yield Example(aten.addmm.default, (normal(8, 20), normal(8, 12), normal(12, 20)), label="matrix")
    yield Example(aten.mm.default, (normal(8, 12), normal(12, 20)), cuts="m n k")
    yield Example(aten.bmm.default, (normal(4, 8, 12), normal(4, 12, 20)), cuts="d0 m n k")
    yield Example(aten.matmul.default, (normal(4, 8, 12), normal(12, 20)), cuts="d0 m n k")
    yield Example(
        aten.matmul.default, (normal(4, 1, 8, 12), normal(16, 12, 20)), cuts="d0 d1 m n k", label="broadcast"
    )
    yield Example(aten.matmul.default, (normal(8, 12), normal(12)), cuts="m k", label="vector")
    yield Example(aten.embedding.default, (normal(20, 12), whole(20, 4, 8)), cuts="d0 d1 h v")
    yield Example(
        aten.embedding.default, (normal(20, 12), whole(20, 4, 8), 3), cuts="d0 d1 h v", label="padding"
    )
    args = (normal(20, 12), whole(5, 4, 8), -1, True)
    yield Example(aten.embedding.default, args, label="by-frequency")
    attention = aten.scaled_dot_product_attention.default
    q, k, v = normal(4, 8, 6, 12), normal(4, 8, 10, 12), normal(4, 8, 10, 16)
    yield Example(attention, (q, k, v), cuts="d0 d1 q")
    yield Example(attention, (q, k, v, some(6, 10) | (torch.arange(10) == 0)), cuts="d0 d1 q", label="mask")
    yield Example(attention, (q, k, v, normal(4, 1, 6, 10)), cuts="d0 d1 q", label="bias")
    yield Example(attention, (q, k, v, normal(8, 1, 10)), cuts="d0 d1 q", label="bias-per-head")
    window = torch.ones(6, 6, dtype=torch.bool).tril() & torch.ones(6, 6, dtype=torch.bool).triu(-2)
    own = normal(4, 8, 6, 12)
    yield Example(attention, (q, own, own, window), cuts="d0 d1 q", label="sliding-window")
    square = normal(4, 8, 6, 12)
    yield Example(
        attention, (q, square, square), {"is_causal": True, "scale": 0.3}, cuts="d0 d1", label="causal"
    )
    few, one = normal(4, 4, 6, 12), normal(4, 1, 6, 12)
    yield Example(attention, (q, few, few), {"enable_gqa": True}, cuts="d0 kv group q", label="grouped")
    yield Example(attention, (q, one, one), {"enable_gqa": True}, cuts="d0 group q", label="multi-query")
    causal = {"enable_gqa": True, "is_causal": True}
    yield Example(attention, (q, few, few), causal, cuts="d0 kv group", label="grouped-causal")
    yield Example(
        attention,
        (q, few, few, normal(4, 8, 6, 6)),
        {"enable_gqa": True},
        cuts="d0 kv group q",
        label="grouped-bias",
    )
    yield Example(attention, (q, normal(1, 8, 6, 12), normal(4, 8, 6, 12)), label="shared-keys", cuts="d1 q")
    yield Example(attention, (normal(1, 8, 6, 12), k, v), label="shared-queries")
    yield Example(attention, (q, k, v, None, 0.5), cuts="d0 d1 q", label="dropout")
    target = whole(20, 8)
    yield Example(aten.cross_entropy_loss.default, (normal(8, 20), target), cuts="v")
    yield Example(
        aten.cross_entropy_loss.default,
        (normal(8, 20), target, positive(20)),
        label="weighted",
        constant=(2,),
    )


def _views() -> Iterator[Example]:
    for name in ["view.default", "reshape.default", "_unsafe_view.default"]:
        op, overload = name.split(".")
        target = getattr(getattr(aten, op), overload)
        yield Example(target, (normal(4, 96), [4, 8, 12]), cuts="a0 a1 a2", label="split")
        yield Example(target, (normal(4, 8, 12), [32, 12]), cuts="a0 a1 a2", label="merge")
        yield Example(target, (normal(8, 12), [1, 8, 1, 3, 4]), cuts="a0 a2", label="ones")
        yield Example(target, (normal(4, 3, 8), [12, 8]), cuts="a0 a2", label="uneven")
        yield Example(target, (normal(4, 6), [6, 4]), label="crossing")
    yield Example(aten.view.default, (normal(4, 96), [-1, 8, 12]), cuts="a0 a1 a2", label="minus")
    yield Example(aten.flatten.using_ints, (normal(4, 8, 12), 1, 2), cuts="a0 a1 a2")
    yield Example(aten.unflatten.int, (normal(4, 96), 1, [8, 12]), cuts="a0 a1 a2")
    yield Example(aten.squeeze.dim, (normal(4, 1, 8), 1), cuts="a0 a1")
    yield Example(aten.squeeze.dim, (normal(4, 2, 8), 1), cuts="a0 a1 a2", label="not-one")
    yield Example(aten.squeeze.default, (normal(4, 1, 2),), cuts="a0 a1")
    yield Example(aten.squeeze.dims, (normal(4, 1, 2, 1), [1, 2]), cuts="a0 a1")
    yield Example(aten.unsqueeze.default, (normal(4, 8), 1), cuts="a0 a1")
    yield Example(aten.unsqueeze.default, (normal(4, 8), -1), cuts="a0 a1", label="last")
    yield Example(aten.transpose.int, (normal(4, 8, 12), 1, -1), cuts="d0 d1 d2")
    yield Example(aten.permute.default, (normal(4, 8, 12), [2, 0, -2]), cuts="d0 d1 d2")
    yield Example(aten.t.default, (normal(4, 8),), cuts="d0 d1")
    yield Example(aten.movedim.int, (normal(4, 8), 0, 1), cuts="d0 d1")
    yield Example(aten.expand.default, (normal(1, 8, 1), [4, -1, 12]), cuts="d0 d1 d2")
    yield Example(aten.expand.default, (normal(8, 1), [4, 8, 12]), cuts="d0 d1 d2", label="new-dim")


def _pieces() -> Iterator[Example]:
    yield Example(aten.slice.Tensor, (normal(4, 8), 1, 2, 6), cuts="d0")
    yield Example(aten.slice.Tensor, (normal(4, 8), 1, 0, 9223372036854775807), cuts="d0 d1", label="all")
    yield Example(aten.slice.Tensor, (normal(4, 8), -1, 0, 8, 2), cuts="d0", label="step")
    yield Example(aten.narrow.default, (normal(4, 8), 1, 2, 4), cuts="d0")
    yield Example(aten.narrow.default, (normal(4, 8), 1, 0, 8), cuts="d0 d1", label="all")
    yield Example(aten.select.int, (normal(4, 8, 12), 1, -1), cuts="d0 d2")
    yield Example(aten.unbind.int, (normal(4, 8, 12), 1), cuts="d0 d2")
    yield Example(aten.split.Tensor, (normal(4, 24), 8, 1), cuts="d0 within")
    yield Example(aten.split.Tensor, (normal(4, 24), 8, -1), cuts="d0 within", label="last")
    yield Example(aten.split.Tensor, (normal(4, 20), 8, 1), cuts="d0", label="unequal")
    yield Example(aten.split_with_sizes.default, (normal(4, 24), [12, 12], 1), cuts="d0 within")
    yield Example(aten.split_with_sizes.default, (normal(4, 24), [16, 8], 1), cuts="d0", label="unequal")
    yield Example(aten.chunk.default, (normal(4, 24), 3, -1), cuts="d0 within")
    pieces = Example(aten.split.Tensor, (normal(4, 24), 8, 1))
    yield Example(operator.getitem, (pieces, 1), cuts="d0 d1")
    unequal = Example(aten.split_with_sizes.default, (normal(4, 24), [16, 8], 1))
    yield Example(operator.getitem, (unequal, 0), cuts="d0", label="unequal")
    yield Example(
        operator.getitem, (Example(aten.topk.default, (normal(4, 8), 4)), 0), cuts="d0 d1", label="topk"
    )
    yield Example(aten.cat.default, ([normal(4, 8), normal(4, 12)], 1), cuts="d0")
    for name in ("concat", "concatenate"):
        yield Example(getattr(aten, name).default, ([normal(4, 8), normal(4, 12)], 1), cuts="d0")
    yield Example(aten.cat.default, ([normal(1, 8), normal(3, 8)], 0), cuts="d1", label="one-row")
    yield Example(aten.stack.default, ([normal(4, 8), normal(4, 8)], 1), cuts="d0 d2")
    yield Example(aten.stack.default, ([normal(4, 8), normal(4, 8)], -1), cuts="d0 d1", label="last")
