"""How an entry for any model of transformers is written down: its class, its config's fields, its inputs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from zoo.architecture import Architecture, Example
from zoo.causal_lm import without_dropout

__all__ = ["Inputs", "audio", "classes", "entry", "floats", "ids", "images", "made", "ones"]

Inputs = dict[str, Callable[[Any, int], Tensor]]
"""For each argument of forward, a function of the config and the number of samples."""

# These leave out layers, or mask inputs with numpy, anew in each step.
_RANDOM_PROGRAMS = {
    "layerdrop": 0.0,
    "encoder_layerdrop": 0.0,
    "decoder_layerdrop": 0.0,
    "apply_spec_augment": False,
}


def entry(
    name: str,
    family: str,
    model: str,
    full: tuple[int, dict[str, Any], Inputs],
    tiny: tuple[dict[str, Any], Inputs],
    loss: Callable[[Any, Any], Tensor] | None = None,
    wrap: Callable[[nn.Module], nn.Module] = lambda module: module,
    precision: str = "bf16",
) -> Architecture:
    """Args:
    name: as in ``Architecture``.
    family: likewise.
    model: the class's name in transformers.
    full: samples, the config's fields and the inputs at the realistic size.
    tiny: fields and inputs at the tiny size, of two samples, without dropout.
    loss: as in ``Example``.
    wrap: makes of the model the module that is trained.
    precision: as in ``Example``; fp32 for a model whose own code mixes it with others.
    """

    def example(samples: int, fields: dict[str, Any], inputs: Inputs, small: bool) -> Example:
        import transformers

        model_class = getattr(transformers, model)
        config = model_class.config_class(**fields)
        _settle(config, small)

        def build() -> nn.Module:
            return wrap(_build(model_class, config).train())

        def batch(rows: int) -> dict[str, Tensor]:
            return {key: make(config, rows) for key, make in inputs.items()}

        return Example(build, batch, samples, loss, precision)

    return Architecture(name, family, lambda: example(*full, False), lambda: example(2, *tiny, True))


def _settle(config: Any, small: bool) -> None:
    config.use_cache = False
    config.return_dict = True
    parts = [config, *(part for part in vars(config).values() if hasattr(part, "model_type"))]
    for part in parts:
        for key, value in _RANDOM_PROGRAMS.items():
            if hasattr(part, key):
                setattr(part, key, value)
        if small:
            without_dropout(part)


def _build(model_class: Any, config: Any) -> nn.Module:
    """With PyTorch's attention where the model supports it."""
    try:
        return model_class._from_config(config, attn_implementation="sdpa")
    except ValueError as error:
        if "scaled_dot_product_attention" not in str(error):
            raise
        return model_class._from_config(config, attn_implementation="eager")


def ids(*shape: int) -> Callable[[Any, int], Tensor]:
    """Token ids that are no special tokens."""
    return lambda config, rows: torch.randint(6, config.get_text_config().vocab_size, (rows, *shape))


def made(high: int, *shape: int) -> Callable[[Any, int], Tensor]:
    """Integers below ``high``."""
    return lambda config, rows: torch.randint(0, high, (rows, *shape))


def ones(*shape: int) -> Callable[[Any, int], Tensor]:
    """An attention mask that masks nothing."""
    return lambda config, rows: torch.ones((rows, *shape), dtype=torch.int64)


def classes(*shape: int) -> Callable[[Any, int], Tensor]:
    """Labels among the config's classes."""
    return lambda config, rows: torch.randint(0, config.num_labels, (rows, *shape))


def floats(*shape: int) -> Callable[[Any, int], Tensor]:
    return lambda config, rows: torch.randn(rows, *shape)


def images(size: int) -> Callable[[Any, int], Tensor]:
    return floats(3, size, size)


def audio(samples: int) -> Callable[[Any, int], Tensor]:
    return floats(samples)
