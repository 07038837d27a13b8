"""Rules whose answer depends on the shape, at shapes drawn at random: odd sizes, ones, windows that do not fit.

Every strategy that the enumerator offers is run on shards and compared with the whole, forward and backward, as in
``test_axes``; there the shapes are chosen so that everything can be cut, here so that much cannot.
"""

from __future__ import annotations

from typing import Any

import hypothesis.strategies as st
from hypothesis import HealthCheck, given, settings
from op_example import Example, aten, normal, whole
from test_axes import TALKING, Call, _tensors, check

from autoplan.graph.axes import strategies

few = settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.too_slow])
SIZES = st.sampled_from([1, 2, 3, 4, 6])


def run(target: Any, args: tuple[Any, ...], kwargs: dict[str, Any] | None = None) -> None:
    """Every strategy of one call, on 2 and on 3 ranks, all that can carrying a gradient."""
    example = Example(target, args, kwargs or {})
    count = sum(tensor.is_floating_point() for tensor in _tensors(example))
    call = Call(example, (True,) * count)
    for degree in (2, 3):
        for strategy in strategies(call.block, call.op, degree):
            if strategy.kernel not in TALKING:
                check(call, strategy, degree)


def shapes(least: int = 1, most: int = 3) -> st.SearchStrategy[list[int]]:
    return st.lists(SIZES, min_size=least, max_size=most)


@few
@given(shapes(0), st.data())
def test_reshapes(shape: list[int], data: st.DataObject) -> None:
    """Into the same dims merged, split or in another order of sizes."""
    target = list(data.draw(st.permutations(shape)))
    if len(target) > 1 and data.draw(st.booleans()):
        target[:2] = [target[0] * target[1]]
    if target and target[-1] % 2 == 0 and data.draw(st.booleans()):
        target[-1:] = [target[-1] // 2, 2]
    run(aten.reshape.default, (normal(*shape), target))


@few
@given(shapes(), st.data())
def test_expansions_and_repeats(shape: list[int], data: st.DataObject) -> None:
    lead = data.draw(shapes(0, 1))
    wide = [data.draw(SIZES) if n == 1 else n for n in shape]
    run(aten.expand.default, (normal(*shape), [*lead, *wide]))
    times = [data.draw(st.sampled_from([1, 2, 3])) for _ in (*lead, *shape)]
    run(aten.repeat.default, (normal(*shape), times))
    dim = data.draw(st.integers(-len(shape), len(shape) - 1))
    run(aten.repeat_interleave.self_int, (normal(*shape), times[0], dim))


@few
@given(shapes(), st.data())
def test_pieces_and_joins(shape: list[int], data: st.DataObject) -> None:
    dim = data.draw(st.integers(-len(shape), len(shape) - 1))
    n = shape[dim]
    size = data.draw(st.integers(1, n))
    pieces = Example(aten.split.Tensor, (normal(*shape), size, dim))
    run(pieces.target, pieces.args)
    run(aten.chunk.default, (normal(*shape), size, dim))
    other = list(shape)
    other[dim] = size
    run(aten.cat.default, ([normal(*shape), normal(*other)], dim))
    start = data.draw(st.integers(0, n - 1))
    stop = data.draw(st.integers(start + 1, n))
    run(aten.slice.Tensor, (normal(*shape), dim, start, stop))
    run(aten.slice_scatter.default, (normal(*shape), normal(*other), dim, 0, size))
    run(aten.pad.default, (normal(*shape), [start, stop - start]))


@settings(few, max_examples=30)
@given(st.data())
def test_convolutions(data: st.DataObject) -> None:
    groups = data.draw(st.sampled_from([1, 1, 2, 4, 6]))
    into, out = (groups * data.draw(st.sampled_from([1, 2, 3])) for _ in range(2))
    kernel = data.draw(st.integers(1, 3))
    stride = data.draw(st.sampled_from([kernel, kernel, 1, 2, 3]))
    padding, dilation = data.draw(st.sampled_from([0, 0, 0, 1])), data.draw(st.sampled_from([1, 1, 2]))
    size = data.draw(st.integers(dilation * (kernel - 1) + 1, 14))
    x = normal(data.draw(SIZES), into, size)
    bias = normal(out) if data.draw(st.booleans()) else None
    rest = ([stride], [padding], [dilation])
    run(aten.conv1d.default, (x, normal(out, into // groups, kernel), bias, *rest, groups))
    if padding <= dilation * (kernel - 1):
        transposed = (
            x,
            normal(into, out // groups, kernel),
            bias,
            [stride],
            [padding],
            [0],
            groups,
            [dilation],
        )
        run(aten.conv_transpose1d.default, transposed)


@few
@given(st.data())
def test_pools_and_pixels(data: st.DataObject) -> None:
    kernel = data.draw(st.integers(1, 3))
    stride = data.draw(st.sampled_from([kernel, kernel, 1, 2, 3]))
    size = data.draw(st.integers(kernel, 14))
    x = normal(data.draw(SIZES), data.draw(SIZES), size)
    ceil = data.draw(st.booleans())
    run(aten.avg_pool1d.default, (x, [kernel], [stride], [0], ceil))
    run(aten.max_pool1d.default, (x, [kernel], [stride], [0], 1, ceil))
    r, image = data.draw(st.sampled_from([1, 2, 3])), data.draw(shapes(4, 4))
    n, c, h, w = image
    run(aten.pixel_shuffle.default, (normal(n, c * r * r, h, w), r))
    run(aten.pixel_unshuffle.default, (normal(n, c, h * r, w * r), r))


@few
@given(shapes(), st.data())
def test_reads_and_writes(shape: list[int], data: st.DataObject) -> None:
    dim = data.draw(st.integers(0, len(shape) - 1))
    x = normal(*shape)
    asked = [data.draw(st.integers(1, n)) if i != dim else data.draw(SIZES) for i, n in enumerate(shape)]
    places = whole(shape[dim], *asked)
    run(aten.gather.default, (x, dim, places))
    run(aten.scatter_add.default, (x, dim, places, normal(*asked)))
    rows = whole(shape[dim], *data.draw(shapes(1, 2)))
    run(aten.index.Tensor, (x, [None] * dim + [rows]))
    picked = [*shape[:dim], *rows.shape, *shape[dim + 1 :]]
    run(aten.index_put.default, (x, [None] * dim + [rows], normal(*picked), True))
    run(
        aten.index_add.default,
        (x, dim, rows.flatten(), normal(*shape[:dim], rows.numel(), *shape[dim + 1 :])),
    )


@few
@given(st.data())
def test_products_and_attention(data: st.DataObject) -> None:
    n, m, k, o = (data.draw(SIZES) for _ in range(4))
    lead = data.draw(shapes(0, 2))
    left = [1 if data.draw(st.booleans()) else extent for extent in lead]
    run(aten.matmul.default, (normal(*left, m, k), normal(*lead, k, o)))
    run(aten.einsum.default, ("...mk,nko->n...mo", [normal(*left, m, k), normal(n, k, o)]))
    heads, group = data.draw(st.sampled_from([1, 2, 4])), data.draw(st.sampled_from([1, 2, 3]))
    q, keys = normal(n, heads * group, m, 4), normal(n, heads, k, 4)
    mask = normal(*data.draw(st.sampled_from([(m, k), (1, k), (n, 1, m, k), (1, heads * group, 1, k)])))
    run(aten.scaled_dot_product_attention.default, (q, keys, keys, mask), {"enable_gqa": group > 1})


@few
@given(st.data())
def test_norms_over_groups(data: st.DataObject) -> None:
    groups, within = data.draw(st.sampled_from([1, 2, 3, 4])), data.draw(st.sampled_from([1, 2, 3]))
    channels = groups * within
    x = normal(data.draw(SIZES), channels, 1 + data.draw(SIZES))
    run(aten.group_norm.default, (x, groups, normal(channels), normal(channels)))
