"""Where this rank's part of a tensor lies in the whole one.

    whole tensor (8, 4)            what a rank of tp 2 x fsdp 2 holds
    ┌───────────────┐              ┌───────────────┐
    │ 0 1           │  offset 0 0  │ 2 × 2         │  a view of its memory: reading into a piece
    │ 4 5           │              └───────────────┘  changes the parameter

A plan holds a tensor cut on several mesh axes, and may hold a dim cut in parts in another order than the
model's. Pieces say it in the model's own coordinates, so that what one plan wrote another can read.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    MetadataIndex,
    TensorProperties,
)
from torch.distributed.checkpoint.planner import TensorWriteData, WriteItem, WriteItemType
from torch.distributed.tensor import DTensor
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

from autoplan.graph.layout import Layout
from autoplan.rewrite import StageModule

__all__ = [
    "Held",
    "Piece",
    "Pieces",
    "held_buffers",
    "held_parameters",
    "local",
    "pieces_of",
    "same_everywhere",
    "whole",
]


@dataclass(frozen=True, slots=True)
class Held:
    """A parameter of this rank, and how its tensor-parallel axis cuts it.

    ``copies`` are equal ones of the rank's other stages, where a weight is tied over stages.
    """

    parameter: nn.Parameter
    layout: Layout
    copies: tuple[nn.Parameter, ...] = ()


@dataclass(frozen=True, slots=True)
class Piece:
    """A box of a whole tensor: where it starts, and the memory that holds it here."""

    offset: tuple[int, ...]
    tensor: Tensor

    @property
    def slices(self) -> tuple[slice, ...]:
        """The box as an index into the whole tensor."""
        return tuple(
            slice(first, first + size) for first, size in zip(self.offset, self.tensor.shape, strict=True)
        )


@dataclass(frozen=True, slots=True)
class Pieces:
    """This rank's boxes of one tensor of ``shape``; none where another rank has it all.

    It follows the protocol that torch's distributed checkpoints ask of what they save and load.
    """

    shape: tuple[int, ...]
    dtype: torch.dtype
    pieces: tuple[Piece, ...]

    def copied(self) -> Pieces:
        """The same, in memory of its own on the host: training may go on while it is written."""
        return Pieces(
            self.shape,
            self.dtype,
            tuple(Piece(p.offset, p.tensor.detach().to("cpu", copy=True)) for p in self.pieces),
        )

    def fill(self, source: Tensor) -> None:
        """Copy from the whole tensor, or from anything that slices like it."""
        with torch.no_grad():
            for piece in self.pieces:
                part = source[piece.slices] if piece.offset else source[...]
                piece.tensor.copy_(part)

    def at(self, offset: Iterable[int]) -> Tensor:
        """The memory of the box that starts at ``offset``."""
        wanted = tuple(offset)
        return next(piece.tensor for piece in self.pieces if piece.offset == wanted)

    def size(self) -> torch.Size:
        """The whole tensor's shape, by the name that torch's planner asks for."""
        return torch.Size(self.shape)

    def __create_write_items__(self, name: str, value: object) -> list[WriteItem]:
        return [
            WriteItem(
                index=MetadataIndex(name, torch.Size(piece.offset)),
                type=WriteItemType.SHARD,
                tensor_data=TensorWriteData(
                    chunk=_chunk(piece),
                    properties=TensorProperties(dtype=self.dtype),
                    size=self.size(),
                ),
            )
            for piece in self.pieces
        ]

    def __create_chunk_list__(self) -> list[ChunkStorageMetadata]:
        return [_chunk(piece) for piece in self.pieces]


def _chunk(piece: Piece) -> ChunkStorageMetadata:
    return ChunkStorageMetadata(offsets=torch.Size(piece.offset), sizes=piece.tensor.size())


def whole(tensor: Tensor) -> Pieces:
    """A tensor that this rank has all of."""
    return Pieces(tuple(tensor.shape), tensor.dtype, (Piece((0,) * tensor.dim(), tensor.detach()),))


def pieces_of(tensor: Tensor, layout: Layout) -> Pieces:
    """The boxes of a parameter, or of what is laid out like one (its gradient, a moment)."""
    if not isinstance(tensor, DTensor):
        return whole(tensor)
    local = tensor.to_local().detach()
    shape, offset = compute_local_shape_and_global_offset(tensor.shape, tensor.device_mesh, tensor.placements)
    assert tuple(shape) == tuple(local.shape), f"{shape} is not {tuple(local.shape)}"
    found: list[Piece] = []
    if local.numel():
        found = [Piece(tuple(offset), local)]
        names = tensor.device_mesh.mesh_dim_names or ()
        if layout.is_shard and layout.parts > 1 and "tp" in names:
            degree = tensor.device_mesh.size(names.index("tp"))
            found = _in_parts(found[0], layout, tensor.shape[layout.dim], degree)
    return Pieces(tuple(tensor.shape), tensor.dtype, tuple(found))


def _in_parts(held: Piece, layout: Layout, size: int, degree: int) -> list[Piece]:
    """The boxes in the model's order of a box in the order in which ranks hold a dim of ``size`` cut in parts.

    Held index ``(t · parts + q) · d + j`` is the model's ``(q · degree + t) · d + j``.
    """
    dim, parts = layout.dim, layout.parts
    run = size // (degree * parts)
    first, last = held.offset[dim], held.offset[dim] + held.tensor.shape[dim]
    found = []
    for block in range(first // run, (last - 1) // run + 1):
        start, stop = max(first, block * run), min(last, (block + 1) * run)
        t, q = divmod(block, parts)
        offset = list(held.offset)
        offset[dim] = (q * degree + t) * run + start - block * run
        found.append(Piece(tuple(offset), held.tensor.narrow(dim, start - first, stop - start)))
    return found


def held_parameters(stages: Iterable[StageModule], names: Mapping[str, list[str]]) -> dict[str, Held]:
    """This rank's parameters, each once, by the first of its names in the user's model."""
    found: dict[str, Held] = {}
    for stage in stages:
        for module in stage.unit_modules().values():
            parameters = dict(module.named_parameters(remove_duplicate=False))
            for own, source in module.sources.items():
                name, parameter = names[source.name][0], parameters[own]
                known = found.setdefault(name, Held(parameter, source.layout))
                if all(parameter is not other for other in (known.parameter, *known.copies)):
                    found[name] = replace(known, copies=(*known.copies, parameter))
    return found


def same_everywhere(held: Iterable[Held]) -> None:
    """Give the copies of tied parameters what the first of them holds."""
    with torch.no_grad():
        for one in held:
            for copy in one.copies:
                local(copy).copy_(local(one.parameter))


def local(tensor: Tensor) -> Tensor:
    """What this rank holds of a tensor."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def held_buffers(stages: Iterable[StageModule]) -> dict[str, Tensor]:
    """The buffers that training changes on this rank, by their names in the user's model."""
    return {
        name: module.get_buffer(own)
        for stage in stages
        for module in stage.unit_modules().values()
        for own, name in module.updates.items()
    }
