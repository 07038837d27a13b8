"""Finding the modules that forward calls more than once, as ALBERT does its one layer.

They have no siblings to be folded with, and yet are one block with a count: each call is a unit of its own, and
all of them hold the same parameters.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn
from torch.nn.modules.batchnorm import _NormBase

from autoplan.graph.fold import Repeat
from autoplan.graph.skeleton import BlockStub

__all__ = ["count_calls", "with_called_again"]


@contextmanager
def count_calls(module: nn.Module) -> Iterator[Counter[str]]:
    """How often each submodule is called while this lasts, by path; only those that may be blocks are counted."""
    counts: Counter[str] = Counter()

    def counter(path: str) -> object:
        return lambda *_: counts.update((path,))

    hooks = [
        part.register_forward_pre_hook(counter(path))  # type: ignore[arg-type]
        for path, part in module.named_modules()
        if path and _may_be_block(part)
    ]
    try:
        yield counts
    finally:
        for hook in hooks:
            hook.remove()


def with_called_again(model: nn.Module, repeats: list[Repeat], counts: Counter[str]) -> list[Repeat]:
    """``repeats``, and after them the outermost modules of ``model`` that were called more than once."""
    if max(counts.values(), default=0) < 2:
        return repeats
    again: list[str] = []
    for path, _ in model.named_modules():  # parents come before their children
        if counts[path] > 1 and not any(path.startswith(f"{outer}.") for outer in again):
            again.append(path)
    return [*repeats, *(Repeat((path,), (model.get_submodule(path),)) for path in again)]


def _may_be_block(part: nn.Module) -> bool:
    """A module with parameters and submodules of its own, none of them folded or with running statistics."""
    return (
        not isinstance(part, BlockStub)
        and next(part.children(), None) is not None
        and next(part.parameters(), None) is not None
        and not any(isinstance(inner, BlockStub | _NormBase) for inner in part.modules())
    )
