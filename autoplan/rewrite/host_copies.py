"""Copies of tensors in the host's memory, made and fetched beside the computation where there is a device.

On a GPU a copy goes to pinned memory on a stream of its own, and is fetched on it a unit ahead: when the backward
pass of the unit after it starts (``StageModule``), or else when its own backward first asks for one of the unit's.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

__all__ = ["Copies", "HostCopy", "fetch_ahead"]


class HostCopy:
    """One tensor in the host's memory."""

    def __init__(self, tensor: Tensor, copies: Copies) -> None:
        self._device, self._copies = tensor.device, copies
        self._there: Tensor | None = None
        self._ready: torch.cuda.Event | None = None
        if tensor.device.type != "cuda":
            self._host = tensor.detach().clone(memory_format=torch.contiguous_format)
            return
        self._host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
        stream = copies.stream(tensor.device)
        stream.wait_stream(torch.cuda.current_stream(tensor.device))
        with torch.cuda.stream(stream):
            self._host.copy_(tensor.detach(), non_blocking=True)
        tensor.record_stream(stream)

    @property
    def nbytes(self) -> int:
        """What it takes of the host's memory."""
        return self._host.nbytes

    def start_back(self) -> None:
        """Begin to fetch it."""
        if self._there is not None or self._device.type != "cuda":
            return
        stream = self._copies.stream(self._device)
        self._there = torch.empty(self._host.shape, dtype=self._host.dtype, device=self._device)
        stream.wait_stream(torch.cuda.current_stream(self._device))  # its memory may be in use until then
        with torch.cuda.stream(stream):
            self._there.copy_(self._host, non_blocking=True)
            self._ready = torch.cuda.Event()
            self._ready.record(stream)

    def back(self) -> Tensor:
        """The tensor, on its device."""
        if self._device.type != "cuda":
            return self._host
        self._copies.fetch()
        self.start_back()
        assert self._there is not None and self._ready is not None
        torch.cuda.current_stream(self._device).wait_event(self._ready)
        self._there.record_stream(torch.cuda.current_stream(self._device))
        return self._there


_STREAMS: dict[torch.device, torch.cuda.Stream] = {}


class Copies:
    """The copies that one run of a unit has parked."""

    def __init__(self) -> None:
        self._own: weakref.WeakSet[HostCopy] = weakref.WeakSet()

    def __iter__(self) -> Iterator[HostCopy]:
        return iter(list(self._own))

    def away(self, tensor: Tensor) -> HostCopy:
        copy = HostCopy(tensor, self)
        self._own.add(copy)
        return copy

    def fetch(self, *_: Tensor) -> None:
        """Start the way back of all of them; a hook on a gradient may call it."""
        for copy in self:
            copy.start_back()

    @staticmethod
    def stream(device: torch.device) -> torch.cuda.Stream:
        if device not in _STREAMS:
            _STREAMS[device] = torch.cuda.Stream(device)
        return _STREAMS[device]


def fetch_ahead(parked: Copies | None, results: Sequence[Tensor]) -> None:
    """What a unit has ``parked`` starts back when the backward pass of the unit after it, which gave ``results``,
    starts."""
    if parked is not None and results and results[0].requires_grad:
        results[0].register_hook(parked.fetch)
