"""Examples of the other ops: makers, aliases, losses, products by equation, recurrent layers, experts."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from op_example import Example, aten, normal, positive, some, whole

from autoplan.graph.functions import FunctionCall
from autoplan.graph.sources import grouped_mm, linear_recurrence

_ = grouped_mm, linear_recurrence  # they register torch.ops.autoplan.grouped_mm and linear_recurrence


def other_examples() -> Iterator[Example]:
    yield from _elementwise()
    yield from _reductions()
    yield from _makers()
    yield from _moves()
    yield from _losses()
    yield from _products()
    yield from _layers()


def _elementwise() -> Iterator[Example]:
    x, y = normal(4, 8), positive(4, 8)
    for name in ("multiply", "subtract", "divide", "true_divide"):
        yield Example(getattr(aten, name).Tensor, (x, y), cuts="d0 d1")
    for name in ("multiply", "divide"):
        yield Example(getattr(aten, name).Scalar, (x, 3.0), cuts="d0 d1")
    yield Example(
        aten.div.Tensor, (torch.tensor(2.0, dtype=torch.float64), y), cuts="d0 d1", label="of-a-number"
    )
    yield Example(aten.full_like.default, (x, 2.0), {"pin_memory": False}, cuts="d0 d1")
    for name in ("log_sigmoid", "negative", "absolute", "arctan", "special_expit", "lift_fresh_copy"):
        yield Example(getattr(aten, name).default, (x,), cuts="d0 d1")
    yield Example(aten.float_power.Tensor_Scalar, (y, 1.5), cuts="d0 d1")
    yield Example(aten.isclose.default, (x, normal(8)), cuts="d0 d1")
    for name in ("greater", "less"):
        yield Example(getattr(aten, name).Tensor, (x, y), cuts="d0 d1")
    yield Example(aten.not_equal.Scalar, (whole(3, 4, 8), 1), cuts="d0 d1")
    yield Example(aten.floor_divide.default, (whole(9, 4, 8), whole(3, 8) + 1), cuts="d0 d1")
    yield Example(aten.floor_divide.Scalar, (whole(9, 4, 8), 2), cuts="d0 d1")
    yield Example(aten.where.ScalarOther, (some(4, 1), x, -1.0), cuts="d0 d1")
    yield Example(aten.where.ScalarSelf, (some(4, 8), 1.0, normal(8)), cuts="d0 d1")
    yield Example(aten.where.Scalar, (some(4, 8), 1.0, 2.0), cuts="d0 d1")
    for name in ("__or__", "__xor__"):
        yield Example(getattr(aten, name).Tensor, (some(4, 8), some(8)), cuts="d0 d1")
    yield Example(aten.copy.default, (x, normal(8)), cuts="d0 d1", constant=(0, 1))
    yield Example(aten.fill.Tensor, (x, normal()), cuts="d0 d1")
    yield Example(aten.fill.Scalar, (x, 2.0), cuts="d0 d1")
    yield Example(aten.to.device, (x.float(), torch.device("cpu"), torch.float64), cuts="d0 d1")
    yield Example(aten.to.other, (x.float(), normal(3, 5, 7)), cuts="d0 d1", constant=(1,))
    yield Example(aten.type_as.default, (x.float(), normal(4, 8)), cuts="d0 d1", constant=(1,))
    yield Example(aten._log_softmax.default, (x, 1, False), cuts="d0")


def _reductions() -> Iterator[Example]:
    x = normal(4, 8, 12)
    for keep in (False, True):
        label = "keep" if keep else ""
        yield Example(aten.linalg_vector_norm.default, (x, 2.0, [1], keep), cuts="d0 d2", label=label)
        yield Example(aten.norm.ScalarOpt_dim, (x, 2.0, [1], keep), cuts="d0 d2", label=label)
        for name in ("max", "min", "median"):
            yield Example(getattr(aten, name).dim, (x, 1, keep), cuts="d0 d2", label=label)
        for name in ("argmax", "argmin"):
            yield Example(getattr(aten, name).default, (x, 1, keep), cuts="d0 d2", label=label)
        yield Example(aten.prod.dim_int, (x, 1, keep), cuts="d0 d2", label=label)
        for name in ("var", "std"):
            yield Example(getattr(aten, name).dim, (x, [1], True, keep), cuts="d0 d2", label=label)
        kwargs = {"correction": 1, "keepdim": keep}
        yield Example(aten.var_mean.correction, (x, [1]), kwargs, cuts="d0 d2", label=label)
        yield Example(aten.std.correction, (x, [1]), kwargs, cuts="d0 d2", label=label)
    yield Example(aten.count_nonzero.dim_IntList, (whole(2, 4, 8), [1]), cuts="d0")
    yield Example(aten.argmax.default, (x,), label="all")
    for name in ("max", "min", "var", "std", "prod"):
        yield Example(getattr(aten, name).default, (x,))
    for name in ("any", "all"):
        yield Example(getattr(aten, name).default, (some(4, 8),))


def _makers() -> Iterator[Example]:
    like = normal(3, 5)
    double = {"dtype": torch.float64}
    for name in ("zeros", "ones"):
        yield Example(getattr(aten, name).default, ([4, 8],), double, cuts="d0 d1")
        new = getattr(aten, f"new_{name}").default
        yield Example(new, (like, [4, 8]), cuts="d0 d1", constant=(0,))
        yield Example(new, (like, [3, 5]), label="alike", constant=(0,))
    yield Example(aten.full.default, ([4, 8], 2.0), double, cuts="d0 d1")
    yield Example(aten.new_full.default, (like, [4, 8], 2.0), cuts="d0 d1", constant=(0,))
    yield Example(aten.arange.default, (8,))
    yield Example(aten.arange.start, (2, 8))
    yield Example(aten.arange.start_step, (0, 16, 2))
    yield Example(aten.linspace.default, (0.0, 1.0, 8), double)
    yield Example(aten.scalar_tensor.default, (2.0,), double)
    yield Example(aten.eye.default, (8,), double)
    yield Example(aten.eye.m, (8, 4), double)
    yield Example(aten.hann_window.default, (8,), double)
    for name in ("tril_indices", "triu_indices"):
        yield Example(getattr(aten, name).default, (4, 4, 0))


def _moves() -> Iterator[Example]:
    x = normal(4, 8, 12)
    yield Example(aten.ravel.default, (x,), cuts="a0 a1 a2")
    yield Example(aten.view_copy.default, (x, [32, 12]), cuts="a0 a1 a2")
    yield Example(aten.view_as.default, (x, normal(32, 12)), cuts="a0 a1 a2", constant=(1,))
    yield Example(aten.reshape_as.default, (x, normal(4, 96)), cuts="a0 a1 a2", constant=(1,))
    yield Example(aten.movedim.intlist, (x, [0, 1], [2, 0]), cuts="d0 d1 d2")
    yield Example(aten.moveaxis.int, (x, 0, -1), cuts="d0 d1 d2")
    for name in ("swapaxes", "swapdims"):
        yield Example(getattr(aten, name).default, (x, 0, 2), cuts="d0 d1 d2")
    for name in ("numpy_T", "mT"):
        yield Example(getattr(aten, name).default, (normal(4, 8),), cuts="d0 d1")
    yield Example(aten.expand_as.default, (normal(8, 1), x), cuts="d0 d1 d2", constant=(1,))
    yield Example(aten.broadcast_to.default, (normal(8, 1), [4, 8, 12]), cuts="d0 d1 d2")
    yield Example(aten.broadcast_tensors.default, ([normal(8, 1), x],), cuts="d0 d1 d2")
    yield Example(aten.meshgrid.default, ([normal(4), normal(8)],), cuts="d0 d1")
    yield Example(
        aten.meshgrid.indexing, ([normal(4), normal(8), normal(12)],), {"indexing": "xy"}, cuts="d0 d1 d2"
    )
    for name in ("repeat", "tile"):
        target = getattr(aten, name).default
        yield Example(target, (normal(4, 1, 8), [2, 3, 1]), cuts="r0 d0 d2", label="copies")
        yield Example(target, (normal(1, 8), [4, 2]), cuts="r0 r1 d1", label="widened")
    yield Example(aten.repeat.default, (normal(8), [4, 1]), cuts="r0 d1", label="new-dim")
    yield Example(aten.repeat_interleave.self_int, (x, 2, 1), cuts="d0 d1 r d2")
    yield Example(aten.repeat_interleave.self_int, (normal(4, 1, 8), 4, -2), cuts="d0 r d2", label="one")
    yield Example(aten.repeat_interleave.self_int, (x, 2), label="flat")
    yield Example(aten.expand_copy.default, (normal(1, 8, 1), [4, -1, 12]), cuts="d0 d1 d2")
    yield Example(aten.unbind_copy.int, (x, 1), cuts="d0 d2")
    yield Example(aten.slice_copy.Tensor, (x, 1, 0, 8), cuts="d0 d1 d2")
    yield Example(aten.permute_copy.default, (x, [2, 0, 1]), cuts="d0 d1 d2")
    yield Example(aten.transpose_copy.int, (x, 1, 2), cuts="d0 d1 d2")
    yield Example(aten.t_copy.default, (normal(4, 8),), cuts="d0 d1")
    ones = normal(4, 1, 2)
    yield Example(aten.unsqueeze_copy.default, (x, 1), cuts="a0 a1 a2")
    yield Example(aten.squeeze_copy.dim, (ones, 1), cuts="a0 a1")
    yield Example(aten.squeeze_copy.dims, (ones, [1, 2]), cuts="a0 a1")
    yield Example(aten.squeeze_copy.default, (ones,), cuts="a0 a1")
    yield Example(aten.select_copy.int, (x, 1, 3), cuts="d0 d2")
    yield Example(aten.split.sizes, (normal(4, 24), [12, 12], 1), cuts="d0 within")
    yield Example(aten.unsafe_chunk.default, (normal(4, 24), 3, 1), cuts="d0 within")
    yield Example(aten.unsafe_split.Tensor, (normal(4, 24), 8, 1), cuts="d0 within")
    yield Example(aten.tensor_split.sections, (normal(4, 24), 3, 1), cuts="d0 within")


def _losses() -> Iterator[Example]:
    x, y = normal(8, 12), normal(8, 12)
    targets = {
        "mse_loss": y,
        "l1_loss": y,
        "smooth_l1_loss": y,
        "huber_loss": y,
        "binary_cross_entropy_with_logits": positive(8, 12) / 2,
        "kl_div": positive(8, 12),
        "soft_margin_loss": y.sign(),
        "poisson_nll_loss": positive(8, 12),
        "binary_cross_entropy": positive(8, 12) / 2,
    }
    for name, target in targets.items():
        own = torch.sigmoid(x) if name == "binary_cross_entropy" else x
        for reduction, label in ((0, "none"), (1, "mean"), (2, "sum")):
            kwargs = {"reduction": reduction}
            args = (own, target)
            if name == "poisson_nll_loss":
                args, kwargs = (own, target, True, False, 1e-8, reduction), {}
            graded = (1,) if name != "mse_loss" else ()
            yield Example(
                getattr(aten, name).default, args, kwargs, cuts="d0 d1", label=label, constant=graded
            )
    yield Example(aten.mse_loss.default, (x, normal(8, 1)), label="broadcast")
    weighted = (x, targets["binary_cross_entropy_with_logits"], None, positive(12))
    yield Example(
        aten.binary_cross_entropy_with_logits.default,
        weighted,
        cuts="d0 d1",
        label="weighted",
        constant=(1, 2),
    )
    classes = whole(12, 8)
    for reduction, cuts in ((0, "d0"), (1, ""), (2, "d0")):
        kwargs = {"reduction": reduction}
        yield Example(
            aten.cross_entropy_loss.default,
            (x, classes),
            kwargs,
            cuts=f"{cuts} v",
            label=f"reduced-{reduction}",
        )
        for name in ("nll_loss", "nll_loss_nd"):
            yield Example(
                getattr(aten, name).default, (x, classes), kwargs, cuts=cuts, label=f"reduced-{reduction}"
            )
    smooth = {"label_smoothing": 0.1, "reduction": 2}
    yield Example(aten.cross_entropy_loss.default, (x, classes), smooth, cuts="d0 v", label="smooth")
    image, pixels = normal(4, 12, 8), whole(12, 4, 8)
    yield Example(
        aten.cross_entropy_loss.default, (image, pixels), {"reduction": 2}, cuts="d0 d2 v", label="image"
    )
    weighted = (x, classes, positive(12))
    yield Example(
        aten.cross_entropy_loss.default,
        weighted,
        {"reduction": 2},
        cuts="d0",
        label="weighted-sum",
        constant=(2,),
    )
    yield Example(aten.cross_entropy_loss.default, (x, torch.softmax(y, 1)), cuts="d0", label="probabilities")
    yield Example(aten.cross_entropy_loss.default, (normal(12), whole(12)), label="one-sample")
    yield Example(
        aten.nll_loss2d.default, (normal(4, 12, 8, 3), whole(12, 4, 8, 3)), {"reduction": 0}, cuts="d0 d2"
    )


def _products() -> Iterator[Example]:
    yield Example(aten.mv.default, (normal(8, 12), normal(12)), cuts="m k")
    yield Example(aten.dot.default, (normal(12), normal(12)), cuts="k")
    yield Example(aten.matmul.default, (normal(12), normal(4, 12, 20)), cuts="d0 n k", label="left-vector")
    for name in ("outer", "ger"):
        yield Example(getattr(aten, name).default, (normal(8), normal(12)), cuts="m n")
    lower = torch.eye(6, dtype=torch.float64) * 3 + normal(4, 1, 6, 6).tril(-1)
    solve = aten.linalg_solve_triangular.default
    yield Example(solve, (lower, normal(4, 8, 6, 12)), {"upper": False}, cuts="d0 d1 d3")
    right = {"upper": False, "left": False}
    yield Example(solve, (lower, normal(4, 8, 12, 6)), right, cuts="d0 d1 d2", label="right")
    bmm = (normal(4, 8, 12), normal(4, 12, 20))
    yield Example(
        aten.baddbmm.default, (normal(4, 1, 20), *bmm), {"beta": 2.0, "alpha": 0.5}, cuts="d0 m n k"
    )
    yield Example(aten.baddbmm.default, (normal(20), *bmm), cuts="d0 m n k", label="bias")
    a, b = normal(4, 8, 12), normal(4, 12, 20)
    einsum = aten.einsum.default
    yield Example(einsum, ("bik,bkj->bij", [a, b]), cuts="b i j k")
    yield Example(einsum, ("bik,bkj", [a, b]), cuts="b i j k", label="implicit")
    yield Example(einsum, ("...k,kj->...j", [a, normal(12, 20)]), cuts="e0 e1 j k", label="dots")
    yield Example(einsum, ("bik->kb", [a]), cuts="b i k", label="one")
    yield Example(
        einsum, ("bi,bj,bk->ijk", [normal(4, 8), normal(4, 2), normal(4, 12)]), cuts="b i j k", label="three"
    )
    yield Example(einsum, ("bik,bkj->bij", [normal(1, 8, 12), b]), cuts="b i j k", label="broadcast")
    yield Example(einsum, ("ii->i", [normal(8, 8)]), label="diagonal")


def _layers() -> Iterator[Example]:
    def weights(gates: int) -> list[torch.Tensor]:
        return [normal(gates * 8, 12), normal(gates * 8, 8), normal(gates * 8), normal(gates * 8)]

    rest = (True, 1, 0.0, True, False, True)
    frozen = tuple(range(2, 7))
    x, h = normal(4, 3, 12), normal(1, 4, 8)
    yield Example(aten.lstm.input, (x, [h, normal(1, 4, 8)], weights(4), *rest), cuts="b", constant=frozen)
    yield Example(aten.gru.input, (x, h, weights(3), *rest), cuts="b", constant=frozen)
    for name in ("rnn_tanh", "rnn_relu"):
        yield Example(getattr(aten, name).input, (x, h, weights(1), *rest), cuts="b", constant=frozen)
    sequence_first = (x.transpose(0, 1).contiguous(), h, weights(3), True, 1, 0.0, True, False, False)
    yield Example(aten.gru.input, sequence_first, cuts="b", label="sequence-first", constant=frozen)
    scan = torch.ops.autoplan.linear_recurrence.default
    yield Example(scan, (positive(4, 5, 8), normal(4, 5, 8), 1), cuts="d0 d2")
    ends = torch.tensor([3, 3, 8, 12])
    grouped = (normal(12, 8), normal(4, 8, 16), ends)
    yield Example(torch.ops.autoplan.grouped_mm.default, grouped, cuts="d f e")
    short = (normal(12, 8), normal(4, 8, 16), torch.tensor([3, 3, 8, 10]))
    yield Example(torch.ops.autoplan.grouped_mm.default, short, cuts="d f e", label="rows-left-over")
    yield Example(aten.copy_.default, (whole(9, 4, 8), whole(9, 4, 8)))
    try:
        import transformers.integrations.moe
        from transformers.models.bloom.modeling_bloom import GeLUFunction
        from transformers.models.phimoe.modeling_phimoe import PhimoeMultiplier
        from transformers.models.recurrent_gemma.modeling_recurrent_gemma import SqrtBoundDerivative
    except ImportError:
        return
    yield Example(FunctionCall(GeLUFunction), (normal(4, 8),), cuts="lead1 lead2")
    yield Example(FunctionCall(SqrtBoundDerivative), (positive(4, 8),), cuts="lead1 lead2")
    routed = (normal(4, 8), positive(4, 1), whole(8, 4, 1), positive(4, 8), positive(4, 1))
    yield Example(FunctionCall(PhimoeMultiplier), routed, cuts="t", constant=(1, 3, 4))
    _ = transformers.integrations.moe
    int32 = (*grouped[:2], ends.int())
    yield Example(torch.ops.transformers.grouped_mm_fallback.default, int32, cuts="d f e")
