"""What each op of a graph costs, told by torch itself.

Nothing here is a table of ops. The graph is run once under fake tensors, node by node, with autograd
on; a dispatch mode sees every kernel the op is made of and counts its FLOPs (with the registry that
``torch.utils.flop_counter`` uses) and the bytes it reads and writes; saved-tensor hooks see what the
backward pass keeps, deduplicated by storage. The backward pass of each op is run the same way.

The kernels are those of a CPU, which are those of a GPU but for a few ops (``gpu_kernels``): ``device``
says whose are wanted.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import Tensor, fx
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from autoplan.graph.flop_formulas import flop_formula
from autoplan.graph.gemms import gemm_of, is_attention, is_causal, is_grouped, tensor_arguments
from autoplan.graph.gpu_kernels import DeviceKind, kernel_of
from autoplan.graph.ir import Block, Gemm, Op, OpKind, Origin, Saved, Value
from autoplan.graph.randomness import is_random
from autoplan.graph.routing import Routing

__all__ = ["analyse"]


class _Kernels(TorchDispatchMode):
    """Sums FLOPs and bytes over the kernels that run inside."""

    def __init__(self) -> None:
        super().__init__()
        self.flops = 0
        self.nbytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        formula = flop_formula(func)
        if formula is not None:
            self.flops += formula(*args, **kwargs, out_val=out)
        if func.namespace != "prim" and not func.is_view and func._overloadpacket not in _METADATA:
            self.nbytes += _traffic((args, kwargs)) + _traffic(out)
        return out


_METADATA = {torch.ops.aten.detach, torch.ops.aten.empty, torch.ops.aten.empty_like, torch.ops.aten.empty_strided,
             torch.ops.aten.new_empty, torch.ops.aten._unsafe_view, torch.ops.aten.lift_fresh}  # fmt: skip


def _traffic(tree: Any) -> int:
    """Bytes behind the tensors of ``tree``; a tensor broadcast by stride 0 counts what is really stored."""
    total = 0
    for leaf in pytree.tree_leaves(tree):
        if isinstance(leaf, Tensor):
            extent = math.prod(n for n, stride in zip(leaf.shape, leaf.stride(), strict=True) if stride != 0)
            total += extent * leaf.element_size()
    return total


def analyse(
    kind: str,
    path: str,
    graph: fx.Graph,
    parameters: dict[str, str],
    buffers: dict[str, str],
    differentiable_inputs: set[str],
    mode: FakeTensorMode,
    device: DeviceKind = "cuda",
    routing: Routing | None = None,
) -> Block:
    """Run ``graph`` under fake tensors and describe it as a Block.

    Args:
        device: whose kernels are counted.
        routing: the load of routed experts; None is perfect balance.
    """
    runner = _Runner(graph, path, differentiable_inputs, mode, device, routing or Routing())
    runner.run()
    inputs = tuple(n.name for n in graph.nodes if n.op == "placeholder")
    outputs = tuple(n.name for n in next(n for n in graph.nodes if n.op == "output").args[0])  # type: ignore[union-attr]
    return Block(
        kind, path, tuple(runner.ops), runner.values, inputs, outputs, parameters, buffers, graph,
        shared=runner.shared(inputs), roots=runner.roots(outputs),
    )  # fmt: skip


@dataclass(frozen=True, slots=True)
class _Run:
    """One op as it ran: its arguments, what it made, and what it kept for backward."""

    node: fx.Node
    arguments: Any
    made: Any
    forward: _Kernels
    saved: list[Tensor]


class _Runner:
    def __init__(
        self,
        graph: fx.Graph,
        path: str,
        differentiable_inputs: set[str],
        mode: FakeTensorMode,
        device: DeviceKind,
        routing: Routing,
    ) -> None:
        self.graph = graph
        self.path = path
        self.differentiable_inputs = differentiable_inputs
        self.mode = mode
        self.device: DeviceKind = device
        self.routing = routing
        self.env: dict[fx.Node, Any] = {}
        self.values: dict[str, Value] = {}
        self.ops: list[Op] = []
        self.seen_storages: set[int] = set()
        self.kept_constants: set[int] = set()
        self.constants: set[int] = set()
        self.first_in: dict[int, str] = {}
        self.runs: list[_Run] = []
        self.saved: list[Tensor] = []

    def run(self) -> None:
        with (
            self.mode,
            torch.enable_grad(),
            torch.autograd.graph.saved_tensors_hooks(self._pack, lambda t: t),
        ):
            for node in self.graph.nodes:
                if node.op in ("placeholder", "get_attr"):
                    self._source(node)
                elif node.op == "call_function":
                    self._call(node)
            reached = self._reached()
            for run in self.runs:
                self.ops.append(self._op(run, run.node in reached))

    def _reached(self) -> set[fx.Node]:
        """The nodes whose results a gradient comes back to: what is read for its order alone (a top-k's indices),
        or not at all, has no backward pass."""
        reached: set[fx.Node] = set()
        for node in reversed(self.graph.nodes):
            leaves = pytree.tree_leaves(self.env.get(node))
            if any(isinstance(leaf, Tensor) and leaf.requires_grad for leaf in leaves) and any(
                user.op == "output" or user in reached for user in node.users
            ):
                reached.add(node)
        return reached

    def shared(self, inputs: Sequence[str]) -> tuple[str, ...]:
        """The inputs without gradient that the backward pass keeps."""
        storages = {
            node.name: _storage(value) for node, value in self.env.items() if node.op == "placeholder"
        }
        return tuple(name for name in inputs if storages[name] in self.kept_constants)

    def roots(self, outputs: Sequence[str]) -> dict[str, str]:
        """For each output that lies in another value's storage, the first such value."""
        made = {node.name: value for node, value in self.env.items()}
        found = {name: self.first_in[_storage(_first(made[name]))] for name in outputs}
        return {name: root for name, root in found.items() if root != name}

    def _pack(self, tensor: Tensor) -> Tensor:
        self.saved.append(tensor)
        return tensor

    def _source(self, node: fx.Node) -> None:
        example = node.meta["val"]
        trainable = node.meta.get("trainable", node.name in self.differentiable_inputs)
        tensor = torch.empty_strided(example.shape, example.stride(), dtype=example.dtype, device="cpu")
        tensor.requires_grad_(trainable and tensor.is_floating_point())
        self.env[node] = tensor
        origin = Origin.INPUT
        if node.op == "get_attr":
            origin = Origin.PARAMETER if node.meta.get("parameter") else Origin.BUFFER
        if origin is not Origin.INPUT:  # weights and tables of the model stay anyway: they are no activation
            self.seen_storages.add(_storage(tensor))
        elif not tensor.requires_grad:  # masks, ids and rotary tables are shared by every block
            self.constants.add(_storage(tensor))
        self._record(node, tensor, origin)

    def _record(self, node: fx.Node, value: Any, origin: Origin) -> None:
        value = _first(value)
        self.first_in.setdefault(_storage(value), node.name)
        self.values[node.name] = Value(
            node.name, tuple(value.shape), str(value.dtype).removeprefix("torch."), value.element_size(),
            value.requires_grad, origin,
        )  # fmt: skip

    def _call(self, node: fx.Node) -> None:
        # Every value in ``env`` is a leaf, so what an op makes has this op alone behind it.
        args, kwargs = fx.map_arg((node.args, node.kwargs), lambda n: self.env[n])
        kernel = kernel_of(node, self.device)
        self.saved = []
        with _Kernels() as forward:
            made = kernel(*args, **kwargs)
        self.runs.append(_Run(node, (args, kwargs), made, forward, self.saved))
        self.env[node] = pytree.tree_map_only(Tensor, _leaf, made)
        self._record(node, self.env[node], Origin.OP)

    def _op(self, run: _Run, reached: bool) -> Op:
        node, forward = run.node, run.forward
        backward = _backward(run.made, run.arguments) if reached else _Kernels()
        gemm = gemm_of(node)
        return Op(
            node.name, str(node.target), _module_path(node, self.path), _op_kind(node, gemm, forward),
            tuple(n.name for n in tensor_arguments(node)), node.name, forward.flops, backward.flops,
            forward.nbytes, backward.nbytes, gemm, is_causal(node), self._saved(run),
            is_random(node), self._routing(node, gemm), node.meta.get("window"),
            keeps=self._keeps(run), alias=self._alias(node), again=self._again(node),
        )  # fmt: skip

    def _saved(self, run: _Run) -> tuple[Saved, ...]:
        found = []
        here = [(n.name, self.env[n]) for n in [*tensor_arguments(run.node), run.node]]
        names = {_storage(leaf): name for name, tree in here for leaf in pytree.tree_leaves(tree)}
        for tensor in run.saved:
            key = _storage(tensor)
            if key in self.constants:
                self.kept_constants.add(key)
            elif key not in self.seen_storages:
                self.seen_storages.add(key)
                found.append(Saved(names.get(key), tensor.untyped_storage().nbytes(), self.first_in.get(key)))
        return tuple(found)

    def _keeps(self, run: _Run) -> tuple[str, ...]:
        kept = {_storage(tensor) for tensor in run.saved}
        nodes = [*tensor_arguments(run.node), run.node]
        found = [node.name for node in nodes if kept.intersection(map(_storage, _tensors(self.env[node])))]
        return tuple(dict.fromkeys(found))

    def _alias(self, node: fx.Node) -> str:
        own = _storage(_first(self.env[node]))
        for source in tensor_arguments(node):
            if any(_storage(leaf) == own for leaf in _tensors(self.env[source])):
                return source.name
        return ""

    def _again(self, node: fx.Node) -> bool:
        """Ops that draw random numbers, change a buffer or read one that changes would not do the same again; of
        several results each lies elsewhere, which nobody follows."""
        if is_random(node) or _writes(node):
            return False
        if any(map(_writes, (user for source in node.all_input_nodes for user in source.users))):
            return False
        return not any(isinstance(self.env[near], tuple | list) for near in (*node.all_input_nodes, node))

    def _routing(self, node: fx.Node, gemm: Gemm | None) -> Routing | None:
        if gemm is None or not is_grouped(node):
            return None
        self.routing.load(gemm.batch, 1)  # refuses counts of another number of experts
        return self.routing


def _backward(made: Any, arguments: Any) -> _Kernels:
    """What runs to get the gradients of ``arguments`` from those of ``made``."""
    counter = _Kernels()
    leaves = (
        leaf for leaf in pytree.tree_leaves(arguments) if isinstance(leaf, Tensor) and leaf.requires_grad
    )
    wanted = list({id(leaf): leaf for leaf in leaves}.values())
    outs = [leaf for leaf in pytree.tree_leaves(made) if isinstance(leaf, Tensor) and leaf.requires_grad]
    if wanted and outs:
        grads = [torch.empty_like(leaf) for leaf in outs]
        with counter:
            torch.autograd.grad(outs, wanted, grads, allow_unused=True)
    return counter


def _op_kind(node: fx.Node, gemm: Gemm | None, forward: _Kernels) -> OpKind:
    if gemm is not None:
        return OpKind.ATTENTION if is_attention(node) else OpKind.GEMM
    return OpKind.MEMORY if forward.nbytes else OpKind.VIEW


def _leaf(tensor: Tensor) -> Tensor:
    return tensor.detach().requires_grad_(tensor.requires_grad)


def _first(value: Any) -> Tensor:
    """The tensor itself, or the first of several results."""
    return value[0] if isinstance(value, tuple | list) else value


def _tensors(value: Any) -> list[Tensor]:
    return [leaf for leaf in pytree.tree_leaves(value) if isinstance(leaf, Tensor)]


def _writes(node: fx.Node) -> bool:
    return node.target is torch.ops.aten.copy_.default


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata


def _module_path(node: fx.Node, block: str) -> str:
    """Where in the user's model a node comes from; ``block`` is the path of the module that was traced.

    The step that wraps the model is a module too, and holds it as ``model``.
    """
    stack = node.meta.get("nn_module_stack")
    inner = list(stack.values())[-1][0] if stack else ""
    if not block:
        return "" if inner == "model" else inner.removeprefix("model.")
    return f"{block}.{inner}" if inner else block
