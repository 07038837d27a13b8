"""Random numbers that belong to samples, not to ranks.

Whether an element of a sample is dropped is a hash of the run's seed, the step, the sample's place in the global
batch, the op, and the element's place in the op's whole result. So every rank finds its own piece of one mask, running
a forward pass again finds the same mask, and a model draws the same numbers under every plan and on every device.

    draws   (samples of a micro-batch,) 64 bits for each sample and step      sample_draws
       xor  the unit's name                                                   unit_draws
       xor  the op's number (``key``), and the element's row and column       keep_mask

The hash is Wellons' 32-bit mixer (``lowbias32``), once for a row and once for an element; that of seed and step is
splitmix64 (Steele et al., 2014). Other ops than dropout, and dropout inside a GPU's fused attention, draw from torch's
generator, which is given a seed from the same numbers: they are alike on ranks that do the same work, and come again
when run again, but are other numbers under other plans.
"""

from __future__ import annotations

import contextlib
import hashlib
import math
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from autoplan.graph.layout import Layout
from autoplan.rewrite.attention_parts import head_groups, wide_dtype, widen
from autoplan.rewrite.kernels import overload_of
from autoplan.rewrite.move import group_of, zigzag_order

__all__ = [
    "DRAWS",
    "drawn_attention",
    "drawn_call",
    "drawn_dropout",
    "keep_mask",
    "sample_draws",
    "unit_draws",
]

DRAWS = "autoplan_draws"
"""The name of ``draws`` among a graph's inputs."""

_Place = tuple[str, str, bool]  # layout, process group, zigzag: of one mesh axis, the outermost first
_BITS = 2**64 - 1


def sample_draws(seed: int, occasion: str, first: int, count: int) -> Tensor:
    """64 random bits for each of ``count`` samples of a batch from the number ``first`` on; (count,) int64.

    ``occasion`` names the step.
    """
    start = int.from_bytes(hashlib.sha256(f"{seed}/{occasion}".encode()).digest()[:8], "little")
    return torch.tensor([_signed(_splitmix(start + place)) for place in range(first, first + count)])


def unit_draws(draws: Tensor, unit: str) -> Tensor:
    """The same for one unit of the chain."""
    return draws ^ _signed(int.from_bytes(hashlib.sha256(unit.encode()).digest()[:8], "little"))


def _splitmix(place: int) -> int:
    z = place * 0x9E3779B97F4A7C15 & _BITS
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9 & _BITS
    z = (z ^ z >> 27) * 0x94D049BB133111EB & _BITS
    return z ^ z >> 31


def _signed(bits: int) -> int:
    return bits - 2**64 if bits >= 2**63 else bits


def drawn_dropout(
    x: Tensor, draws: Tensor, p: float, key: int, shape: tuple[int, ...], places: tuple[_Place, ...]
) -> Tensor:
    """Dropout of this rank's piece of a tensor of ``shape``, cut as ``places`` tell."""
    return _Dropped.apply(x, keep_mask(draws, p, key, shape, places).view(x.shape), p)


class _Dropped(torch.autograd.Function):
    """Keeps of the forward pass what torch's own dropout does: a mask, on a CPU in the dtype of x."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, keep: Tensor, p: float) -> Tensor:
        ctx.scale = 1 / (1 - p) if p < 1 else 0.0
        keep = keep if x.is_cuda else keep.to(x.dtype)
        ctx.save_for_backward(keep)
        return x * keep * ctx.scale

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        (keep,) = ctx.saved_tensors
        return grads[0] * keep * ctx.scale, None, None


def keep_mask(
    draws: Tensor, p: float, key: int, shape: tuple[int, ...], places: tuple[_Place, ...] = ()
) -> Tensor:
    """Which elements of this rank's piece of a tensor of ``shape`` are kept, each with probability 1 - p.

    Samples lie one after another in dim 0; where it has another meaning, its pieces take their numbers.
    """
    sizes = (*shape, *(1,) * (2 - len(shape)))
    dims = [_coordinates(sizes, dim, places, draws.device) for dim in range(len(sizes))]
    each = max(sizes[0] // draws.shape[0], 1)
    sample = draws[dims[0].div(each, rounding_mode="floor").clamp(max=draws.shape[0] - 1)]
    row = (dims[0] % each).reshape(-1, *(1,) * (len(sizes) - 2))
    for dim in range(1, len(sizes) - 1):
        row = row * sizes[dim] + dims[dim].reshape(-1, *(1,) * (len(sizes) - 2 - dim))
    sample = sample.reshape(-1, *(1,) * (len(sizes) - 2))
    rows = _mixed(_low(row) ^ _low(sample) ^ key)
    rows = _mixed(rows ^ _low(row >> 32) ^ _low(sample >> 32))
    hashed = _mixed(rows.unsqueeze(-1) + _mixed(_low(dims[-1]) ^ key))
    return hashed.bitwise_and_(0x7FFFFFFF) > math.ceil(p * 2**31) - 1


def _coordinates(
    sizes: tuple[int, ...], dim: int, places: tuple[_Place, ...], device: torch.device
) -> Tensor:
    """The places in the whole tensor of what this rank has of a dim."""
    found = torch.arange(sizes[dim], device=device)
    for text, group, zigzag in places:
        layout = Layout.parse(text)
        if layout.is_shard and layout.dim == dim:
            size, rank = group_of(group).size(), group_of(group).rank()
            mine = zigzag_order(size)[2 * rank : 2 * rank + 2] if zigzag else [rank]
            pieces = found.unflatten(0, (layout.parts, 2 * size if zigzag else size, -1))
            found = torch.cat([pieces[:, piece] for piece in mine], 1).flatten()
    return found


def _low(x: Tensor) -> Tensor:
    """The low 32 bits."""
    return x.to(torch.int32)


def _mixed(x: Tensor) -> Tensor:
    """Wellons' ``lowbias32``; 32-bit products wrap around, and shifts keep the sign, which is masked away."""
    x = x ^ ((x >> 16) & 0xFFFF)
    x = x.mul_(0x7FEB352D)
    x ^= (x >> 15) & 0x1FFFF
    x = x.mul_(0x846CA68B - 2**32)
    x ^= (x >> 16) & 0xFFFF
    return x


def drawn_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None,
    draws: Tensor,
    p: float,
    causal: bool,
    scale: float | None,
    key: int,
    shape: tuple[int, ...],
    places: tuple[_Place, ...],
) -> Tensor:
    """Attention with dropout of its weights: ``q`` (… heads, s, d) is this rank's piece, as ``places`` tell, of queries
    whose result has ``shape``; keys are whole, ``k`` and ``v`` perhaps of fewer heads."""
    groups = head_groups(q, k)
    if q.is_cuda:
        with _seeded(draws, key + 7919 * _piece(places), q.device):
            return F.scaled_dot_product_attention(
                q, k, v, mask, p, causal, scale=scale, enable_gqa=groups > 1
            )
    k, v = widen(k, groups), widen(v, groups)
    scores = (q @ k.transpose(-1, -2)) * (scale if scale is not None else q.shape[-1] ** -0.5)
    if causal:
        mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=q.device).tril()
    if mask is not None and mask.dtype is torch.bool:
        scores = scores.masked_fill(~mask, -math.inf)
    elif mask is not None:
        scores = scores + mask
    weights = scores.softmax(-1, dtype=wide_dtype(q)).to(v.dtype)
    return drawn_dropout(weights, draws, p, key, (*shape[:-1], k.shape[-2]), places) @ v


def _piece(places: tuple[_Place, ...]) -> int:
    """A number for what this rank has of a tensor, the same for ranks that have the same."""
    number = 0
    for text, group, _ in places:
        if Layout.parse(text).is_shard:
            number = number * group_of(group).size() + group_of(group).rank()
    return number


def drawn_call(op: str, draws: Tensor, key: int, *args: Any, **kwargs: Any) -> Any:
    """A call of ``op`` that draws from torch's generator."""
    with _seeded(draws, key, draws.device):
        return overload_of(op)(*args, **kwargs)


@contextlib.contextmanager
def _seeded(draws: Tensor, key: int, device: torch.device) -> Iterator[None]:
    """torch's generator with a seed that follows from ``draws`` and ``key``, and afterwards as it was."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        state = key
        for number in draws.tolist():
            state = _splitmix((state ^ number) & _BITS)
        torch.manual_seed(state >> 1)
        yield
