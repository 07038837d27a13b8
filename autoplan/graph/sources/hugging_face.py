"""Models from a Hugging Face ``config.json``: their own code from transformers, without weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from autoplan.errors import ModelError
from autoplan.graph.sources.hugging_face_batch import inputs_of
from autoplan.graph.sources.source import ModelSource

if TYPE_CHECKING:
    from torch import nn

__all__ = ["hugging_face_source"]


def hugging_face_source(path: Path, seq: int | None) -> ModelSource:
    """The model of the config at ``path``, a directory or a file, at ``seq`` tokens per sample.

    The class is the first of ``architectures``, or else the causal language model of ``model_type``. The
    key-value cache is off and attention is PyTorch's ``scaled_dot_product_attention``. Parameters have
    the default dtype, whatever the config says of its checkpoint's.

    Raises:
        ModelError: the config cannot be read, transformers is missing or does not know the model, or its
            batch is of a kind that we cannot make up.
    """
    file = path / "config.json" if path.is_dir() else path
    fields = _read(file)
    transformers = _import_transformers()
    config = _config(transformers, file, fields)
    model_class = _model_class(transformers, file, config)
    inputs = inputs_of(model_class, config, seq)
    return ModelSource(
        name=file.resolve().parent.name if file.name == "config.json" else file.stem,
        build=lambda: _build(model_class, config, file),
        example_batch=inputs.example_batch,
        loss=inputs.loss,
        tokens_per_sample=inputs.tokens,
    )


def _read(file: Path) -> dict[str, Any]:
    try:
        fields = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ModelError(
            "MODEL", str(file), "a directory with a config.json", "give the config's path"
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise ModelError(
            str(file), str(error), "a readable text file", "check its path and permissions"
        ) from None
    except json.JSONDecodeError as error:
        where = f"line {error.lineno} column {error.colno}"
        raise ModelError(f"{file}, {where}", error.msg, "JSON", "correct the file there") from None
    if not isinstance(fields, dict) or not isinstance(fields.get("model_type"), str):
        value = fields.get("model_type") if isinstance(fields, dict) else type(fields).__name__
        raise ModelError(
            f"{file}: model_type", value, "a Hugging Face config with a model_type", "name its kind"
        )
    return fields


def _import_transformers() -> Any:
    try:
        import transformers
    except ImportError:
        raise ModelError(
            "transformers",
            None,
            "the transformers package, to build this config",
            'install it: pip install "autoplan[hf]"',
        ) from None
    return transformers


def _config(transformers: Any, file: Path, fields: dict[str, Any]) -> Any:
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    kind = fields["model_type"]
    if kind not in CONFIG_MAPPING:
        raise ModelError(
            f"{file}: model_type",
            kind,
            f"a model that transformers {transformers.__version__} knows",
            "upgrade transformers, or give the model as path/to/file.py:factory",
        )
    try:
        config = CONFIG_MAPPING[kind].from_dict(fields)
        config.use_cache = False
        config.return_dict = True
    except Exception as error:
        raise _wrong_fields(file, error) from error
    return config


def _model_class(transformers: Any, file: Path, config: Any) -> Any:
    names = getattr(config, "architectures", None)
    if not names:
        mapping = transformers.MODEL_FOR_CAUSAL_LM_MAPPING
        if type(config) in mapping:
            return mapping[type(config)]
        raise ModelError(
            f"{file}: architectures",
            None,
            f"the class to train, as {config.model_type} has no causal language model",
            'add "architectures": ["..."] to the config',
        )
    model_class = getattr(transformers, names[0], None)
    if model_class is None:
        raise ModelError(
            f"{file}: architectures",
            names[0],
            f"a class of transformers {transformers.__version__}",
            "upgrade transformers, or give the model as path/to/file.py:factory",
        )
    return model_class


def _build(model_class: Any, config: Any, file: Path) -> nn.Module:
    import torch

    try:
        config.dtype = torch.get_default_dtype()
        return model_class._from_config(config, attn_implementation="sdpa")
    except Exception as error:
        if "scaled_dot_product_attention" in str(error) and "support" in str(error):
            return model_class._from_config(config, attn_implementation="eager")
        raise _wrong_fields(file, error) from error


def _wrong_fields(file: Path, error: Exception) -> ModelError:
    return ModelError(
        str(file),
        " ".join(f"{type(error).__name__}: {error}".split()),
        "fields that make a model",
        "correct the config",
    )
