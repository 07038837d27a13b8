"""The model with its repeated blocks taken out: what is traced instead of the whole.

``Skeleton`` is a copy of the module tree that shares no memory with the model: every parameter and
buffer is a fake CPU tensor, and each repeated block is a ``BlockStub``. A stub's forward is one call
of the operator ``autoplan::block``, whose fake implementation runs the block once to learn the
shapes of its outputs. So the graph of the skeleton has one node per block, however deep the block
is, and any wiring between blocks (skips, shared masks, tuples) is captured as it is.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, NoReturn

import torch
import torch.utils._pytree as pytree
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from autoplan.errors import AutoplanError, TraceError
from autoplan.graph.export import not_captured
from autoplan.graph.fold import Repeat
from autoplan.graph.footprint import Footprint
from autoplan.graph.node_like import node_like

__all__ = ["BlockCall", "BlockStub", "Skeleton", "blocks_inline", "build_skeleton"]


class _TensorSlot:
    def __repr__(self) -> str:
        return "<tensor>"


_SLOT = _TensorSlot()
_CONSTANTS = (type(None), bool, int, float, str, torch.dtype, torch.device)


@dataclass(frozen=True, slots=True)
class Result:
    """What stands at one place of a block's output: its ``source`` is an ``input`` or a ``made`` tensor, by index, or
    a ``constant``."""

    source: str
    value: Any


@dataclass(slots=True)
class BlockCall:
    """One call of a stub: which block, with which arguments. Tensors are replaced by slots."""

    repeat: int
    path: str
    block: nn.Module
    leaves: list[Any]
    spec: pytree.TreeSpec
    inputs: list[Tensor] = field(default_factory=list)
    results: tuple[Result, ...] = ()
    output_spec: pytree.TreeSpec | None = None
    footprint: str = ""

    def arguments(self, tensors: list[Tensor]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The call's (args, kwargs) with ``tensors`` in the slots."""
        rest = iter(tensors)
        leaves = [next(rest) if leaf is _SLOT else leaf for leaf in self.leaves]
        return pytree.tree_unflatten(leaves, self.spec)

    @property
    def made(self) -> list[int]:
        """Which of the flat outputs are the tensors that the block makes, each once."""
        first: dict[int, int] = {}
        for place, result in enumerate(self.results):
            if result.source == "made":
                first.setdefault(result.value, place)
        return [first[index] for index in range(len(first))]

    def output(self, made: list[Tensor], given: list[Tensor]) -> Any:
        """What the block returns to its parent: tensors it made, tensors it was given, and constants."""
        assert self.output_spec is not None
        tables = {"made": made, "input": given}
        leaves = [tables[r.source][r.value] if r.source in tables else r.value for r in self.results]
        return pytree.tree_unflatten(leaves, self.output_spec)

    def signature(self) -> Any:
        """Two calls of one repeat with equal signatures run the same graph.

        A number that is the block's place in its list counts as equal in all, if their footprints are equal.
        """
        shapes = tuple((tuple(t.shape), t.dtype) for t in self.inputs)
        shown = tuple("<place>" if self._is_place(leaf) else repr(leaf) for leaf in self.leaves)
        return self.repeat, shapes, shown, repr(self.spec)

    def _is_place(self, leaf: Any) -> bool:
        return type(leaf) is int and self.path.rpartition(".")[2] == str(leaf)

    @property
    def takes_place(self) -> bool:
        """Whether the block is told which place it has in its list; its footprint then tells what it did."""
        return any(self._is_place(leaf) for leaf in self.leaves)

    def run_key(self) -> Any:
        """Calls with equal keys need to be run once only."""
        return self.signature(), self.path if self.takes_place else ""


_ACTIVE: list[BlockCall] = []
_OUTPUTS: dict[Any, tuple[list[Tensor], tuple[Result, ...], pytree.TreeSpec, str]] = {}


@torch.library.custom_op("autoplan::block", mutates_args=())
def _block(tensors: list[Tensor], call: int) -> list[Tensor]:
    raise TraceError(
        "autoplan::block", call, "to be traced, not run", "run the program that parallelize() returns"
    )


@_block.register_fake
def _block_fake(tensors: list[Tensor], call: int) -> list[Tensor]:
    record = _with_inputs(_ACTIVE[call], tensors)
    args, kwargs = record.arguments(tensors)
    key = record.run_key()
    if key not in _OUTPUTS:
        noted = Footprint(record.block, tensors) if record.takes_place else None
        try:
            with torch.no_grad(), noted or contextlib.nullcontext():
                output = record.block(*args, **kwargs)
        except AutoplanError:
            raise
        except Exception as error:
            raise not_captured(record.path, error) from error
        _OUTPUTS[key] = *_results(record.path, output, tensors), noted.digest if noted else ""
    made, record.results, record.output_spec, record.footprint = _OUTPUTS[key]
    return [torch.empty_like(tensor) for tensor in made]


def _with_inputs(record: BlockCall, tensors: list[Tensor]) -> BlockCall:
    record.inputs = list(tensors)
    return record


def _results(
    path: str, output: Any, given: list[Tensor]
) -> tuple[list[Tensor], tuple[Result, ...], pytree.TreeSpec]:
    """The tensors that a block made, and where they, its inputs and constants stand in its output."""
    leaves, spec = pytree.tree_flatten(output)
    made: list[Tensor] = []
    results = []
    for leaf in leaves:
        if not isinstance(leaf, Tensor):
            if not isinstance(leaf, _CONSTANTS):
                raise TraceError(
                    path,
                    type(leaf).__name__,
                    "a repeated block that returns tensors and plain constants",
                    "return tensors from this block, in tuples, lists or dicts",
                )
            results.append(Result("constant", leaf))
        elif (place := _place_of(leaf, given)) is not None:
            results.append(Result("input", place))
        elif (place := _place_of(leaf, made)) is not None:
            results.append(Result("made", place))
        else:
            results.append(Result("made", len(made)))
            made.append(leaf)
    return made, tuple(results), spec


def _place_of(tensor: Tensor, among: list[Tensor]) -> int | None:
    return next((index for index, other in enumerate(among) if other is tensor), None)


_INLINE: list[dict[Any, tuple[list[Tensor], list[int], tuple[Result, ...], pytree.TreeSpec]]] = []
"""While blocks run in place, what those that ran gave."""


@contextlib.contextmanager
def blocks_inline() -> Iterator[None]:
    """Within, a stub runs its block as part of its parent; a call like an earlier one gives its tensors again."""
    _INLINE.append({})
    try:
        yield
    finally:
        _INLINE.pop()


def _run_inline(record: BlockCall, tensors: list[Tensor]) -> Any:
    known, key = _INLINE[-1], _with_inputs(record, tensors).run_key()
    if key in known:
        made, versions, record.results, record.output_spec = known[key]
        if versions == [tensor._version for tensor in made]:  # nothing has been done to them in place
            return record.output(made, tensors)
    args, kwargs = record.arguments(tensors)
    made, record.results, record.output_spec = _results(record.path, record.block(*args, **kwargs), tensors)
    known[key] = made, [tensor._version for tensor in made], record.results, record.output_spec
    return record.output(made, tensors)


class BlockStub(nn.Module):
    """Stands where a repeated block stood.

    Its parent may read the block's attributes (its attention's type), ask whether it is of the block's class, and
    hang hooks on it. It may hang hooks on the block's children too; what such a hook takes out of the block shows
    up as a constant tensor in the parent's graph, and is refused.

    Made by ``stub_of``, which makes it of the block's class too: for ``isinstance``, and because torch.export puts
    a module that it met under two names in a proxy of the same class, whose forward must be this one.
    """

    def __init__(self, repeat: int, path: str, block: nn.Module, counters: dict[str, int]) -> None:
        nn.Module.__init__(self)  # and not the block's
        self._stub = repeat, path
        self.__dict__.update(counters)
        self.__dict__["_block"] = block  # not a submodule: its parameters are not the skeleton's

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["_block"], name)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return nn.Module.__call__(self, *args, **kwargs)

    def __len__(self) -> int:
        return len(self.__dict__["_block"])

    def __bool__(self) -> bool:
        return bool(self.__dict__["_block"])

    def __iter__(self) -> NoReturn:
        self._opened()

    def __getitem__(self, index: Any) -> NoReturn:
        self._opened()

    def _opened(self) -> NoReturn:
        raise TraceError(
            self._stub[1],
            "a repeated block whose parts its parent runs",
            "blocks that are called as a whole",
            "call the block, or keep its layers in a ModuleList of the parent",
        )

    def named_children(self) -> Iterator[tuple[str, nn.Module]]:
        return self.__dict__["_block"].named_children()

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        leaves, spec = pytree.tree_flatten((args, kwargs))
        tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
        slots = [_SLOT if isinstance(leaf, Tensor) else leaf for leaf in leaves]
        record = BlockCall(*self._stub, self.__dict__["_block"], slots, spec)
        if _INLINE:
            return _run_inline(record, tensors)
        _ACTIVE.append(record)
        call = len(_ACTIVE) - 1
        with torch._C.DisableTorchFunction():  # shapes are read; modes need not see that
            known = _OUTPUTS.get(_with_inputs(record, tensors).run_key())
        if known is not None:
            made, record.results, record.output_spec, record.footprint = known
            again = node_like(torch.ops.autoplan.block.default, (tensors, call), made, record.path)
            if again is not None:
                return record.output(again, tensors)
        return record.output(torch.ops.autoplan.block(tensors, call), tensors)


def stub_of(repeat: int, path: str, block: nn.Module, counters: dict[str, int]) -> BlockStub:
    """A stub of the block's own class."""
    own = type(block)
    made = type(
        own.__name__, (BlockStub, own), {"__module__": own.__module__, "__qualname__": own.__qualname__}
    )
    return made(repeat, path, block, counters)


@dataclass(slots=True)
class Skeleton:
    """A fake copy of a model with stubs in it. ``calls`` fills when it is traced.

    ``counted`` tells of each repeat whether the forward of its first copy has read an attribute that counts.
    """

    module: nn.Module
    mode: FakeTensorMode
    repeats: list[Repeat]
    dtype: torch.dtype | None
    counted: list[set[str]]

    def call(self, number: int) -> BlockCall:
        """The call that the captured graph names by ``number``."""
        return _ACTIVE[number]

    def other_copies(self, repeat: int) -> list[nn.Module]:
        """Fake copies of the blocks that may differ from the first: the last, or all if a counter was read."""
        modules = self.repeats[repeat].modules
        others = modules[1:] if self.counted[repeat] else modules[1:][-1:]
        return [_fake_copy(module, {}, self.mode, self.dtype) for module in others]

    def reset(self) -> None:
        """Forget the calls of an earlier trace."""
        _ACTIVE.clear()
        _OUTPUTS.clear()


def build_skeleton(model: nn.Module, repeats: list[Repeat], dtype: torch.dtype | None) -> Skeleton:
    """Copy ``model`` into fake tensors, with a stub for each copy of each repeat.

    ``dtype``: what floating-point parameters are cast to (the compute dtype); None keeps each one's own.
    """
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    memo: dict[int, Any] = {}
    counted: list[set[str]] = []
    for index, repeat in enumerate(repeats):
        block = _fake_copy(repeat.modules[0], {}, mode, dtype)
        counted.append(_watch(block, repeat.counters))
        for path, module in zip(repeat.paths, repeat.modules, strict=True):
            counters = {name: value for name, value in vars(module).items() if name in repeat.counters}
            memo[id(module)] = stub_of(index, path, block, counters)
    return Skeleton(_fake_copy(model, memo, mode, dtype), mode, repeats, dtype, counted)


def _watch(block: nn.Module, counters: frozenset[str]) -> set[str]:
    """A set that fills with those of the attributes ``counters`` that the block's modules read."""
    read: set[str] = set()

    def watched(name: str) -> property:
        def get(module: nn.Module) -> Any:
            read.add(name)
            return vars(module)[name]

        return property(get)

    for module in block.modules():
        if names := counters & vars(module).keys():
            own = type(module)
            module.__class__ = type(own.__name__, (own,), {name: watched(name) for name in names})
    return read


def _fake_copy(
    module: nn.Module, memo: dict[int, Any], mode: FakeTensorMode, dtype: torch.dtype | None
) -> nn.Module:
    """A deep copy whose tensors are fake CPU tensors; modules named in ``memo`` are replaced, not copied."""
    filled = dict(memo)
    _fake_tensors(module, filled, mode, dtype)
    try:
        made = copy.deepcopy(module, filled)
    except Exception as error:
        raise TraceError(
            type(module).__name__,
            error,
            "a module that copy.deepcopy accepts",
            "remove attributes that cannot be copied (locks, generators, open files)",
        ) from error
    _for_training(made)
    return made


def _for_training(module: nn.Module) -> None:
    """Set what Hugging Face models read off their configs and what training and tracing want otherwise.

    No key-value cache is filled, as nothing reads it; and experts are run as products grouped by expert, which
    is the same function as their loop over the experts that have tokens, but has no shapes that depend on data.
    """
    for part in module.modules():
        config = getattr(part, "config", None)
        if config is not None and getattr(config, "use_cache", False) is True:
            config.use_cache = False
        eager = config is not None and getattr(config, "_experts_implementation", None) == "eager"
        if config is not None and eager and hasattr(part, "_apply_gate"):
            config._experts_implementation = "grouped_mm"


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
