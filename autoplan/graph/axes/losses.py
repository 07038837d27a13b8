"""Axes of losses: classes by a kernel of their own, the rest summed, averaged or left apart."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import fx

from autoplan.graph.axes.spec import AxisSpec, Dims, is_floating, named, plain, register, shape_of
from autoplan.graph.gemms import tensor_arguments
from autoplan.graph.layout import REPLICATE, Collective, Layout, shard
from autoplan.graph.strategy import InternalCollective, Strategy

_aten = torch.ops.aten
_NONE, _MEAN, _SUM = 0, 1, 2


@register(_aten.cross_entropy_loss.default)
def cross_entropy(node: fx.Node) -> AxisSpec | None:
    """Logits ``t v …``, targets ``t …``. The mean over tokens stays whole, since it is over those that count, which
    a rank does not know; v is cut by a kernel of its own."""
    logits = shape_of(node.args[0])
    if is_floating(node.args[1]):
        return _class_probabilities(node, logits)
    spec = _indexed_classes(node, logits)
    weighted = len(tensor_arguments(node)) > 2
    if spec is None or weighted or len(logits) == 1:
        return spec
    tokens, vocabulary = int(torch.Size(logits).numel()) // logits[1], logits[1]
    smoothed = named(node, "label_smoothing") > 0
    itemsize = max(4, node.args[0].meta["val"].element_size())  # type: ignore[union-attr]

    def classes(degree: int) -> Sequence[Strategy]:
        if vocabulary % degree:
            return ()
        # the largest logit, the sum of exponentials, the target's logit: one number a token each
        sums = 4 if smoothed else 3
        sent = tuple(
            InternalCollective(Collective.ALL_REDUCE, itemsize * tokens, "forward") for _ in range(sums)
        )
        cut: tuple[Layout, ...] = (shard(1), REPLICATE)
        return (Strategy("cut v", cut, REPLICATE, share=True, kernel="vocab_cross_entropy", internal=sent),)

    return AxisSpec(spec.inputs, spec.output, spec.sizes, fixed=spec.fixed, extra=classes)


@register(_aten.nll_loss.default, _aten.nll_loss_nd.default, _aten.nll_loss2d.default)
def nll(node: fx.Node) -> AxisSpec | None:
    """As cross-entropy, of logarithms of probabilities; classes stay whole."""
    return _indexed_classes(node, shape_of(node.args[0]))


def _indexed_classes(node: fx.Node, logits: tuple[int, ...]) -> AxisSpec | None:
    """Input ``t v …`` (or ``v``), target ``t …``, weights ``v``."""
    axes, sizes = plain(logits)
    dim = 1 if len(logits) > 1 else 0
    if axes[dim]:
        sizes = {"v" if name == axes[dim][0] else name: n for name, n in sizes.items()}
        axes = (*axes[:dim], ("v",), *axes[dim + 1 :])
    apart: Dims = tuple(own for i, own in enumerate(axes) if i != dim)
    inputs = (axes, apart, *((axes[dim],) for _ in tensor_arguments(node)[2:]))
    reduction = named(node, "reduction")
    fixed = {"v"} if reduction in (_NONE, _SUM) else set(sizes)
    return AxisSpec(inputs, apart if reduction == _NONE else (), sizes, fixed=frozenset(fixed) & sizes.keys())


def _class_probabilities(node: fx.Node, logits: tuple[int, ...]) -> AxisSpec | None:
    """Logits and targets ``t v …`` both; the mean is over t."""
    if len(tensor_arguments(node)) > 2 or len(logits) < 2 or shape_of(node.args[1]) != logits:
        return None
    axes, sizes = plain(logits)
    apart: Dims = tuple(own for i, own in enumerate(axes) if i != 1)
    reduction = named(node, "reduction")
    averaged = frozenset(sizes) - frozenset(axes[1]) if reduction == _MEAN else frozenset()
    output = apart if reduction == _NONE else ()
    return AxisSpec((axes, axes), output, sizes, fixed=frozenset(axes[1]), averaged=averaged)


@register(
    _aten.mse_loss.default, _aten.l1_loss.default, _aten.smooth_l1_loss.default, _aten.huber_loss.default,
    _aten.binary_cross_entropy.default, _aten.binary_cross_entropy_with_logits.default, _aten.kl_div.default,
    _aten.soft_margin_loss.default, _aten.poisson_nll_loss.default,
)  # fmt: skip
def elementwise_loss(node: fx.Node) -> AxisSpec | None:
    """Element by element, then nothing, the mean over all, or the sum. Weights may be broadcast."""
    shapes = [shape_of(source) for source in tensor_arguments(node)]
    whole = shapes[0]
    if shapes[1] != whole:
        return None  # torch's own gradient is wrong here, and its functions broadcast before they call the op
    axes, sizes = plain(whole)
    inputs = tuple(
        tuple(axes[len(whole) - len(own) + i] if n > 1 else () for i, n in enumerate(own)) for own in shapes
    )
    reduction = named(node, "reduction")
    averaged = frozenset(sizes) if reduction == _MEAN else frozenset()
    return AxisSpec(inputs, axes if reduction == _NONE else (), sizes, averaged=averaged)
