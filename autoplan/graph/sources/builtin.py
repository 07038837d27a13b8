"""Built-in sizes as model sources."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

from autoplan.errors import ModelError
from autoplan.graph.sources.sizes import ALIASES, SIZES, DecoderConfig
from autoplan.graph.sources.source import ModelSource, checked_seq, token_batch

if TYPE_CHECKING:
    from torch import nn

__all__ = ["build_decoder", "builtin_config", "builtin_names", "builtin_source", "is_builtin"]


def builtin_names() -> tuple[str, ...]:
    """The names of the built-in sizes, families together; needs no torch."""
    return tuple(SIZES)


def is_builtin(name: str) -> bool:
    """Whether ``name`` is a built-in size or another name for one; case does not matter."""
    return _canonical(name) in SIZES


def builtin_config(name: str) -> DecoderConfig:
    """The built-in size ``name``."""
    return SIZES[_canonical(name)]


def builtin_source(name: str, seq: int | None) -> ModelSource:
    """The built-in size ``name`` at ``seq`` tokens per sample (None: the size's own pre-training length).

    Raises:
        ModelError: ``seq`` is impossible, or longer than the positions that a GPT has learned.
    """
    name = _canonical(name)
    config = SIZES[name]
    seq = checked_seq(config.seq if seq is None else seq)
    if config.family == "gpt" and seq > config.seq:
        raise ModelError(
            "--seq", seq, f"at most the {config.seq} positions of {name}", f"use --seq {config.seq}"
        )
    return ModelSource(
        name=name,
        build=lambda: build_decoder(config),
        example_batch=token_batch(seq, "input_ids", "labels"),
        loss=None,
        tokens_per_sample=seq,
    )


def build_decoder(config: DecoderConfig) -> nn.Module:
    """The module of ``config``, on the current default device; on the meta device nothing is initialised.

    Raises:
        ModelError: the family is not one of ours.
    """
    import torch

    if torch.get_default_device().type == "meta":
        with _no_init():
            return _decoder(config)
    return _decoder(config)


def _decoder(config: DecoderConfig) -> nn.Module:
    if config.family == "rotary":
        from autoplan.graph.sources.decoder import RotaryDecoder

        return RotaryDecoder(config)
    if config.family == "gpt":
        from autoplan.graph.sources.gpt import GPTDecoder

        return GPTDecoder(config)
    raise ModelError("family", config.family, "rotary or gpt", "correct the DecoderConfig")


def _no_init() -> AbstractContextManager[Any]:
    """What ``torch.nn.init`` does to tensors without data is half of the time that a deep model takes to build."""
    from torch.overrides import TorchFunctionMode

    class NoInit(TorchFunctionMode):
        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            kwargs = kwargs or {}
            if getattr(func, "__module__", None) == "torch.nn.init":
                return args[0] if args else kwargs["tensor"]
            return func(*args, **kwargs)

    return NoInit()


def _canonical(name: str) -> str:
    lowered = name.lower()
    return ALIASES.get(lowered, lowered)
