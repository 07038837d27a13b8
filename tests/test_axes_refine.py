"""``refine`` finds the axes that two shapes share, as numpy's reshape would lay them out."""

from __future__ import annotations

import itertools
import math

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from autoplan.graph.axes.spec import Dims
from autoplan.graph.axes.views import refine

Shape = tuple[int, ...]


@st.composite
def grouped(draw: st.DrawFn, axes: list[int]) -> Shape:
    """``axes`` with some neighbours merged, and ones put anywhere."""
    shape: list[int] = []
    for size in axes:
        if shape and draw(st.booleans()):
            shape[-1] *= size
        else:
            shape.append(size)
    for _ in range(draw(st.integers(0, 2))):
        shape.insert(draw(st.integers(0, len(shape))), 1)
    return tuple(shape)


@st.composite
def reshapes(draw: st.DrawFn) -> tuple[Shape, Shape]:
    axes = draw(st.lists(st.integers(2, 5), max_size=5))
    return draw(grouped(axes)), draw(grouped(axes))


@st.composite
def shapes_of_one_size(draw: st.DrawFn) -> tuple[Shape, Shape]:
    primes = draw(st.lists(st.sampled_from([2, 2, 3, 5]), max_size=5))
    return draw(grouped(primes)), draw(grouped(draw(st.permutations(primes))))


def coordinates(shape: Shape, dims: Dims, sizes: dict[str, int]) -> dict[str, np.ndarray]:
    """For each axis, the index along it of every element of a tensor of ``shape``."""
    places = np.indices(shape) if shape else np.zeros((0,), int)
    found = {}
    for dim, axes in enumerate(dims):
        for position, axis in enumerate(axes):
            stride = math.prod(sizes[later] for later in axes[position + 1 :])
            found[axis] = places[dim] // stride % sizes[axis]
    return found


def check(source: Shape, target: Shape) -> None:
    refined = refine(source, target)
    assert refined is not None
    left, right, sizes = refined
    for shape, dims in ((source, left), (target, right)):
        assert [math.prod(sizes[axis] for axis in axes) for axes in dims] == list(shape)
        assert list(itertools.chain(*dims)) == list(sizes)  # each axis once, in row-major order
    before, after = coordinates(source, left, sizes), coordinates(target, right, sizes)
    for axis in sizes:
        assert (before[axis].reshape(target) == after[axis]).all()


@given(reshapes())
def test_merged_and_split_dims_share_axes(shapes: tuple[Shape, Shape]) -> None:
    check(*shapes)


@given(shapes_of_one_size())
def test_none_exactly_when_the_dims_cross(shapes: tuple[Shape, Shape]) -> None:
    """Both shapes' boundaries, as products of the dims before them, must each divide the next."""
    source, target = shapes
    bounds = sorted(
        {math.prod(shape[i:]) for shape in shapes for i in range(len(shape) + 1)} | {1}, reverse=True
    )
    if all(big % small == 0 for big, small in itertools.pairwise(bounds)):
        check(source, target)
    else:
        assert refine(source, target) is None


@given(st.lists(st.integers(2, 5), min_size=1, max_size=4), st.integers(2, 3))
def test_none_when_the_sizes_differ(axes: list[int], more: int) -> None:
    assert refine(tuple(axes), (*axes, more)) is None
    assert refine((*axes, more), tuple(axes)) is None


def test_the_axes_are_the_finest_needed_and_no_finer() -> None:
    left, right, sizes = refine((2, 12), (2, 3, 4)) or ((), (), {})
    assert (left, right) == ((("a0",), ("a1", "a2")), (("a0",), ("a1",), ("a2",)))
    assert sizes == {"a0": 2, "a1": 3, "a2": 4}
    assert refine((), ()) == ((), (), {})
    assert refine((1, 1), ()) == (((), ()), (), {})
