"""The model's own parameters in its graph: which are one, which no unit holds, whether any has a part in the loss."""

from __future__ import annotations

from torch import nn

from autoplan.errors import TraceError
from autoplan.graph.ir import Block, ModelGraph, Unit

__all__ = ["check_trainable", "tied", "unused"]


def tied(
    own: dict[str, nn.Parameter], units: list[Unit], kinds: dict[str, Block]
) -> tuple[tuple[tuple[str, str], ...], ...]:
    """Groups of (unit, value) that are one parameter, found by the identity of the model's ``own`` parameters."""
    groups: dict[int, list[tuple[str, str]]] = {}
    for unit in units:
        for value, relative in kinds[unit.kind].parameters.items():
            full = f"{unit.path}.{relative}" if unit.path else relative
            groups.setdefault(id(own[full]), []).append((unit.name, value))
    return tuple(tuple(group) for group in groups.values() if len(group) > 1)


def check_trainable(graph: ModelGraph, model: nn.Module) -> None:
    """A loss that no parameter has a part in was captured wrong, or is no training."""
    if not graph.unused:
        return
    trainable = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    if trainable and all(name in graph.unused for name in trainable):
        raise TraceError(
            "loss", f"a loss that reads none of the {len(trainable)} trainable parameters",
            "a loss of the model's output", "return the loss of what the model computed, without torch.no_grad",
        )  # fmt: skip


def unused(
    own: dict[str, nn.Parameter], units: list[Unit], kinds: dict[str, Block]
) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the model's ``own`` parameters that no unit holds, each once."""
    held = {
        id(own[f"{unit.path}.{relative}" if unit.path else relative])
        for unit in units
        for relative in kinds[unit.kind].parameters.values()
    }
    left = {}
    for name, parameter in own.items():
        if id(parameter) not in held:
            held.add(id(parameter))
            left[name] = tuple(parameter.shape)
    return left
