"""Bytes of tensors that live at once, counted storage by storage; fake tensors count as if they were real."""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import Tensor
from torch._guards import active_fake_mode
from torch.distributed.tensor import DTensor
from torch.utils._python_dispatch import TorchDispatchMode

__all__ = ["LiveBytes"]


class LiveBytes(TorchDispatchMode):
    """Counts while it is entered: what it was given to begin with, and every storage that an op makes.

        with LiveBytes(parameters) as live:
            …
        live.peak

    ``now`` is what lives, ``peak`` the most that did since ``restart``. What an op's kernel takes and gives back by itself is not
    seen. Storages that FSDP resizes count as large as they are.
    """

    def __init__(self, tensors: Iterable[Tensor] = ()) -> None:
        super().__init__()
        self.now = 0
        self.peak = 0
        self._sizes: dict[int, int] = {}
        self._watched: dict[int, Any] = {}
        self._fake: Any = None
        self._resize = torch.UntypedStorage.resize_
        for tensor in tensors:
            self._see(tensor)

    def restart(self) -> None:
        """Forget the peak so far."""
        self.peak = self.now

    def __enter__(self) -> LiveBytes:
        self._fake = active_fake_mode()
        resize, see = self._resize, self._resized

        def resize_(storage: torch.UntypedStorage, size: int) -> Any:
            result = resize(storage, size)
            see(storage)
            return result

        torch.UntypedStorage.resize_ = resize_  # type: ignore[method-assign, assignment]
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        torch.UntypedStorage.resize_ = self._resize  # type: ignore[method-assign]
        super().__exit__(*error)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if any(kind is DTensor for kind in types):
            return NotImplemented  # DTensor runs first, and its local ops come here
        if func is torch.ops._c10d_functional.wait_tensor.default and self._fake is not None:
            result = args[0]  # a fake one would be a copy
        else:
            result = func(*args, **kwargs or {})
        if active_fake_mode() is self._fake:  # not DTensor working out a shape
            for tensor in pytree.tree_leaves(result):
                if isinstance(tensor, Tensor):
                    self._see(tensor)
        return result

    def _see(self, tensor: Tensor) -> None:
        if isinstance(tensor, DTensor):
            tensor = tensor.to_local()
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._sizes:
            return
        self._watched[key] = weakref.finalize(storage, self._gone, key)
        self._watched[key].atexit = False
        self._sizes[key] = 0
        self._set(key, storage.size())

    def _resized(self, storage: torch.UntypedStorage) -> None:
        if storage._cdata in self._sizes:
            self._set(storage._cdata, storage.size())

    def _gone(self, key: int) -> None:
        self.now -= self._sizes.pop(key)
        del self._watched[key]

    def _set(self, key: int, nbytes: int) -> None:
        self.now += nbytes - self._sizes[key]
        self._sizes[key] = nbytes
        self.peak = max(self.peak, self.now)
