"""Examples of ops on images and signals: convolution, pooling, resampling, norms over channels."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from op_example import Example, aten, normal, positive


def space_examples() -> Iterator[Example]:
    yield from _convolutions()
    yield from _pools()
    yield from _resampled()
    yield from _norms()


def _convolutions() -> Iterator[Example]:
    image, bias = normal(4, 8, 5, 6), normal(12)
    conv = aten.conv2d.default
    yield Example(conv, (image, normal(12, 8, 3, 3)), cuts="n i o")
    yield Example(conv, (image, normal(12, 8, 3, 3), bias, [2, 1], [1, 1]), cuts="n i o", label="bias")
    yield Example(
        conv, (normal(4, 8, 8, 12), normal(12, 8, 1, 1), bias), cuts="n i o s0 s1", label="pointwise"
    )
    yield Example(
        conv, (normal(4, 8, 1, 8), normal(12, 8, 1, 3), None, [1, 1], [0, 1]), cuts="n i o", label="line"
    )
    patches = (normal(4, 3, 16, 24), normal(12, 3, 4, 2), bias, [4, 2])
    yield Example(conv, patches, cuts="n o s0 s1", label="patches")
    yield Example(
        conv, (normal(4, 3, 16, 9), normal(12, 3, 4, 2), None, [4, 2]), cuts="n o s0", label="uneven-patches"
    )
    grouped = (image, normal(12, 2, 3, 3), bias, [1, 1], [0, 0], [1, 1], 4)
    yield Example(conv, grouped, cuts="n g i", label="groups")
    depthwise = (image, normal(16, 1, 3, 3), normal(16), [1, 1], [1, 1], [2, 2], 8)
    yield Example(conv, depthwise, cuts="n g", label="depthwise")
    yield Example(conv, (normal(8, 5, 6), normal(12, 8, 3, 3), bias), cuts="i o", label="one-image")
    yield Example(aten.conv2d.padding, (image, normal(12, 8, 3, 3), bias, [1, 1], "same"), cuts="n i o")
    yield Example(
        aten.conv2d.padding,
        (normal(4, 8, 8, 6), normal(12, 8, 2, 3), None, [2, 1], "valid"),
        cuts="n i o s0",
        label="valid",
    )
    signal = normal(4, 8, 16)
    yield Example(aten.conv1d.default, (signal, normal(12, 8, 3), bias), cuts="n i o")
    yield Example(
        aten.conv1d.default,
        (signal, normal(8, 1, 4), normal(8), [1], [3], [1], 8),
        cuts="n g",
        label="causal",
    )
    yield Example(aten.conv1d.padding, (signal, normal(12, 8, 1), None, [1], "same"), cuts="n i o s0")
    solid = normal(4, 8, 4, 3, 5)
    yield Example(aten.conv3d.default, (solid, normal(12, 8, 2, 1, 3), bias, [2, 1, 1]), cuts="n i o s0")
    yield Example(aten.conv3d.padding, (solid, normal(12, 8, 3, 1, 3), None, [1, 1, 1], "same"), cuts="n i o")
    yield Example(
        aten.convolution.default,
        (signal, normal(12, 4, 3), bias, [1], [1], [1], False, [0], 2),
        cuts="n g i o",
    )
    yield Example(
        aten.convolution.default,
        (signal, normal(8, 12, 3), bias, [2], [1], [1], True, [1], 1),
        cuts="n i o",
        label="transposed",
    )
    yield Example(
        aten.conv_transpose2d.input, (image, normal(8, 12, 3, 3), bias, [2, 2], [1, 1], [1, 1]), cuts="n i o"
    )
    yield Example(
        aten.conv_transpose2d.input,
        (normal(4, 8, 4, 6), normal(8, 12, 2, 2), bias, [2, 2]),
        cuts="n i o s0 s1",
        label="apart",
    )
    groups = (image, normal(8, 4, 3, 3), normal(16), [1, 1], [0, 0], [0, 0], 4)
    yield Example(aten.conv_transpose2d.input, groups, cuts="n g i o", label="groups")
    yield Example(aten.conv_transpose1d.default, (signal, normal(8, 12, 4), None, [4]), cuts="n i o s0")
    yield Example(aten.conv_transpose3d.input, (solid, normal(8, 12, 2, 2, 2), bias), cuts="n i o")


def _pools() -> Iterator[Example]:
    image = normal(4, 8, 8, 9)
    for kind in ("max", "avg"):
        pool = getattr(aten, f"{kind}_pool2d").default
        yield Example(pool, (image, [2, 3]), cuts="d0 d1 s0")
        yield Example(pool, (image, [3, 3], [2, 2], [1, 1]), cuts="d0 d1", label="overlap")
        yield Example(getattr(aten, f"{kind}_pool1d").default, (normal(4, 8, 12), [3]), cuts="d0 d1 s0")
        yield Example(
            getattr(aten, f"{kind}_pool3d").default, (normal(4, 8, 4, 3, 4), [2, 1, 2]), cuts="d0 d1 s0 s2"
        )
        for size, shape in ((1, (4, 8, 12)), (2, (4, 8, 6, 9)), (3, (4, 8, 4, 3, 5))):
            adaptive = getattr(aten, f"adaptive_{kind}_pool{size}d").default
            yield Example(adaptive, (normal(*shape), [2] * size), cuts="d0 d1")
    yield Example(
        aten.avg_pool2d.default, (normal(8, 8, 9), [2, 3], [], [0, 0], True), cuts="d0 s0", label="one-image"
    )
    yield Example(aten._adaptive_avg_pool2d.default, (image, [1, 1]), cuts="d0 d1")
    yield Example(aten.max_pool2d_with_indices.default, (image, [2, 3]), cuts="d0 d1")
    yield Example(aten.max_pool3d_with_indices.default, (normal(4, 8, 4, 3, 4), [2, 1, 2]), cuts="d0 d1")


def _resampled() -> Iterator[Example]:
    line, image, solid = normal(4, 8, 6), normal(4, 8, 4, 6), normal(4, 8, 3, 4, 2)
    for name, x in (("nearest1d", line), ("nearest2d", image), ("nearest3d", solid)):
        yield Example(getattr(aten, f"upsample_{name}").vec, (x, None, [2.0] * (x.dim() - 2)), cuts="d0 d1")
    for name, x in (("linear1d", line), ("bilinear2d", image), ("trilinear3d", solid), ("bicubic2d", image)):
        size = [5] * (x.dim() - 2)
        yield Example(getattr(aten, f"upsample_{name}").vec, (x, size, False, None), cuts="d0 d1")
    yield Example(aten._upsample_nearest_exact2d.vec, (image, [5, 7], None), cuts="d0 d1")
    for name in ("bilinear2d", "bicubic2d"):
        yield Example(getattr(aten, f"upsample_{name}").default, (image, [5, 7], True), cuts="d0 d1")
        yield Example(getattr(aten, f"_upsample_{name}_aa").vec, (image, [3, 7], False, None), cuts="d0 d1")
    yield Example(aten.upsample_nearest2d.default, (image, [8, 12]), cuts="d0 d1")
    yield Example(aten.pixel_shuffle.default, (normal(4, 32, 4, 8), 2), cuts="d0 c h w")
    yield Example(aten.pixel_unshuffle.default, (normal(4, 8, 8, 12), 2), cuts="d0 c h w")
    yield Example(aten.im2col.default, (image, [2, 3], [1, 1], [0, 1], [1, 1]), cuts="n c")
    yield Example(
        aten.im2col.default, (normal(8, 4, 6), [2, 3], [1, 1], [0, 1], [1, 1]), cuts="c", label="one-image"
    )
    yield Example(
        aten.col2im.default, (normal(4, 48, 18), [4, 6], [2, 3], [1, 1], [0, 1], [1, 1]), cuts="n c"
    )
    grid = torch.tanh(normal(4, 3, 8, 2))
    yield Example(aten.grid_sampler.default, (image, grid, 0, 0, False), cuts="p0 c p2")
    yield Example(aten.grid_sampler_2d.default, (image, grid, 0, 0, False), cuts="p0 c p2")
    yield Example(
        aten.grid_sampler_3d.default,
        (solid, torch.tanh(normal(4, 2, 3, 4, 3)), 0, 0, False),
        cuts="p0 p1 p3 c",
    )


def _norms() -> Iterator[Example]:
    x, weight, bias = normal(4, 16, 3, 5), normal(16), normal(16)
    yield Example(aten.group_norm.default, (x, 4), cuts="n0 g")
    yield Example(aten.group_norm.default, (x, 4, weight, bias, 1e-5), cuts="n0 g", label="affine")
    yield Example(aten.group_norm.default, (x, 1, weight, bias), cuts="n0", label="one-group")
    yield Example(aten.native_group_norm.default, (x, weight, bias, 4, 16, 15, 4, 1e-5), cuts="n0 g")
    mean, var = normal(16), positive(16)
    training = (x, weight, bias, mean, var, True, 0.1, 1e-5)
    yield Example(aten._native_batch_norm_legit_functional.default, training, cuts="d1", constant=(3, 4))
    yield Example(
        aten._native_batch_norm_legit_no_training.default,
        (x, weight, bias, mean, var, 0.1, 1e-5),
        cuts="d0 d1",
        constant=(3, 4),
    )
    yield Example(aten._native_batch_norm_legit.no_stats, (x, weight, bias, True, 0.1, 1e-5), cuts="d1")
    frozen = (x, weight, bias, mean, var, False, 0.1, 1e-5, False)
    yield Example(aten.batch_norm.default, frozen, cuts="d0 d1", label="frozen", constant=(3, 4))
    yield Example(aten.batch_norm.default, (x, weight, bias, None, None, True, 0.1, 1e-5, False), cuts="d1")
    yield Example(
        aten.instance_norm.default, (x, weight, bias, None, None, True, 0.1, 1e-5, False), cuts="d0 d1"
    )
    running = (x, None, None, mean, var, False, 0.1, 1e-5, False)
    yield Example(aten.instance_norm.default, running, cuts="d0 d1", label="running", constant=(1, 2))
    yield Example(
        aten.native_layer_norm.default, (normal(4, 8, 12), [12], normal(12), normal(12), 1e-5), cuts="d0 d1"
    )
    yield Example(aten._fused_rms_norm.default, (normal(4, 8, 12), [12], normal(12), 1e-5), cuts="d0 d1")
    v = normal(8, 12, 5)
    yield Example(aten._weight_norm.default, (v, positive(8, 1, 1), 0), cuts="d0")
    yield Example(aten._weight_norm_interface.default, (v, positive(8, 1, 1), 0), cuts="d0")
    yield Example(aten.cosine_similarity.default, (normal(4, 8, 12), normal(4, 8, 12), 1), cuts="d0 d2")
    yield Example(aten.prelu.default, (normal(4, 8, 12), positive(8)), cuts="d0 d1 d2")
    yield Example(aten.prelu.default, (normal(4, 8, 12), positive(1)), cuts="d0 d1 d2", label="one")
