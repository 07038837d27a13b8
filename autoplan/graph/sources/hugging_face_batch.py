"""What a Hugging Face model is trained on: a made-up batch for the head that its class names."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from autoplan.errors import ModelError
from autoplan.graph.sources.source import checked_seq

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["LONGEST_DEFAULT_SEQ", "Inputs", "inputs_of"]

LONGEST_DEFAULT_SEQ = 4096
"""``--seq`` when it is not given: the model's longest context, but no more than this many tokens."""

_TOKEN_LABELS = (
    "ForCausalLM", "LMHeadModel", "ForConditionalGeneration", "ForMaskedLM", "ForTokenClassification", "MTModel",
)  # fmt: skip
_CLASS_LABELS = ("ForSequenceClassification", "ForImageClassification", "ForAudioClassification",
                 "ForVideoClassification")  # fmt: skip
_AUDIO_SAMPLES = 160_000  # ten seconds at 16 kHz


@dataclass(frozen=True, slots=True)
class Inputs:
    """A batch: for each argument of forward the shape of one sample, and whether it holds integers.

    ``tokens`` is the length of the text of a sample, 0 where there is none. ``loss`` is None when the model gives it.
    """

    shapes: dict[str, tuple[tuple[int, ...], bool]]
    tokens: int = 0
    loss: Callable[[Any, Any], Tensor] | None = None

    def example_batch(self, samples: int) -> dict[str, Tensor]:
        import torch

        def made(shape: tuple[int, ...], integers: bool) -> Tensor:
            dtype = torch.int64 if integers else torch.get_default_dtype()
            return torch.empty((samples, *shape), dtype=dtype, device="meta")

        return {name: made(shape, integers) for name, (shape, integers) in self.shapes.items()}


def inputs_of(model_class: Any, config: Any, seq: int | None) -> Inputs:
    """The inputs of ``model_class``, whose texts have ``seq`` tokens (None: its longest, within reason).

    Raises:
        ModelError: we cannot make up a batch for this head.
    """
    name: str = model_class.__name__
    main = getattr(model_class, "main_input_name", "input_ids")
    vision = getattr(config, "vision_config", None)
    labels = name.endswith((*_TOKEN_LABELS, *_CLASS_LABELS))
    if name.endswith(("CLIPModel", "SiglipModel")) and vision is not None:
        from autoplan.graph.sources.loss import pair_loss, pair_sigmoid_loss

        tokens = checked_seq(_longest(config.text_config) if seq is None else seq)
        pair = {"input_ids": ((tokens,), True), "pixel_values": (_image(vision), False)}
        return Inputs(pair, tokens, pair_sigmoid_loss if "Siglip" in name else pair_loss)
    if main == "input_ids" and labels:
        tokens = checked_seq(_longest(config) if seq is None else seq)
        shapes: dict[str, tuple[tuple[int, ...], bool]] = {"input_ids": ((tokens,), True)}
        if vision is not None:
            shapes["pixel_values"] = (_image(vision), False)
        one_label = name.endswith(_CLASS_LABELS)
        return Inputs(shapes | {"labels": (() if one_label else (tokens,), True)}, tokens)
    if main == "input_features" and name.endswith("ForConditionalGeneration"):
        tokens = checked_seq(config.max_target_positions if seq is None else seq)
        frames = (config.num_mel_bins, 2 * config.max_source_positions)
        return Inputs({main: (frames, False), "labels": ((tokens,), True)}, tokens)
    shape = _sample(main, name, config)
    if shape is not None and name.endswith(_CLASS_LABELS):
        return Inputs({main: (shape, False), "labels": ((), True)})
    if shape is not None and name.endswith("ForSemanticSegmentation"):
        return Inputs({main: (shape, False), "labels": (shape[1:], True)})
    raise ModelError(
        "architectures",
        name,
        "a class whose name ends in " + ", ".join((*_TOKEN_LABELS, *_CLASS_LABELS)),
        "give the model as path/to/file.py:factory, with its own example batch",
    )


def _sample(main: str, name: str, config: Any) -> tuple[int, ...] | None:
    """The shape of one image, film or sound; None for another kind of input."""
    if main == "pixel_values" and name.endswith("ForVideoClassification"):
        return getattr(config, "num_frames", 16), *_image(config)
    if main == "pixel_values":
        return _image(config)
    if main == "input_values" and hasattr(config, "num_mel_bins"):
        return config.max_length, config.num_mel_bins
    return (_AUDIO_SAMPLES,) if main == "input_values" else None


def _image(config: Any) -> tuple[int, int, int]:
    size = getattr(config, "image_size", None) or 224
    height, width = size if isinstance(size, list | tuple) else (size, size)
    return getattr(config, "num_channels", 3), height, width


def _longest(config: Any) -> int:
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    longest = getattr(text, "max_position_embeddings", None) or getattr(text, "n_positions", None)
    return min(longest or LONGEST_DEFAULT_SEQ, LONGEST_DEFAULT_SEQ)
