"""The model with its repeated blocks taken out: what is traced instead of the whole.

``Skeleton`` is a copy of the module tree that shares no memory with the model: every parameter and
buffer is a fake CPU tensor, and each repeated block is a ``BlockStub``. A stub's forward is one call
of the operator ``autoplan::block``, whose fake implementation runs the block once to learn the
shapes of its outputs. So the graph of the skeleton has one node per block, however deep the block
is, and any wiring between blocks (skips, shared masks, tuples) is captured as it is.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from autoplan.errors import TraceError
from autoplan.graph.fold import Repeat

__all__ = ["BlockCall", "BlockStub", "Skeleton", "build_skeleton"]


class _TensorSlot:
    def __repr__(self) -> str:
        return "<tensor>"


_SLOT = _TensorSlot()


@dataclass(slots=True)
class BlockCall:
    """One call of a stub: which block, with which arguments. Tensors are replaced by slots."""

    repeat: int
    path: str
    block: nn.Module
    leaves: list[Any]
    spec: pytree.TreeSpec
    inputs: list[Tensor] = field(default_factory=list)
    output_spec: pytree.TreeSpec | None = None

    def arguments(self, tensors: list[Tensor]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The call's (args, kwargs) with ``tensors`` in the slots."""
        rest = iter(tensors)
        leaves = [next(rest) if leaf is _SLOT else leaf for leaf in self.leaves]
        return pytree.tree_unflatten(leaves, self.spec)

    def signature(self) -> Any:
        """Two calls of one repeat with equal signatures run the same graph."""
        shapes = tuple((tuple(t.shape), t.dtype) for t in self.inputs)
        return self.repeat, shapes, tuple(repr(leaf) for leaf in self.leaves), repr(self.spec)


_ACTIVE: list[BlockCall] = []
_OUTPUTS: dict[Any, tuple[list[Any], pytree.TreeSpec]] = {}


@torch.library.custom_op("autoplan::block", mutates_args=())
def _block(tensors: list[Tensor], call: int) -> list[Tensor]:
    raise TraceError(
        "autoplan::block", call, "to be traced, not run", "run the program that parallelize() returns"
    )


@_block.register_fake
def _block_fake(tensors: list[Tensor], call: int) -> list[Tensor]:
    record = _ACTIVE[call]
    args, kwargs = record.arguments(tensors)
    record.inputs = list(tensors)
    key = record.signature()
    if key in _OUTPUTS:
        leaves, record.output_spec = _OUTPUTS[key]
        return [torch.empty_like(leaf) for leaf in leaves]
    with torch.no_grad():
        output = record.block(*args, **kwargs)
    leaves, record.output_spec = pytree.tree_flatten(output)
    _OUTPUTS[key] = (leaves, record.output_spec)
    if not all(isinstance(leaf, Tensor) for leaf in leaves):
        kinds = sorted({type(leaf).__name__ for leaf in leaves if not isinstance(leaf, Tensor)})
        raise TraceError(
            record.path, kinds, "a repeated block that returns tensors only", "return tensors from this block"
        )
    return [torch.empty_like(leaf) for leaf in leaves]


class BlockStub(nn.Module):
    """Stands where a repeated block stood."""

    def __init__(self, repeat: int, path: str, block: nn.Module) -> None:
        super().__init__()
        self.repeat = repeat
        self.path = path
        self.__dict__["block"] = block  # not a submodule: its parameters are not the skeleton's

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        leaves, spec = pytree.tree_flatten((args, kwargs))
        tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
        slots = [_SLOT if isinstance(leaf, Tensor) else leaf for leaf in leaves]
        record = BlockCall(self.repeat, self.path, self.__dict__["block"], slots, spec)
        _ACTIVE.append(record)
        outputs = torch.ops.autoplan.block(tensors, len(_ACTIVE) - 1)
        assert record.output_spec is not None
        return pytree.tree_unflatten(outputs, record.output_spec)


@dataclass(slots=True)
class Skeleton:
    """A fake copy of a model with stubs in it. ``calls`` fills when it is traced."""

    module: nn.Module
    mode: FakeTensorMode
    blocks: list[nn.Module]
    last_blocks: list[nn.Module]

    @property
    def calls(self) -> list[BlockCall]:
        return list(_ACTIVE)

    def reset(self) -> None:
        """Forget the calls of an earlier trace."""
        _ACTIVE.clear()
        _OUTPUTS.clear()


def build_skeleton(model: nn.Module, repeats: list[Repeat], dtype: torch.dtype | None) -> Skeleton:
    """Copy ``model`` into fake tensors, with a stub for each copy of each repeat.

    ``dtype``: what floating-point parameters are cast to (the compute dtype); None keeps each one's own.
    """
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    blocks = [_fake_copy(repeat.modules[0], {}, mode, dtype) for repeat in repeats]
    lasts = [_fake_copy(repeat.modules[-1], {}, mode, dtype) for repeat in repeats]
    memo: dict[int, Any] = {}
    for index, repeat in enumerate(repeats):
        for path, module in zip(repeat.paths, repeat.modules, strict=True):
            memo[id(module)] = BlockStub(index, path, blocks[index])
    return Skeleton(_fake_copy(model, memo, mode, dtype), mode, blocks, lasts)


def _fake_copy(
    module: nn.Module, memo: dict[int, Any], mode: FakeTensorMode, dtype: torch.dtype | None
) -> nn.Module:
    """A deep copy whose tensors are fake CPU tensors; modules named in ``memo`` are replaced, not copied."""
    filled = dict(memo)
    _fake_tensors(module, filled, mode, dtype)
    try:
        return copy.deepcopy(module, filled)
    except Exception as error:
        raise TraceError(
            type(module).__name__,
            error,
            "a module that copy.deepcopy accepts",
            "remove attributes that cannot be copied (locks, generators, open files)",
        ) from error


def _fake_tensors(
    module: nn.Module, memo: dict[int, Any], mode: FakeTensorMode, dtype: torch.dtype | None
) -> None:
    if id(module) in memo:
        return
    for parameter in module._parameters.values():
        if parameter is not None and id(parameter) not in memo:
            to = dtype if dtype is not None and parameter.is_floating_point() else parameter.dtype
            memo[id(parameter)] = nn.Parameter(
                _fake(parameter, to, mode), requires_grad=parameter.requires_grad
            )
    for buffer in module._buffers.values():
        if buffer is not None and id(buffer) not in memo:
            memo[id(buffer)] = _fake(buffer, buffer.dtype, mode)
    for child in module.children():
        _fake_tensors(child, memo, mode, dtype)


def _fake(tensor: Tensor, dtype: torch.dtype, mode: FakeTensorMode) -> Tensor:
    with mode:
        return torch.empty_strided(tensor.shape, tensor.stride(), dtype=dtype, device="cpu")
