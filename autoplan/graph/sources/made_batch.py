"""Batches of any number of samples from what the user's factory gives as an example."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from autoplan.errors import ModelError
from autoplan.graph.sources.source import Batch, checked_seq, token_batch

if TYPE_CHECKING:
    from torch import Tensor, nn

__all__ = ["batch_maker"]

BATCH_FORMS = "a tensor, a tuple of tensors in forward's order, or a dict of forward's arguments"


def batch_maker(
    module: nn.Module, example: Any, seq: int | None, spec: str
) -> tuple[Callable[[int], Batch], int]:
    """A maker of batches for ``module``, of the example's own structure, and the tokens of a sample.

    Args:
        module: names forward's arguments.
        example: a function of the number of samples, one batch, or None: then forward must take
            ``input_ids``, and ``labels`` where it has them, and ``seq`` is needed.
        seq: tokens per sample; it cannot change a batch that was given.
        spec: the factory, for messages.

    Raises:
        ModelError: the example is no batch, or there is none and none can be made up.
    """
    parameters = inspect.signature(module.forward).parameters.values()
    names = [p.name for p in parameters if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
    takes = names if len(names) == len(parameters) else None
    if example is None:
        return _language_batch(names, seq, spec)
    given = _checked(example(2) if callable(example) else example, takes, spec)
    tokens = _tokens(_tensors(given))
    if seq is not None and seq != tokens:
        raise ModelError(
            "--seq", seq, f"{tokens or 'none'}, as in the example batch of {spec}", "leave --seq out"
        )

    def example_batch(samples: int) -> Batch:
        if callable(example):
            return _mapped(_checked(example(samples), takes, spec), lambda value: value.to("meta"))
        return _mapped(given, lambda value: value.new_empty((samples, *value.shape[1:]), device="meta"))

    return example_batch, tokens


def _language_batch(
    names: list[str], seq: int | None, spec: str
) -> tuple[Callable[[int], dict[str, Tensor]], int]:
    if "input_ids" not in names:
        raise ModelError(
            spec,
            f"forward({', '.join(names)}) without an example batch",
            "an example of forward's arguments",
            "return (module, example_batch) from the factory, or give the module a method example_batch(samples)",
        )
    if seq is None:
        raise ModelError(
            "--seq", None, f"the tokens of one sample, as {spec} gives no example batch", "give --seq"
        )
    seq = checked_seq(seq)
    return token_batch(seq, *(name for name in ("input_ids", "labels") if name in names)), seq


def _checked(batch: Any, takes: list[str] | None, spec: str) -> Batch:
    """The batch itself, if forward, whose arguments are ``takes`` (None: any), can take it, else ModelError."""
    from torch import Tensor

    tensors = _tensors(batch)
    if not tensors or not all(isinstance(value, Tensor) and value.ndim for value in tensors):
        raise ModelError(
            f"{spec}: example batch",
            type(batch).__name__,
            f"{BATCH_FORMS}, each with the samples as its first dim",
            "return such a batch beside the module",
        )
    unknown = (
        [name for name in batch if name not in takes] if takes is not None and isinstance(batch, dict) else []
    )
    if takes is not None and (unknown or len(tensors) > len(takes)):
        raise ModelError(
            f"{spec}: example batch",
            ", ".join(unknown) or f"{len(tensors)} tensors",
            f"the arguments of forward({', '.join(takes)})",
            "return what forward takes, in its order or by its names",
        )
    sizes = [value.shape[0] for value in tensors]
    if len(set(sizes)) > 1:
        raise ModelError(
            f"{spec}: example batch", sizes, "the same first dim, the samples, in all", "make them agree"
        )
    return batch


def _tensors(batch: Any) -> list[Any]:
    """The members of a dict or a tuple, or the one tensor."""
    if isinstance(batch, dict):
        return list(batch.values())
    return list(batch) if isinstance(batch, tuple) else [batch]


def _mapped(batch: Batch, change: Callable[[Tensor], Tensor]) -> Batch:
    if isinstance(batch, dict):
        return {name: change(value) for name, value in batch.items()}
    return tuple(change(value) for value in batch) if isinstance(batch, tuple) else change(batch)


def _tokens(tensors: list[Tensor]) -> int:
    """The second dim of the first integer tensor that has one (token ids); else samples are not sequences."""
    for value in tensors:
        if value.ndim == 2 and not value.is_floating_point():
            return value.shape[1]
    return 0
