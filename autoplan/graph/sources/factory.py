"""Models from the user's own code: a function, or a class, that makes one."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from autoplan.errors import ModelError
from autoplan.graph.sources.made_batch import batch_maker
from autoplan.graph.sources.source import ModelSource

if TYPE_CHECKING:
    from torch import nn

__all__ = ["FACTORY_RETURNS", "factory_source"]

FACTORY_RETURNS = (
    "an nn.Module whose forward takes input_ids (and labels) or that has example_batch(samples), "
    "or (module, example_batch), or (module, example_batch, loss)"
)
"""What a factory may return, for messages and for ``--help``."""

MOST_SUGGESTIONS = 8
"""How many functions of a module a message lists."""


def factory_source(location: str, name: str, seq: int | None) -> ModelSource:
    """The model that ``location:name`` makes.

    The factory is called without arguments under ``torch.device("meta")``: once here to look at what it
    returns, and once for each build. ``example_batch`` is a function of the number of samples, or one
    batch (tensor, tuple in forward's order, or dict of its arguments) whose first dim is stretched.
    ``loss`` is ``fn(output, batch) -> scalar``. A ``ModelSource`` is taken as it is.

    Raises:
        ModelError: the module cannot be imported, the factory fails, or what it returns is something else.
    """
    spec = f"{location}:{name}"
    factory = _attribute(_module(location, spec), name, spec)
    made = _made(factory, spec)
    if isinstance(made, ModelSource):
        return made
    module, batch, loss = _parts(made, spec)
    example_batch, tokens = batch_maker(module, batch, seq, spec)
    return ModelSource(
        name=name,
        build=lambda: _parts(_made(factory, spec), spec)[0],
        example_batch=example_batch,
        loss=loss,
        tokens_per_sample=tokens,
    )


def _module(location: str, spec: str) -> ModuleType:
    file = Path(location)
    if file.suffix != ".py":
        _put_on_path(Path.cwd())
        return _imported(lambda: importlib.import_module(location), spec)
    if not file.is_file():
        raise ModelError("MODEL", spec, "a Python file that exists", f"check the path {location}")
    _put_on_path(file.resolve().parent)
    module_spec = importlib.util.spec_from_file_location(file.stem, file.resolve())
    assert module_spec is not None and module_spec.loader is not None
    module = importlib.util.module_from_spec(module_spec)
    # Dataclasses and pickles of the file look their module up by name; never hide a real one.
    sys.modules.setdefault(file.stem, module)
    loader = module_spec.loader
    _imported(lambda: loader.exec_module(module), spec)
    return module


def _put_on_path(directory: Path) -> None:
    if str(directory) not in sys.path:
        sys.path.insert(0, str(directory))


def _imported(load: Callable[[], Any], spec: str) -> Any:
    try:
        return load()
    except Exception as error:
        raise ModelError(
            "MODEL", spec, "a module that imports", f"its import raised {_told(error)}"
        ) from error


def _attribute(module: ModuleType, name: str, spec: str) -> Callable[[], Any]:
    factory = getattr(module, name, None)
    if callable(factory):
        return factory
    functions = (
        n for n, v in vars(module).items() if inspect.isfunction(v) and v.__module__ == module.__name__
    )
    public = [n for n in functions if not n.startswith("_")][:MOST_SUGGESTIONS]
    remedy = f"name one of its functions, such as {', '.join(public)}" if public else "define it there"
    raise ModelError("MODEL", spec, f"a function {name} in that module", remedy)


def _made(factory: Callable[[], Any], spec: str) -> Any:
    import torch

    try:
        with torch.device("meta"):
            return factory()
    except Exception as error:
        raise ModelError(
            "MODEL",
            spec,
            "a factory that can be called without arguments under torch.device('meta')",
            f"it raised {_told(error)}",
        ) from error


def _parts(made: Any, spec: str) -> tuple[nn.Module, Any, Callable[[Any, Any], Any] | None]:
    """Module, example batch (or None) and loss (or None) of what a factory returned."""
    from torch import nn

    parts = made if isinstance(made, tuple) else (made, getattr(made, "example_batch", None))
    module, batch, loss = (*parts, None, None)[:3] if len(parts) <= 3 else (None, None, None)
    if not isinstance(module, nn.Module) or not (loss is None or callable(loss)):
        told = (
            ", ".join(type(part).__name__ for part in parts)
            if isinstance(made, tuple)
            else type(made).__name__
        )
        raise ModelError(spec, told, FACTORY_RETURNS, "return that from the factory")
    if batch is None:
        batch = getattr(module, "example_batch", None)
    return module, batch, loss


def _told(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())
