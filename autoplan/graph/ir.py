"""The model as data: values, ops, blocks, and the chain of units that a training step runs.

A ``ModelGraph`` is traced for one micro-batch on one data-parallel rank. Depth is folded: each
distinct block is held once (a *kind*), and ``units`` lists its copies in order.

    free ──────────────┬───────────┬──────────┐     masks, rotary tables, shifted labels: no parameters,
    batch ─→ prologue ─→ layers.0 ─→ layers.1 ─→ epilogue ─→ loss       recomputed by whoever needs them
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    import torch

    from autoplan.graph.routing import Routing

__all__ = [
    "Block",
    "Gemm",
    "ModelGraph",
    "Op",
    "OpKind",
    "Origin",
    "Saved",
    "Sent",
    "Unit",
    "Value",
    "Window",
]


class Origin(StrEnum):
    """Where a value comes from."""

    INPUT = "input"
    PARAMETER = "parameter"
    BUFFER = "buffer"
    OP = "op"


class OpKind(StrEnum):
    """Which curve of the cost model prices an op."""

    GEMM = "gemm"
    ATTENTION = "attention"
    MEMORY = "memory"
    VIEW = "view"


@dataclass(frozen=True, slots=True)
class Value:
    """A tensor of a block. ``dtype`` is torch's name for it without the ``torch.`` (``bfloat16``)."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    itemsize: int
    requires_grad: bool
    origin: Origin

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.itemsize


@dataclass(frozen=True, slots=True)
class Gemm:
    """``batch`` products of (m, k) by (k, n). For attention: m queries, n keys, k head size."""

    batch: int
    m: int
    n: int
    k: int

    @property
    def flops(self) -> int:
        return 2 * self.batch * self.m * self.n * self.k

    def cut(self, axis: str | None, ranks: int) -> Gemm:
        """One rank's part when ``axis`` is cut; without an axis, the batch or else m."""
        if ranks == 1:
            return self
        if axis is None:
            axis = "batch" if self.batch % ranks == 0 else "m"
        return replace(self, **{axis: max(getattr(self, axis) // ranks, 1)})


@dataclass(frozen=True, slots=True)
class Window:
    """What the mask of an attention lets a query see, where it is neither all keys nor all up to its own.

    ``keys`` is the most that any query sees, ``share`` the part of all query-key pairs that meet, and ``causal``
    says that no query sees a later key.
    """

    keys: int
    share: float
    causal: bool


@dataclass(frozen=True, slots=True)
class Saved:
    """A tensor that the backward pass of an op keeps; storage shared inside a block is listed once.

    ``value`` names the argument or result of the op that it is, or is None when it is internal to the op.
    ``root`` names the first of the block's values that lies in the same storage: ``value`` itself, or what it
    is a view of.
    """

    value: str | None
    nbytes: int
    root: str | None = None


@dataclass(frozen=True, slots=True)
class Sent:
    """What an op of a block that is cut already (``graph.cut``) sends among the ``ranks`` that cut it.

    ``nbytes`` by the convention of ``layout.conversion``, and of a send_recv what one rank sends; ``beside``: so many
    times, each beside an equal part of the op's work.
    """

    kind: str
    nbytes: float
    phase: Literal["forward", "backward"]
    ranks: int
    beside: int = 0


@dataclass(frozen=True, slots=True)
class Op:
    """One ATen call of a block. ``inputs`` are its tensor arguments in order, repeats included; ``random`` says
    that it draws random numbers; ``routing`` is there for a product grouped by expert, whose ``gemm`` is one
    product for each expert, and says how evenly rows are assumed to be spread over them; ``window`` tells of a
    fused attention what its mask lets through, while its FLOPs are those of all query-key pairs; ``sends`` what it
    sends on a mesh axis that has cut the block already; ``pieces`` of an attention into how many equal parts its keys
    are taken, one after another.

    ``saved`` lists a storage with the first op that keeps it; ``keeps`` names all arguments and results of this op
    that its backward reads, weights and inputs without gradient among them. ``alias`` names the argument in
    whose storage the result lies, empty where it has one of its own; ``again`` says that the op can run a second time
    and give the same."""

    name: str
    target: str
    module_path: str
    kind: OpKind
    inputs: tuple[str, ...]
    output: str
    flops_forward: int
    flops_backward: int
    bytes_forward: int
    bytes_backward: int
    gemm: Gemm | None = None
    causal: bool = False
    saved: tuple[Saved, ...] = ()
    random: bool = False
    routing: Routing | None = None
    window: Window | None = None
    sends: tuple[Sent, ...] = ()
    pieces: int = 1
    keeps: tuple[str, ...] = ()
    alias: str = ""
    again: bool = True


@dataclass(slots=True)
class Block:
    """One distinct piece of the model, traced once.

    ``parameters`` and ``buffers`` map a value's name to its name relative to ``path``, the first
    module of this kind (empty for the prologue, the epilogue and what lies between blocks).
    ``inputs`` are value names in calling order; ``outputs`` likewise. A buffer that forward changes is written
    by an ``aten.copy_`` that nothing reads; ``updates`` names these buffers' values. ``graph`` is the executable
    ``torch.fx`` graph, in global shapes; its node names are the names used here. ``shared`` lists the
    inputs without gradient (masks, ids, rotary tables) that the backward pass keeps: all blocks keep the
    same, so they are not among the ops' saved tensors. ``roots`` gives, for each output that lies in the
    storage of another value, the first of these. ``expert_dims`` gives, for each parameter of which
    the block has but a rank's experts (``graph.expert_cut``), the dim that is cut.
    """

    kind: str
    path: str
    ops: tuple[Op, ...]
    values: dict[str, Value]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    parameters: dict[str, str]
    buffers: dict[str, str]
    graph: torch.fx.Graph
    shared: tuple[str, ...] = ()
    roots: dict[str, str] = field(default_factory=dict)
    expert_dims: dict[str, int] = field(default_factory=dict)
    _strategies: dict[Any, Any] = field(default_factory=dict, repr=False)

    @property
    def updates(self) -> tuple[str, ...]:
        """The buffers that running the block changes."""
        return tuple(
            op.inputs[0]
            for op in self.ops
            if op.target == "aten.copy_.default" and op.inputs[0] in self.buffers
        )

    @property
    def saved_bytes(self) -> int:
        """Bytes kept for backward by one micro-batch, parameters not counted."""
        return sum(saved.nbytes for op in self.ops for saved in op.saved)

    @property
    def parameter_count(self) -> int:
        return sum(math.prod(self.values[name].shape) for name in self.parameters)

    @property
    def flops_forward(self) -> int:
        return sum(op.flops_forward for op in self.ops)

    @property
    def flops_backward(self) -> int:
        return sum(op.flops_backward for op in self.ops)


@dataclass(frozen=True, slots=True)
class Unit:
    """One call of a block in the chain.

    ``name`` is unique and stable: the module path of a repeated block (``model.layers.3``), or
    ``prologue``, ``epilogue``, ``between.3``. ``arguments`` gives, for each input of the block, the
    value of the chain it is bound to; ``results`` names each output in the chain. Chain values are
    ``batch.*`` (given by the caller), ``free.*`` (from the free block) or results of earlier units.
    """

    name: str
    kind: str
    path: str
    arguments: tuple[str, ...]
    results: tuple[str, ...]


@dataclass(slots=True)
class ModelGraph:
    """A model and its loss for one micro-batch of ``micro_batch`` samples.

    ``kinds`` holds each distinct block; ``units`` is the chain, prologue first. ``free`` computes the
    ``free.*`` values from the batch and from buffers alone. ``loss`` names the chain value that is the
    scalar loss. ``weight`` names the chain value that weighs this micro-batch's mean loss against
    others (the number of targets not ignored), or is None when every micro-batch weighs the same.
    ``tied`` lists groups of parameters that are one tensor, as (unit name, value name) pairs. ``meetings``
    tells where samples meet before the final mean: such a model's batch must stay whole, on one data rank and
    in one micro-batch. ``unused`` gives the shapes of the parameters that forward never reads, by name. ``whole`` is
    the graph that this one is a rank's part of (``graph.cut``), or None.
    """

    name: str
    fingerprint: str
    micro_batch: int
    kinds: dict[str, Block]
    units: tuple[Unit, ...]
    free: Block
    loss: str
    weight: str | None
    tied: tuple[tuple[tuple[str, str], ...], ...]
    batch_inputs: dict[str, tuple[tuple[int, ...], str]]
    meetings: tuple[str, ...] = ()
    unused: dict[str, tuple[int, ...]] = field(default_factory=dict)
    whole: ModelGraph | None = None

    def count(self, kind: str) -> int:
        """How many units are copies of ``kind``."""
        return sum(unit.kind == kind for unit in self.units)

    @property
    def routing(self) -> Routing | None:
        """How evenly routed experts are assumed to be loaded; None if there are none."""
        ops = (op for block in self.kinds.values() for op in block.ops)
        return next((op.routing for op in ops if op.routing is not None), None)

    @property
    def draws(self) -> bool:
        """Whether some op draws random numbers."""
        return any(op.random for block in (self.free, *self.kinds.values()) for op in block.ops)

    @property
    def parameter_count(self) -> int:
        """Parameters of the whole model; a tied group counts once, and what forward never reads counts too."""
        total = sum(self.kinds[unit.kind].parameter_count for unit in self.units)
        total += sum(math.prod(shape) for shape in self.unused.values())
        kind_of = {unit.name: unit.kind for unit in self.units}
        for group in self.tied:
            for unit_name, value in group[1:]:
                total -= math.prod(self.kinds[kind_of[unit_name]].values[value].shape)
        return total
