"""From what the user wrote to a model source."""

from __future__ import annotations

import difflib
from pathlib import Path

from autoplan.errors import ModelError
from autoplan.graph.sources.builtin import builtin_names, builtin_source, is_builtin
from autoplan.graph.sources.source import ModelSource

__all__ = ["MODEL_FORMS", "load_source"]

MODEL_FORMS = (
    "a built-in size (llama3-8b), a Hugging Face config.json or its directory, "
    "or a factory (package.module:factory, path/to/file.py:factory)"
)
"""The forms that MODEL may take, for messages and for ``--help``."""


def load_source(spec: str, seq: int | None = None) -> ModelSource:
    """The model that ``spec`` names.

    Args:
        spec: one of ``MODEL_FORMS``; a built-in name wins over a file of the same name.
        seq: tokens per sample; None takes the model's own length, where it has one.

    Raises:
        ModelError: there is no such model, or it cannot be built.
    """
    if is_builtin(spec):
        return builtin_source(spec, seq)
    path = Path(spec)
    if path.exists() and path.suffix != ".py":
        from autoplan.graph.sources.hugging_face import hugging_face_source

        return hugging_face_source(path, seq)
    location, colon, factory = spec.rpartition(":")
    if colon:
        from autoplan.graph.sources.factory import factory_source

        return factory_source(location, factory, seq)
    raise _unknown(spec, path)


def _unknown(spec: str, path: Path) -> ModelError:
    if path.suffix == ".py":
        return ModelError("MODEL", spec, "a function of that file", f"name it: {spec}:my_factory")
    if "/" in spec or path.suffix == ".json":
        return ModelError("MODEL", spec, "a file or directory that exists", f"give {MODEL_FORMS}")
    close = difflib.get_close_matches(spec.lower(), builtin_names(), n=1, cutoff=0.5)
    remedy = f"did you mean {close[0]}? A file is named by its path" if close else f"give {MODEL_FORMS}"
    return ModelError("MODEL", spec, f"a built-in size ({', '.join(builtin_names())})", remedy)
