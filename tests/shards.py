"""What each rank holds of a tensor in a layout, and the tensor back from what the ranks hold.

Written with numpy alone, and not with the code under test: this is the meaning of the layouts' words.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from autoplan.graph.layout import Layout, LayoutKind


def cut(value: Tensor, kind: LayoutKind, layout: Layout, size: int) -> list[Tensor]:
    """The local tensors of ``size`` ranks. ``kind`` says how ``value`` lies (R, S or P)."""
    if kind is LayoutKind.REPLICATE:
        return [value.clone() for _ in range(size)]
    if kind is LayoutKind.PARTIAL:
        generator = torch.Generator().manual_seed(value.numel())
        shares = [torch.randn(value.shape, generator=generator, dtype=torch.float64) for _ in range(size - 1)]
        shares = [share.to(value.dtype) for share in shares]
        return [*shares, value - sum(shares)]
    held: list[list[np.ndarray]] = [[] for _ in range(size)]
    for part in np.split(value.detach().resolve_conj().numpy(), layout.parts, layout.dim):
        for rank, piece in enumerate(np.split(part, size, layout.dim)):
            held[rank].append(piece)
    return [torch.from_numpy(np.concatenate(pieces, layout.dim)) for pieces in held]


def join(held: list[Tensor], kind: LayoutKind, layout: Layout) -> Tensor:
    """The tensor that the ranks' ``held`` make up; fails if copies that must be equal are not."""
    if kind is LayoutKind.REPLICATE:
        for other in held[1:]:
            torch.testing.assert_close(other, held[0], rtol=1e-10, atol=1e-10, msg="the ranks' copies differ")
        return held[0]
    if kind is LayoutKind.PARTIAL:
        return torch.stack(held).sum(0)
    parts = [np.split(piece.detach().resolve_conj().numpy(), layout.parts, layout.dim) for piece in held]
    rows = [np.concatenate([rank[part] for rank in parts], layout.dim) for part in range(layout.parts)]
    return torch.from_numpy(np.concatenate(rows, layout.dim))
