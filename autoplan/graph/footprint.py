"""What a block did, op by op, to tell whether two runs of it did the same."""

from __future__ import annotations

import hashlib
from typing import Any

import torch.utils._pytree as pytree
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

__all__ = ["Footprint"]


class Footprint(TorchDispatchMode):
    """While on, notes each op with the tensors and numbers that it gets; ``digest`` tells runs apart.

    Args:
        block: the module that runs, whose parameters and buffers are noted by name.
        given: the tensors that it is given, in the order of its arguments.
    """

    def __init__(self, block: nn.Module, given: list[Tensor]) -> None:
        super().__init__()
        self._held: list[Tensor] = [*block.parameters(), *block.buffers(), *given]  # an id must stay its own
        self._names = {id(tensor): f"%{index}" for index, tensor in enumerate(self._held)}
        self._hash = hashlib.sha256()

    @property
    def digest(self) -> str:
        return self._hash.hexdigest()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        leaves = pytree.tree_leaves((args, kwargs or {}))
        shown = [self._name(leaf) if isinstance(leaf, Tensor) else repr(leaf) for leaf in leaves]
        self._hash.update(f"{func}({', '.join(shown)})\n".encode())
        made = func(*args, **(kwargs or {}))
        for leaf in pytree.tree_leaves(made):
            if isinstance(leaf, Tensor):
                self._name(leaf)
        return made

    def _name(self, tensor: Tensor) -> str:
        if id(tensor) not in self._names:
            self._names[id(tensor)] = f"%{len(self._held)}"
            self._held.append(tensor)
        return self._names[id(tensor)]
