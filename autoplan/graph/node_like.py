"""One more node of a graph that is being traced, for a call whose results are known already.

A deep model calls the same block many times. Through torch's dispatcher each such call costs milliseconds: autograd,
a walk over Python's stack, a fake run. Here the node is put into the graph and its results are made directly.
"""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import Tensor, fx
from torch.fx.experimental.proxy_tensor import (
    disable_proxy_modes_tracing,
    get_proxy_slot,
    has_proxy_slot,
    track_tensor,
)

__all__ = ["node_like"]


def node_like(op: Any, args: tuple[list[Tensor], Any], made: list[Tensor], path: str) -> list[Tensor] | None:
    """New tensors like ``made``, as the results of a new node ``op(*args)``; None where nothing is being traced.

    Args:
        op: an operator that takes a list of tensors and one more argument, and returns a list of tensors.
        path: what stands for the node's place in the source.
    """
    mode = torch._ops._get_dispatch_mode_pre_dispatch(torch._C._TorchDispatchModeKey.PROXY)
    if mode is None:
        return None
    tracer = mode.tracer
    tensors, other = args
    with torch._C.DisableTorchFunction():
        if not all(has_proxy_slot(tensor, tracer) for tensor in tensors):
            return None
        reads = [get_proxy_slot(tensor, tracer).proxy.node for tensor in tensors]
        with disable_proxy_modes_tracing():
            results = [torch.empty_like(tensor) for tensor in made]
        meta = {"nn_module_stack": _stack(tracer), "stack_trace": path}
        node = tracer.graph.create_node("call_function", op, (reads, other), {}, op.overloadpacket.__name__)
        node.meta.update(meta, val=results)
        differentiable = any(tensor.requires_grad for tensor in tensors)
        for index, result in enumerate(results):
            pick = tracer.graph.create_node("call_function", operator.getitem, (node, index))
            pick.meta.update(meta, val=result)
            track_tensor(result, fx.Proxy(pick, tracer), constant=None, tracer=tracer)
            result.requires_grad_(differentiable and result.is_floating_point())
    return results


def _stack(tracer: Any) -> dict[str, tuple[str, str]]:
    """The modules that run now, as nodes hold them: by key, the path and the name of the class."""
    return {
        key: (path, f"{kind.__module__}.{kind.__qualname__}" if isinstance(kind, type) else kind)
        for key, (path, kind) in tracer.module_stack.items()
    }
