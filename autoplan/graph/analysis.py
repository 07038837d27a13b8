"""What each op of a graph costs, told by torch itself.

Nothing here is a table of ops. The graph is run once under fake tensors, node by node, with autograd
on; a dispatch mode sees every kernel the op is made of and counts its FLOPs (with the registry that
``torch.utils.flop_counter`` uses) and the bytes it reads and writes; saved-tensor hooks see what the
backward pass keeps, deduplicated by storage. The backward pass of each op is run the same way.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import Tensor, fx
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from autoplan.graph.gemms import attention_flops, gemm_of, is_attention, is_causal, tensor_arguments
from autoplan.graph.ir import Block, Op, OpKind, Origin, Saved, Value
from autoplan.graph.randomness import is_random

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
        counter = flop_registry.get(func._overloadpacket)
        if counter is not None:
            self.flops += counter(*args, **kwargs, out_val=out)
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
) -> Block:
    """Run ``graph`` under fake tensors and describe it as a Block."""
    runner = _Runner(graph, path, differentiable_inputs, mode)
    runner.run()
    inputs = tuple(n.name for n in graph.nodes if n.op == "placeholder")
    outputs = tuple(n.name for n in next(n for n in graph.nodes if n.op == "output").args[0])  # type: ignore[union-attr]
    return Block(kind, path, tuple(runner.ops), runner.values, inputs, outputs, parameters, buffers, graph)


class _Runner:
    def __init__(
        self, graph: fx.Graph, path: str, differentiable_inputs: set[str], mode: FakeTensorMode
    ) -> None:
        self.graph = graph
        self.path = path
        self.differentiable_inputs = differentiable_inputs
        self.mode = mode
        self.env: dict[fx.Node, Any] = {}
        self.values: dict[str, Value] = {}
        self.ops: list[Op] = []
        self.seen_storages: set[int] = set()
        self.keep_alive: list[Any] = []
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
        if origin is not Origin.INPUT or not tensor.requires_grad:
            # weights stay anyway, and masks and tables are shared by every block: neither is an activation
            self.seen_storages.add(_storage(tensor))
        self._record(node, tensor, origin)

    def _record(self, node: fx.Node, value: Any, origin: Origin) -> None:
        if isinstance(value, tuple | list):
            value = value[0]
        self.values[node.name] = Value(
            node.name, tuple(value.shape), str(value.dtype).removeprefix("torch."), value.element_size(),
            value.requires_grad, origin,
        )  # fmt: skip

    def _call(self, node: fx.Node) -> None:
        args, kwargs = fx.map_arg((node.args, node.kwargs), lambda n: self.env[n])
        self.saved = []
        with _Kernels() as forward:
            value = node.target(*args, **kwargs)  # type: ignore[operator]
        self.keep_alive.append((value, self.saved))
        self.env[node] = value
        self._record(node, value, Origin.OP)
        saved = self._saved(node)
        backward = self._backward(node, args, kwargs)
        gemm = gemm_of(node)
        if is_attention(node) and gemm is not None:
            op_kind = OpKind.ATTENTION
            forward.flops, backward.flops = attention_flops(gemm)
        elif gemm is not None:
            op_kind = OpKind.GEMM
        else:
            op_kind = OpKind.MEMORY if forward.nbytes else OpKind.VIEW
        self.ops.append(
            Op(
                node.name, str(node.target), _module_path(node, self.path), op_kind,
                tuple(n.name for n in tensor_arguments(node)), node.name, forward.flops, backward.flops,
                forward.nbytes, backward.nbytes, gemm, is_causal(node), saved, is_random(node),
            )
        )  # fmt: skip

    def _saved(self, node: fx.Node) -> tuple[Saved, ...]:
        found = []
        here = [(n.name, self.env[n]) for n in [*tensor_arguments(node), node]]
        names = {_storage(leaf): name for name, tree in here for leaf in pytree.tree_leaves(tree)}
        for tensor in self.saved:
            key = _storage(tensor)
            if key not in self.seen_storages:
                self.seen_storages.add(key)
                found.append(Saved(names.get(key), tensor.untyped_storage().nbytes()))
        return tuple(found)

    def _backward(self, node: fx.Node, args: Any, kwargs: Any) -> _Kernels:
        counter = _Kernels()
        leaves, spec = pytree.tree_flatten((args, kwargs))
        fresh = [_detached(leaf) for leaf in leaves]
        wanted = [leaf for leaf in fresh if isinstance(leaf, Tensor) and leaf.requires_grad]
        if not wanted:
            return counter
        new_args, new_kwargs = pytree.tree_unflatten(fresh, spec)
        out = node.target(*new_args, **new_kwargs)  # type: ignore[operator]
        outs = [leaf for leaf in pytree.tree_leaves(out) if isinstance(leaf, Tensor) and leaf.requires_grad]
        if outs:
            grads = [torch.empty_like(leaf) for leaf in outs]
            with counter:
                torch.autograd.grad(outs, wanted, grads, allow_unused=True)
        return counter


def _detached(leaf: Any) -> Any:
    return leaf.detach().requires_grad_(leaf.requires_grad) if isinstance(leaf, Tensor) else leaf


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
