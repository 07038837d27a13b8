"""Which part of a step a rank is at: hooks on a program's units, its optimizer, and whatever it sends.

Nothing is changed but the clock that is read: hooks return nothing, and functions that send are called as they were.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
import torch.distributed._functional_collectives as fc
from torch import Tensor, nn
from torch.distributed.pipelining import schedules

from autoplan.rewrite import move
from autoplan.runtime import pipeline
from autoplan.runtime.timeline import Timeline, Timing

if TYPE_CHECKING:
    from autoplan.runtime.program import Program

__all__ = ["Call", "Observer"]

_FUNCTIONAL = {
    "all_reduce": "all_reduce",
    "all_gather_tensor": "all_gather",
    "all_gather_single": "all_gather",
    "reduce_scatter_tensor": "reduce_scatter",
    "reduce_scatter_single": "reduce_scatter",
    "all_to_all_single": "all_to_all",
}
_IN_PLACE = {
    "all_reduce": "all_reduce",
    "all_gather_into_tensor": "all_gather",
    "all_gather_single": "all_gather",
    "reduce_scatter_tensor": "reduce_scatter",
    "reduce_scatter_single": "reduce_scatter",
}


@dataclass(frozen=True, slots=True)
class Call:
    """One collective that this rank took part in; ``nbytes`` as ``Cluster.collective_time_s`` takes them."""

    kind: str
    axis: str
    ranks: tuple[int, ...]
    nbytes: int


@dataclass
class _Step:
    calls: list[Call] = field(default_factory=list)
    waiting: dict[int, Any] = field(default_factory=dict)


class Observer:
    """Times the steps of ``program``: labels are ``(unit name, phase)``, ``("sent", index of the call)``,
    ``waiting`` (for the stages before and behind), ``optimizer`` and ``other``."""

    def __init__(self, program: Program) -> None:
        self.program = program
        self.timeline = Timeline(program.world.device)
        self._step = _Step()
        self._axes: dict[str, tuple[str, tuple[int, ...]]] = {}
        mesh = program.world.mesh
        for name in mesh.mesh_dim_names or () if mesh is not None else ():
            assert mesh is not None
            self._name(name, mesh[name].get_group())
        experts = program.world.expert_mesh
        for name, axis in (("edp", "dp"), ("efsdp", "fsdp"), ("ep", "ep")) if experts is not None else ():
            assert experts is not None
            self._name(axis, experts[name].get_group())
        if program.world.cp_group:
            self._name("cp", move.group_of(program.world.cp_group))

    def step(self, batch: Any) -> tuple[Timing, list[Call]]:
        """One step of the program; what took how long, and what was sent in it."""
        self._step = _Step()
        with contextlib.ExitStack() as stack:
            for handle in self._hooks():
                stack.callback(handle.remove)
            for holder, name, made in self._replacements():
                stack.callback(setattr, holder, name, getattr(holder, name))
                setattr(holder, name, made)
            self.timeline.start()
            self.program.step(batch)
            timing = self.timeline.stop()
        return timing, self._step.calls

    def _name(self, axis: str, group: dist.ProcessGroup) -> None:
        self._axes[group.group_name] = axis, tuple(dist.get_process_group_ranks(group))

    def _hooks(self) -> Iterator[Any]:
        for stage in self.program.stages:
            for name, module in stage.unit_modules().items():
                yield from self._unit_hooks(name, module.body)
        optimizer = self.program.optimizer
        yield optimizer.register_step_pre_hook(lambda *_: self.timeline.push("optimizer"))
        yield optimizer.register_step_post_hook(lambda *_: self.timeline.pop())

    def _unit_hooks(self, name: str, body: nn.Module) -> Iterator[Any]:
        def before(module: nn.Module, args: Any) -> None:
            self.timeline.push((name, "recompute" if _in_backward() else "forward"))

        def after(module: nn.Module, args: Any, result: Any) -> None:
            self.timeline.pop()
            if result is None or _in_backward():
                return
            for tensor in result:
                if tensor.requires_grad and not any(tensor is given for given in args):
                    tensor.register_hook(backward)

        def backward(grad: Tensor) -> None:
            if self._in_unit():
                self.timeline.turn((name, "backward"))
                return
            self.timeline.push((name, "backward"))
            torch.autograd.Variable._execution_engine.queue_callback(self.timeline.pop)

        yield body.register_forward_pre_hook(before)
        yield body.register_forward_hook(after, always_call=True)  # running again may stop half way

    def _in_unit(self) -> bool:
        top = self.timeline.top
        return isinstance(top, tuple) and top[1] == "backward"

    def _replacements(self) -> Iterator[tuple[Any, str, Any]]:
        for name, kind in _FUNCTIONAL.items():
            if hasattr(fc, name):
                yield fc, name, self._functional(getattr(fc, name), kind)
        yield move, "_gather_rows", self._functional(move._gather_rows, "all_gather")
        yield move, "_scatter_rows", self._functional(move._scatter_rows, "reduce_scatter")
        yield fc, "wait_tensor", self._wait_tensor(fc.wait_tensor)
        for name, kind in _IN_PLACE.items():
            if hasattr(dist, name):
                yield dist, name, self._in_place(getattr(dist, name), kind)
        yield schedules, "_batch_p2p", self._p2p(schedules._batch_p2p)
        yield pipeline, "run_weight_halves", self._labelled(pipeline.run_weight_halves, ("", "backward"))

    def _labelled(self, function: Callable[..., Any], label: Any) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            self.timeline.push(label)
            try:
                return function(*args, **kwargs)
            finally:
                self.timeline.pop()

        return call

    def _sent(self, kind: str, group: dist.ProcessGroup | None, nbytes: int) -> Any:
        """The label of a new call, or None where there is nothing to send."""
        group = group if group is not None else dist.group.WORLD
        assert group is not None
        known = self._axes.get(group.group_name)
        axis, ranks = known if known else ("other", tuple(dist.get_process_group_ranks(group)))
        top = self.timeline.top
        if len(ranks) == 1 or not nbytes or (isinstance(top, tuple) and top[0] == "sent"):
            return None
        self._step.calls.append(Call(kind, axis, ranks, nbytes))
        return "sent", len(self._step.calls) - 1

    def _functional(self, function: Callable[..., Any], kind: str) -> Callable[..., Any]:
        def call(tensor: Tensor, *args: Any, **kwargs: Any) -> Any:
            groups = [a for a in (*args, *kwargs.values()) if isinstance(a, dist.ProcessGroup)]
            nbytes = tensor.numel() * tensor.element_size()
            if kind == "all_gather" and groups:
                nbytes *= groups[0].size()
            label = self._sent(kind, groups[0], nbytes) if groups else None
            if label is None:
                return function(tensor, *args, **kwargs)
            result = self._labelled(function, label)(tensor, *args, **kwargs)
            self._step.waiting[id(result)] = label
            return result

        return call

    def _wait_tensor(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(tensor: Tensor) -> Any:
            label = self._step.waiting.pop(id(tensor), None)
            return function(tensor) if label is None else self._labelled(function, label)(tensor)

        return call

    def _in_place(self, function: Callable[..., Any], kind: str) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            tensors = [a for a in (*args, *kwargs.values()) if isinstance(a, Tensor)]
            groups = [a for a in (*args, *kwargs.values()) if isinstance(a, dist.ProcessGroup)]
            nbytes = max(t.numel() * t.element_size() for t in tensors)
            label = self._sent(kind, groups[0] if groups else None, nbytes)
            if label is None:
                return function(*args, **kwargs)
            result = self._labelled(function, label)(*args, **kwargs)
            return _Work(result, self, label) if kwargs.get("async_op") else result

        return call

    def _p2p(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            works = self._labelled(function, "waiting")(*args, **kwargs)
            return [_Work(work, self, "waiting") for work in works]

        return call


class _Work:
    """A message on its way, whose ``wait`` is timed."""

    def __init__(self, work: Any, observer: Observer, label: Any) -> None:
        self._work = work
        self.wait = observer._labelled(work.wait, label)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._work, name)


def _in_backward() -> bool:
    return torch._C._current_graph_task_id() != -1
