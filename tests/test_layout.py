"""The words for layouts: their text, their shapes, and what a change from one to another costs."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autoplan.errors import PlanError
from autoplan.graph.layout import (
    PARTIAL,
    REPLICATE,
    REPLICATE_STAR,
    Collective,
    Conversion,
    Layout,
    conversion,
    shard,
)

shards = st.builds(shard, st.integers(0, 7), st.integers(1, 12))
layouts = st.one_of(st.sampled_from([REPLICATE, REPLICATE_STAR, PARTIAL]), shards)

_MIRROR = {REPLICATE: REPLICATE, REPLICATE_STAR: PARTIAL, PARTIAL: REPLICATE_STAR}
"""The layout whose value lies as the other's gradient does."""


def mirror(layout: Layout) -> Layout:
    return _MIRROR.get(layout, layout)


@given(layouts)
def test_text_and_back(layout: Layout) -> None:
    assert Layout.parse(str(layout)) == layout


@given(st.text(alphabet="RSP*()/0123 ", max_size=8))
def test_only_texts_that_str_gives_are_read(text: str) -> None:
    try:
        layout = Layout.parse(text)
    except PlanError as error:
        assert error.field == "layout" and error.value == text
    else:
        assert str(layout) == text


@pytest.mark.parametrize(
    "text", ["", "r", "S", "S()", "S(-1)", "S(0/0)", "S(0/1)", "S(01)", "S(0/2", "R**", "P(0)"]
)
def test_other_texts_are_refused(text: str) -> None:
    with pytest.raises(PlanError, match=r"expected R, R\*, P, S\(dim\) or S\(dim/parts\)"):
        Layout.parse(text)


def test_texts() -> None:
    named = [REPLICATE, REPLICATE_STAR, PARTIAL, shard(1), shard(0, 3)]
    assert [str(layout) for layout in named] == ["R", "R*", "P", "S(1)", "S(0/3)"]


@given(layouts)
def test_a_value_lies_as_its_mirror_s_gradient(layout: Layout) -> None:
    assert mirror(layout).value_kind is layout.gradient_kind
    assert mirror(layout).gradient_kind is layout.value_kind


@given(layouts, layouts)
def test_backward_is_the_forward_of_the_mirrored_change(src: Layout, dst: Layout) -> None:
    there = conversion(src, dst)
    assert conversion(mirror(dst), mirror(src)) == Conversion(there.backward, there.forward)


@given(layouts, layouts)
def test_nothing_is_done_only_when_nothing_changes(src: Layout, dst: Layout) -> None:
    changed = conversion(src, dst)
    assert (changed == Conversion(None, None)) == (src == dst)


@given(shards, shards)
def test_a_shard_of_another_dim_or_in_other_parts_trades_pieces_both_ways(src: Layout, dst: Layout) -> None:
    both = None if src == dst else Collective.ALL_TO_ALL
    assert conversion(src, dst) == Conversion(both, both)


def test_megatron_s_f_and_g_and_their_sequence_parallel_forms() -> None:
    all_reduce, gather, scatter = Collective.ALL_REDUCE, Collective.ALL_GATHER, Collective.REDUCE_SCATTER
    assert conversion(REPLICATE, REPLICATE_STAR) == Conversion(None, all_reduce)
    assert conversion(PARTIAL, REPLICATE) == Conversion(all_reduce, None)
    assert conversion(shard(1), REPLICATE_STAR) == Conversion(gather, scatter)
    assert conversion(PARTIAL, shard(1)) == Conversion(scatter, gather)


def test_slices_and_masks_move_nothing() -> None:
    still = {collective for collective in Collective if not collective.moves}
    assert still == {Collective.SLICE, Collective.MASK}
    assert conversion(REPLICATE, shard(0)) == Conversion(Collective.SLICE, Collective.ALL_GATHER)
    assert conversion(REPLICATE, PARTIAL) == Conversion(Collective.MASK, None)


@given(layouts, layouts, layouts)
def test_a_detour_is_never_free(src: Layout, dst: Layout, via: Layout) -> None:
    """Going through ``via`` moves data whenever going straight does."""

    def moves(*path: Layout) -> int:
        steps = [conversion(a, b) for a, b in itertools.pairwise(path)]
        return sum(c is not None and c.moves for step in steps for c in (step.forward, step.backward))

    assert moves(src, via, dst) >= (moves(src, dst) > 0)


@given(st.integers(0, 2), st.integers(1, 3), st.sampled_from([1, 2, 4]))
def test_a_shard_is_smaller_in_its_dim_alone(dim: int, parts: int, degree: int) -> None:
    shape = [3, 5, 7]
    shape[dim] *= parts * degree
    local = shard(dim, parts).local_shape(tuple(shape), degree)
    shape[dim] //= degree
    assert local == tuple(shape)
    for whole in (REPLICATE, REPLICATE_STAR, PARTIAL):
        assert whole.local_shape((3, 5), degree) == (3, 5)
