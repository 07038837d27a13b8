"""Gradients averaged over ranks that hold the same parameters: data parallelism where nothing is sharded.

The parameters of a unit are one group: one flat tensor, one all-reduce. It is on its way as soon as the last backward
pass of a step has all gradients of the group, beside the passes of the units before it; what is left goes when the
step ends. Gradients stay where they were sent from, as views of the flat tensors.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

__all__ = ["Replicas", "groups_of"]


def groups_of(units: Iterable[nn.Module]) -> list[list[Any]]:
    """Units whose state travels together: those that share a parameter are one group."""
    groups: list[list[Any]] = []
    owners: dict[int, list[Any]] = {}
    for unit in units:
        parameters = [id(parameter) for parameter in unit.parameters()]
        if not parameters:
            continue
        group = next((owners[p] for p in parameters if p in owners), None)
        if group is None:
            group = []
            groups.append(group)
        group.append(unit)
        owners.update(dict.fromkeys(parameters, group))
    return groups


class Replicas:
    """The parameters of ``groups`` that train, whose gradients are averaged over the ranks of ``ranks``.

    Call ``expect`` before each backward pass, and ``finish`` when gradients are to be whole.
    """

    def __init__(self, groups: Iterable[Sequence[nn.Parameter]], ranks: dist.ProcessGroup) -> None:
        self.ranks = ranks
        self.groups: list[list[nn.Parameter]] = []
        for parameters in groups:
            kinds: dict[torch.dtype, list[nn.Parameter]] = {}
            for parameter in parameters:
                if parameter.requires_grad:
                    kinds.setdefault(parameter.dtype, []).append(parameter)
            self.groups += kinds.values()
        self._last = self._alone = self._called = False
        self._left = [0] * len(self.groups)  # of each group, the gradients that the last pass still owes
        self._sent: dict[int, tuple[Tensor, Any]] = {}
        for index, parameters in enumerate(self.groups):
            for parameter in parameters:
                parameter.register_post_accumulate_grad_hook(partial(self._made, index))

    def expect(self, last: bool, alone: bool = False) -> None:
        """A backward pass comes; ``last`` is the one after which gradients may go. Where nobody will call
        ``finish``, each pass from now on is the last one, and finishes ``alone``."""
        self._last, self._alone, self._called = last, alone, False
        self._left = [len(parameters) for parameters in self.groups]

    def _made(self, index: int, _: Tensor) -> None:
        if not self._last:
            return
        if self._alone and not self._called:
            self._called = True
            torch.autograd.Variable._execution_engine.queue_callback(self.finish)
        self._left[index] -= 1
        if not self._left[index]:
            self._send(index)

    def _send(self, index: int) -> None:
        parameters = [one for one in self.groups[index] if one.grad is not None]
        if not parameters:
            return
        flat = torch.cat([_held(one.grad).reshape(-1) for one in parameters])
        begin = 0
        for one in parameters:
            shape = _held(one.grad).shape
            piece = flat[begin : begin + shape.numel()].view(shape)
            begin += shape.numel()
            if isinstance(one.grad, DTensor):
                mesh, places = one.grad.device_mesh, one.grad.placements
                piece = DTensor.from_local(piece, mesh, places, run_check=False)
            one.grad = piece
        work = dist.all_reduce(flat, dist.ReduceOp.AVG, self.ranks, async_op=True)
        self._sent[index] = flat, work

    def finish(self) -> None:
        """Send what has not been sent, and wait for all of it. Every rank must call it."""
        for index in range(len(self.groups)):
            if index not in self._sent:
                self._send(index)
        for _, work in self._sent.values():
            work.wait()
        self._sent.clear()
        self.expect(self._alone, self._alone)


def _held(tensor: Tensor | None) -> Tensor:
    """What this rank holds of a gradient."""
    assert tensor is not None
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor
