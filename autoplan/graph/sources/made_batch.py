"""Batches of any number of samples from what the user's factory gives as an example."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from autoplan.errors import ModelError
from autoplan.graph.sources.source import checked_seq, token_batch

if TYPE_CHECKING:
    from torch import Tensor, nn

__all__ = ["batch_maker"]

BATCH_FORMS = "a tensor, a tuple of tensors in forward's order, or a dict of forward's arguments"


def batch_maker(
    module: nn.Module, example: Any, seq: int | None, spec: str
) -> tuple[Callable[[int], dict[str, Tensor]], int]:
    """A maker of batches for ``module``, and the tokens of a sample.

    Args:
        module: names forward's arguments.
        example: a function of the number of samples, one batch, or None: then forward must take
            ``input_ids``, and ``labels`` where it has them, and ``seq`` is needed.
        seq: tokens per sample; it cannot change a batch that was given.
        spec: the factory, for messages.

    Raises:
        ModelError: the example is no batch, or there is none and none can be made up.
    """
    names = [
        name for name, parameter in inspect.signature(module.forward).parameters.items() if _named(parameter)
    ]
    if example is None:
        return _language_batch(names, seq, spec)
    given = example(2) if callable(example) else example
    tensors = _by_name(given, names, spec)
    tokens = _tokens(tensors)
    if seq is not None and seq != tokens:
        raise ModelError(
            "--seq", seq, f"{tokens or 'none'}, as in the example batch of {spec}", "leave --seq out"
        )

    def example_batch(samples: int) -> dict[str, Tensor]:
        if callable(example):
            return {name: _on_meta(value) for name, value in _by_name(example(samples), names, spec).items()}
        return {name: _stretched(value, samples) for name, value in tensors.items()}

    return example_batch, tokens


def _named(parameter: inspect.Parameter) -> bool:
    return parameter.kind in (
        parameter.POSITIONAL_ONLY,
        parameter.POSITIONAL_OR_KEYWORD,
        parameter.KEYWORD_ONLY,
    )


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


def _by_name(batch: Any, names: list[str], spec: str) -> dict[str, Tensor]:
    """The batch as forward's keyword arguments."""
    from torch import Tensor

    if isinstance(batch, Tensor):
        batch = (batch,)
    if isinstance(batch, tuple | list):
        if len(batch) > len(names):
            raise ModelError(
                f"{spec}: example batch",
                f"{len(batch)} tensors",
                f"at most the {len(names)} arguments of forward({', '.join(names)})",
                "return as many tensors as forward takes, or a dict",
            )
        batch = dict(zip(names, batch, strict=False))
    if (
        not isinstance(batch, Mapping)
        or not all(isinstance(v, Tensor) and v.ndim for v in batch.values())
        or not batch
    ):
        raise ModelError(
            f"{spec}: example batch",
            type(batch).__name__,
            f"{BATCH_FORMS}, each with the samples as its first dim",
            "return such a batch beside the module",
        )
    sizes = {name: value.shape[0] for name, value in batch.items()}
    if len(set(sizes.values())) > 1:
        raise ModelError(
            f"{spec}: example batch", sizes, "the same first dim, the samples, in all", "make them agree"
        )
    return dict(batch)


def _tokens(tensors: dict[str, Tensor]) -> int:
    """The second dim of the first integer tensor that has one (token ids); else samples are not sequences."""
    for value in tensors.values():
        if value.ndim == 2 and not value.is_floating_point():
            return value.shape[1]
    return 0


def _on_meta(value: Tensor) -> Tensor:
    return value.to("meta")


def _stretched(value: Tensor, samples: int) -> Tensor:
    return value.new_empty((samples, *value.shape[1:]), device="meta")
