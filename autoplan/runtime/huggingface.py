"""Weights as Hugging Face keeps them: a directory of safetensors files, with an index if there are several.

Reading, each rank takes its own slices out of the files. Writing, tensors are gathered one at a time, and the
first rank of each pipeline stage writes those of its stage.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor

from autoplan.errors import CheckpointError, InputError
from autoplan.runtime.pieces import Held, held_buffers, held_parameters, pieces_of, same_everywhere
from autoplan.runtime.state import in_order
from autoplan.runtime.world import from_all, raise_first, world_size

if TYPE_CHECKING:
    from autoplan.runtime.program import Program

__all__ = ["load_safetensors", "save_safetensors"]

_INDEX = "model.safetensors.index.json"
_ONE = "model.safetensors"


def load_safetensors(program: Program, directory: str | Path) -> None:
    """Read parameters, and the buffers that training changes, from a directory. Every rank must call it.

    Raises:
        CheckpointError: a file is missing or damaged, or a tensor is missing or of another shape; the same on
            every rank, before anything is changed.
    """
    held = held_parameters(program.stages, program.names)
    buffers = held_buffers(program.stages)
    error, found = None, {}
    try:
        with _Files(Path(directory)) as files:
            found = {name: files.find(program.names[name], program.shapes[name]) for name in held}
            found |= {name: files.find([name], buffer.shape) for name, buffer in buffers.items()}
    except CheckpointError as raised:
        error = raised
    raise_first(from_all(error))
    with _Files(Path(directory)) as files:
        for name, one in held.items():
            pieces_of(one.parameter, one.layout).fill(files.slices(found[name]))
        with torch.no_grad():
            for name, buffer in buffers.items():
                buffer.copy_(files.slices(found[name])[...])
    same_everywhere(held.values())


def save_safetensors(
    program: Program, directory: str | Path, dtype: torch.dtype | None, file_bytes: int
) -> None:
    """Write the whole model's weights, as ``from_pretrained`` reads them. Every rank must call it.

    Args:
        program: whose weights.
        directory: made if it is not there; other files in it stay.
        dtype: of floating-point tensors; None keeps the one that training keeps them in.
        file_bytes: what a file may hold at most, if it is more than one tensor.

    Raises:
        CheckpointError: it cannot be written; on every rank.
    """
    _safetensors()
    target = Path(directory)
    error, written = None, []
    try:
        target.mkdir(parents=True, exist_ok=True)
        written = _write_stage(program, target, dtype, file_bytes)
    except OSError as raised:
        error = CheckpointError(
            str(target), raised.strerror, "a directory that can be written to", "check the path and the disk"
        )
    answers = from_all((error, written))
    raise_first(problem for problem, _ in answers)
    if world_size() == 1 or dist.get_rank() == 0:
        _put_in_place(target, [file for _, files in answers for file in files])
    if world_size() > 1:
        dist.barrier()


def _write_stage(
    program: Program, target: Path, dtype: torch.dtype | None, limit: int
) -> list[tuple[str, dict[str, int]]]:
    """Write this pipeline rank's tensors; gives each file's name for now, and its tensors with their bytes."""
    held = held_parameters(program.stages, program.names)
    owners = _owners(program, list(held))
    world = program.world
    coordinate = world.mesh.get_coordinate() if world.mesh is not None else None
    writes = coordinate is None or not any(
        coordinate[1:]
    )  # the first of the ranks of this place in the pipeline
    files: list[tuple[str, dict[str, int]]] = []
    batch: dict[str, Tensor] = {}
    used = 0

    def flush() -> None:
        nonlocal batch, used
        if batch:
            name = f".stage-{world.pp_rank}-{len(files)}.saving"
            _safetensors().torch.save_file(batch, target / name, metadata={"format": "pt"})
            files.append((name, {key: tensor.nbytes for key, tensor in batch.items()}))
        batch, used = {}, 0

    for name, tensor in _whole_tensors(program, held, owners):
        if writes:
            value = tensor.to("cpu", dtype if tensor.is_floating_point() else None, copy=True).contiguous()
            if batch and used + value.nbytes > limit:
                flush()
            batch[name] = value
            used += value.nbytes
    flush()
    return files


def _owners(program: Program, mine: list[str]) -> Mapping[str, int]:
    """Which place in the pipeline writes a parameter: the first that holds it."""
    owners: dict[str, int] = {}
    for place, names in from_all((program.world.pp_rank, mine)):
        for name in names:
            owners[name] = min(place, owners.get(name, place))
    return owners


def _whole_tensors(
    program: Program, held: dict[str, Held], owners: Mapping[str, int]
) -> Iterator[tuple[str, Tensor]]:
    for name, one in held.items():
        if owners[name] == program.world.pp_rank:
            parameter = one.parameter.detach()
            whole = parameter.full_tensor() if isinstance(parameter, DTensor) else parameter
            yield name, in_order(whole, one.layout, program.plan.tp)
    yield from held_buffers(program.stages).items()
    if program.world.pp_rank == 0:
        yield from program.rest.items()


def _put_in_place(target: Path, files: list[tuple[str, dict[str, int]]]) -> None:
    """Give the files their final names, the index last, and drop those of an earlier save."""
    count = len(files)
    names = [f"model-{i + 1:05}-of-{count:05}.safetensors" for i in range(count)] if count > 1 else [_ONE]
    old = {*target.glob("model-*-of-*.safetensors"), target / _ONE, target / _INDEX}
    for (aside, _), name in zip(files, names, strict=True):
        os.replace(target / aside, target / name)
    if count > 1:
        where = {tensor: name for (_, tensors), name in zip(files, names, strict=True) for tensor in tensors}
        total = sum(size for _, tensors in files for size in tensors.values())
        text = json.dumps({"metadata": {"total_size": total}, "weight_map": where}, indent=2, sort_keys=True)
        aside = target / ".index.saving"
        aside.write_text(text, encoding="utf-8")
        os.replace(aside, target / _INDEX)
    for file in old - {target / name for name in names} - ({target / _INDEX} if count > 1 else set()):
        file.unlink(missing_ok=True)


class _Files:
    """The safetensors files of a directory, opened when they are first read."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.opened: dict[str, Any] = {}

    def __enter__(self) -> _Files:
        self.where = self._map()
        return self

    def __exit__(self, *error: object) -> None:
        for file in self.opened.values():
            file.__exit__(None, None, None)

    def _map(self) -> dict[str, str]:
        """Which file holds each tensor."""
        index = self.directory / _INDEX
        if index.is_file():
            try:
                return dict(json.loads(index.read_text(encoding="utf-8"))["weight_map"])
            except (ValueError, KeyError, TypeError) as error:
                raise self._damaged(_INDEX, repr(error)) from None
        names = [file.name for file in sorted(self.directory.glob("*.safetensors"))]
        if not names:
            raise CheckpointError(
                str(self.directory), "no safetensors files", f"{_ONE} or {_INDEX}", "correct the path"
            )
        return {tensor: name for name in names for tensor in self._open(name).keys()}  # noqa: SIM118

    def _open(self, name: str) -> Any:
        if name not in self.opened:
            safetensors = _safetensors()
            try:
                self.opened[name] = safetensors.safe_open(self.directory / name, "pt").__enter__()
            except (safetensors.SafetensorError, OSError) as error:
                raise self._damaged(name, str(error)) from None
        return self.opened[name]

    def _damaged(self, name: str, what: str) -> CheckpointError:
        return CheckpointError(
            f"{self.directory}/{name}", what, "a whole file", "the weights are damaged: fetch them again"
        )

    def find(self, names: list[str], shape: torch.Size) -> str:
        """The first of ``names`` that is there, in the shape that is wanted."""
        name = next((name for name in names if name in self.where), None)
        if name is None:
            raise CheckpointError(
                str(self.directory),
                f"no tensor {names[0]}",
                "the weights of this model under its own names",
                "load them with the model's own from_pretrained, and pass that model",
            )
        try:
            got = tuple(self.slices(name).get_shape())
        except _safetensors().SafetensorError as error:  # an index that names a file which has it not
            raise self._damaged(self.where[name], str(error)) from None
        if got != tuple(shape):
            raise CheckpointError(
                str(self.directory),
                f"{name} of shape {got}",
                f"shape {tuple(shape)}",
                "load this model's weights",
            )
        return name

    def slices(self, name: str) -> Any:
        return self._open(self.where[name]).get_slice(name)


def _safetensors() -> Any:
    try:
        import safetensors
        import safetensors.torch
    except ImportError:
        raise InputError(
            "safetensors", "not installed", "the package safetensors", "python -m pip install 'autoplan[hf]'"
        ) from None
    return safetensors
