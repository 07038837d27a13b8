"""Axes of a matrix product for each group of rows, as layers of experts make."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import fx

from autoplan.graph.axes.spec import AxisSpec, register, shape_of
from autoplan.graph.gemms import tensor_arguments
from autoplan.graph.layout import PARTIAL, REPLICATE, REPLICATE_STAR, Layout, shard
from autoplan.graph.strategy import Strategy


@register(
    "autoplan.grouped_mm.default",
    "transformers.grouped_mm_fallback.default",
    torch.ops.aten._grouped_mm.default,
)
def grouped_mm(node: fx.Node) -> AxisSpec | None:
    """``p d, e d f, e -> p f``: row p meets the expert whose group it is in.

    Features are cut as in any product. Experts are cut by a kernel in which a rank multiplies the rows of its own
    experts and leaves zeros elsewhere; routing is taken to be balanced. Rows stay whole: groups end where they end.
    """
    sources = tensor_arguments(node)
    if len(sources) != 3:
        return None
    x, w, ends = (shape_of(source) for source in sources)
    if (len(x), len(w), len(ends)) != (2, 3, 1):
        return None
    with_grad = [source.meta["val"].is_floating_point() for source in sources[:2]]

    def experts(degree: int) -> Sequence[Strategy]:
        if w[0] % degree:
            return ()
        rows: Layout = REPLICATE_STAR if with_grad[0] else REPLICATE
        cut = (rows, shard(0), REPLICATE)
        return (Strategy("cut e", cut, PARTIAL, share=True, gemm_axis="batch", kernel="own_experts"),)

    sizes = {"p": x[0], "d": x[1], "e": w[0], "f": w[2]}
    return AxisSpec(
        ((("p",), ("d",)), (("e",), ("d",), ("f",)), (("e",),)),
        (("p",), ("f",)),
        sizes,
        fixed=frozenset({"p", "e"}),
        gemm={"d": "k", "f": "n"},
        extra=experts,
    )
