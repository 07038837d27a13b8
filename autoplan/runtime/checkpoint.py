"""Checkpoints by torch's DCP: written aside and put in place whole, read under any plan and number of ranks.

A checkpoint holds whole tensors in the model's own coordinates under its own names (``model.NAME`` and
``optimizer.state.NAME.KEY``), so which plan wrote it does not matter, and ``torch.distributed.checkpoint.load``
reads it without autoplan. All ranks must see one file system.
"""

from __future__ import annotations

import os
import shutil
import warnings
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint import CheckpointException
from torch.distributed.checkpoint.metadata import Metadata, MetadataIndex
from torch.distributed.tensor import DTensor

from autoplan.errors import AutoplanError, CheckpointError
from autoplan.rewrite import StageModule
from autoplan.runtime.manifest import Manifest, Saved, read_manifest, write_manifest
from autoplan.runtime.pieces import (
    Held,
    Pieces,
    held_buffers,
    held_parameters,
    pieces_of,
    same_everywhere,
    whole,
)
from autoplan.runtime.world import from_all, raise_first, world_size

if TYPE_CHECKING:
    from autoplan.runtime.program import Program

__all__ = ["Checkpoints"]

_TIMEOUT = timedelta(minutes=30)  # of writing, on ranks that wait for a slower one


class _SavePlanner(dcp.DefaultSavePlanner):
    def __init__(self) -> None:
        super().__init__(flatten_state_dict=False, flatten_sharded_tensors=False)

    def lookup_object(self, index: MetadataIndex) -> Any:
        return self.state_dict[index.fqn].at(index.offset or ())


class _LoadPlanner(dcp.DefaultLoadPlanner):
    def __init__(self) -> None:
        super().__init__(flatten_state_dict=False, flatten_sharded_tensors=False)

    def set_up_planner(
        self, state_dict: Any, metadata: Metadata | None = None, is_coordinator: bool = False
    ) -> None:
        """Keep the pieces as they are; the stock planner would replace what it does not know by None."""
        self.original_state_dict = self.state_dict = state_dict
        self.metadata, self.is_coordinator = metadata, is_coordinator

    def lookup_tensor(self, index: MetadataIndex) -> Tensor:
        return self.state_dict[index.fqn].at(index.offset or ())


class Checkpoints:
    """Saves and loads one program. Every rank must make every call, in the same order."""

    def __init__(self, program: Program) -> None:
        self.program = program
        self._group: dist.ProcessGroup | None = None
        self._thread: ThreadPoolExecutor | None = None
        self._pending: Future[None] | None = None

    def save(self, path: str | Path, extra: Mapping[str, Any], wait: bool) -> Future[None]:
        """Write a checkpoint. With ``wait`` false, tensors are copied to the host and written by a thread."""
        self.wait()
        final = Path(path).absolute()
        aside = final.with_name(f".{final.name}.saving")
        held = held_parameters(self.program.stages, self.program.names)
        manifest = self._manifest(held, extra)
        _on_first(str(final), lambda: _make_empty(aside))
        state = _model_state(held, self.program.stages) | self._optimizer_state(held)
        group = self._own_group()
        if wait:
            done: Future[None] = Future()
            done.set_result(_write(state, manifest, aside, final, group))
            return done
        state = {name: pieces.copied() for name, pieces in state.items()}
        if self._thread is None:
            self._thread = ThreadPoolExecutor(1, "autoplan-checkpoint")
        self._pending = self._thread.submit(_write, state, manifest, aside, final, group)
        return self._pending

    def wait(self) -> None:
        """Wait for a save that a thread still writes. Raises what it raised."""
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.result()

    def close(self) -> None:
        """Wait, and end the group that checkpoints use."""
        self.wait()
        group, self._group = self._group, None
        if group is not None and dist.is_initialized():
            dist.destroy_process_group(group)

    def load(self, path: str | Path, optimizer: bool) -> Manifest:
        """Read a checkpoint into the program's own memory.

        Everything that can be known beforehand is checked on all ranks before anything is changed.
        """
        self.wait()
        final = Path(path).absolute()
        found: list[tuple[Path, Manifest]] = []
        _on_first(str(final), lambda: found.append(_find(final)))
        directory, manifest = _from_first(found[0] if found else None)
        held = held_parameters(self.program.stages, self.program.names)
        self._check(str(final), manifest, optimizer)
        state = _model_state(held, self.program.stages)
        moments = _empty_moments(held, manifest) if optimizer else {}
        for name, kept in moments.items():
            for key, tensor in kept.items():
                state[f"optimizer.state.{name}.{key}"] = pieces_of(tensor, held[name].layout)
        _read(state, directory, self._own_group())
        same_everywhere(held.values())
        if optimizer:
            self._put_optimizer(str(final), held, moments, manifest)
        return manifest

    def _own_group(self) -> dist.ProcessGroup | None:
        """A gloo group for checkpoints alone, so that a thread may use it while the step uses the others."""
        if world_size() > 1 and self._group is None:
            group = dist.new_group(backend="gloo", timeout=_TIMEOUT)
            assert isinstance(group, dist.ProcessGroup)
            self._group = group
        return self._group

    def _manifest(self, held: dict[str, Held], extra: Mapping[str, Any]) -> Manifest:
        """The manifest; only rank 0's is whole, and only it is written."""
        program = self.program
        error = mine = None
        try:
            mine = (
                {name: tuple(program.shapes[name]) for name in held},
                {name: tuple(buffer.shape) for name, buffer in held_buffers(program.stages).items()},
                {
                    name: {
                        key: Saved(tuple(value.shape), _dtype(value.dtype))
                        for key, value in _states(program.optimizer, one.parameter, name).items()
                    }
                    for name, one in held.items()
                },
                _hyperparameters(program.optimizer, held),
                _plain("extra", dict(extra)),
            )
        except CheckpointError as raised:
            error = raised
        tables = from_all((mine, error))
        raise_first(error for _, error in tables)
        merged: list[dict[str, Any]] = [{}, {}, {}, {}]
        for table, _ in tables:
            for whole_table, part in zip(merged, table, strict=False):
                whole_table.update(part)
        parameters, buffers, states, groups = merged
        return Manifest(
            torch=str(torch.__version__),
            model=program.plan.model,
            plan=program.plan.hash(),
            step=program.steps_done,
            optimizer=type(program.optimizer).__name__,
            parameters=parameters,
            buffers=buffers,
            states=states,
            groups=groups,
            extra=tables[0][0][4],
        )

    def _optimizer_state(self, held: dict[str, Held]) -> dict[str, Pieces]:
        return {
            f"optimizer.state.{name}.{key}": pieces_of(value, one.layout)
            if isinstance(value, DTensor)
            else whole(value)
            for name, one in held.items()
            for key, value in _states(self.program.optimizer, one.parameter, name).items()
        }

    def _check(self, path: str, manifest: Manifest, optimizer: bool) -> None:
        """Raise the same CheckpointError on all ranks if the checkpoint is of another model or optimizer."""
        mine = {name: tuple(shape) for name, shape in self.program.shapes.items()}
        theirs = manifest.parameters
        odd = next((name for name in sorted({*mine, *theirs}) if mine.get(name) != theirs.get(name)), None)
        if odd is not None:
            raise CheckpointError(
                path,
                f"{odd} of shape {theirs[odd]}" if odd in theirs else f"no parameter {odd}",
                f"{odd} of shape {mine[odd]}"
                if odd in mine
                else f"no parameter {odd}, as the model has none",
                "load a checkpoint of this model",
            )
        kind = type(self.program.optimizer).__name__
        if optimizer and manifest.optimizer != kind:
            raise CheckpointError(
                path,
                f"the state of {manifest.optimizer}",
                f"that of {kind}, the program's optimizer",
                "pass optimizer=False to load the weights alone",
            )

    def _put_optimizer(
        self, path: str, held: dict[str, Held], moments: dict[str, dict[str, Tensor]], manifest: Manifest
    ) -> None:
        optimizer = self.program.optimizer
        names = {id(p): name for name, one in held.items() for p in (one.parameter, *one.copies)}
        groups, states, index = [], {}, 0
        used: set[str] = set()  # a tied weight may have copies here, each with a state of its own
        problem = None
        for group in optimizer.param_groups:
            mine = [names[id(parameter)] for parameter in group["params"]]
            saved = [manifest.groups[name] for name in mine]
            odd = next((n for n, one in zip(mine, saved, strict=True) if one != saved[0]), None)
            problem = problem or (
                f"unlike hyperparameters for {mine[0]} and {odd}" if odd is not None else None
            )
            groups.append(
                {**{k: v for k, v in group.items() if k != "params"}, **_typed(saved[0], group)}
                if saved
                else {k: v for k, v in group.items() if k != "params"}
            )
            groups[-1]["params"] = list(range(index, index + len(mine)))
            for name in mine:
                if moments[name]:
                    states[index] = {
                        key: value.clone() if name in used else value for key, value in moments[name].items()
                    }
                    used.add(name)
                index += 1
        error = None
        if problem is not None:
            remedy = "make the optimizer with the same groups"
            error = CheckpointError(path, problem, "one set for each parameter group", remedy)
        raise_first(from_all(error))
        optimizer.load_state_dict({"state": states, "param_groups": groups})


def _model_state(held: dict[str, Held], stages: Iterable[StageModule]) -> dict[str, Pieces]:
    state = {f"model.{name}": pieces_of(one.parameter, one.layout) for name, one in held.items()}
    return state | {f"model.{name}": whole(buffer) for name, buffer in held_buffers(stages).items()}


def _states(optimizer: torch.optim.Optimizer, parameter: Tensor, name: str) -> dict[str, Tensor]:
    """What the optimizer keeps for a parameter; each is shaped like the parameter, or a single number."""
    found: dict[str, Tensor] = {}
    for key, value in optimizer.state.get(parameter, {}).items():
        if value is None:
            continue
        tensor = value if isinstance(value, Tensor) else torch.tensor(value)
        if tensor.dim() and tensor.shape != parameter.shape:
            raise CheckpointError(
                f"optimizer.state.{name}.{key}",
                tuple(tensor.shape),
                f"{tuple(parameter.shape)}, the parameter's own shape, or a single number",
                "use an optimizer that keeps its state so; a factored one cannot be cut as its parameter is",
            )
        found[key] = tensor
    return found


def _empty_moments(held: dict[str, Held], manifest: Manifest) -> dict[str, dict[str, Tensor]]:
    """Memory for the optimizer's state, laid out like the parameters."""
    found: dict[str, dict[str, Tensor]] = {}
    for name, one in held.items():
        found[name] = {}
        for key, saved in manifest.states.get(name, {}).items():
            dtype = getattr(torch, saved.dtype)
            if saved.shape:
                found[name][key] = torch.zeros_like(one.parameter, dtype=dtype, requires_grad=False)
            else:
                found[name][key] = torch.zeros((), dtype=dtype)
    return found


def _hyperparameters(optimizer: torch.optim.Optimizer, held: dict[str, Held]) -> dict[str, dict[str, Any]]:
    """Each parameter's hyperparameters, as JSON holds them."""
    names = {id(one.parameter): name for name, one in held.items()}
    found: dict[str, dict[str, Any]] = {}
    for group in optimizer.param_groups:
        rest = {
            key: value.item() if isinstance(value, Tensor) else value
            for key, value in group.items()
            if key != "params"
        }
        plain = _plain("optimizer.param_groups", rest)
        found.update({names[id(p)]: plain for p in group["params"] if id(p) in names})
    return found


def _plain(what: str, value: dict[str, Any]) -> dict[str, Any]:
    """``value`` after a trip through JSON. Raises CheckpointError where it cannot make the trip."""
    try:
        return msgspec.json.decode(msgspec.json.encode(value))
    except (TypeError, ValueError) as error:
        raise CheckpointError(
            what, str(error), "what JSON can hold", "keep numbers, text and lists"
        ) from None


def _typed(saved: dict[str, Any], group: dict[str, Any]) -> dict[str, Any]:
    """Saved hyperparameters in the types that the optimizer has them in (JSON has no tuples and no tensors)."""
    found = {}
    for key, value in saved.items():
        own = group.get(key)
        if isinstance(own, tuple):
            value = tuple(value)
        elif isinstance(own, Tensor):
            value = torch.full_like(own, value)
        found[key] = value
    return found


def _dtype(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _make_empty(directory: Path) -> None:
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(parents=True)


def _find(final: Path) -> tuple[Path, Manifest]:
    """The checkpoint at ``final``, or the one that was being replaced when a save was cut short."""
    before = _before(final)
    directory = before if not final.exists() and before.exists() else final
    return directory, read_manifest(directory)


def _before(final: Path) -> Path:
    return final.with_name(f".{final.name}.before")


def _write(
    state: dict[str, Pieces], manifest: Manifest, aside: Path, final: Path, group: dist.ProcessGroup | None
) -> None:
    def put() -> None:
        write_manifest(aside, manifest)
        before = _before(final)
        if final.exists():
            shutil.rmtree(before, ignore_errors=True)
            os.replace(final, before)
        os.replace(aside, final)
        shutil.rmtree(before, ignore_errors=True)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # DCP warns that one process is one process
        try:
            dcp.save(
                state,
                storage_writer=dcp.FileSystemWriter(aside),
                planner=_SavePlanner(),
                process_group=group,
                no_dist=group is None,
            )
        except CheckpointException as error:
            raise _translated(str(final), error, "that can be written") from None
    _on_first(str(final), put, group)


def _read(state: dict[str, Pieces], directory: Path, group: dist.ProcessGroup | None) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            dcp.load(
                state,  # type: ignore[arg-type]
                storage_reader=dcp.FileSystemReader(directory),
                planner=_LoadPlanner(),
                process_group=group,
                no_dist=group is None,
            )
        except CheckpointException as error:
            raise _translated(str(directory), error, "that can be read") from None


def _translated(path: str, error: CheckpointException, which: str) -> CheckpointError:
    rank, (cause, _) = sorted(error.failures.items())[0]
    text = f"{type(cause).__name__} on rank {rank}: {cause}"
    return CheckpointError(
        path, text, f"a checkpoint {which}", "check the disk, or take an earlier checkpoint"
    )


def _on_first(path: str, act: Callable[[], None], group: dist.ProcessGroup | None = None) -> None:
    """Run ``act`` on rank 0; all ranks wait for it, and raise its error as CheckpointError."""
    error: AutoplanError | None = None
    if world_size() == 1 or dist.get_rank() == 0:
        try:
            act()
        except AutoplanError as raised:
            error = raised
        except OSError as raised:
            error = CheckpointError(
                path,
                raised.strerror,
                "a place on disk to write to",
                "check the path, its rights and the disk",
            )
    error = _from_first(error, group)
    if error is not None:
        raise error


def _from_first(value: Any, group: dist.ProcessGroup | None = None) -> Any:
    if world_size() == 1:
        return value
    box = [value]
    dist.broadcast_object_list(box, src=0, group=group)
    return box[0]
