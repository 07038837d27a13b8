"""One more node of a graph that is being traced, for a call whose results are known already.

A deep model calls the same block many times. Through torch's dispatcher each such call costs milliseconds: autograd,
a walk over Python's stack, a fake run. Here the node is put into the graph and its results are made directly.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import (
    disable_proxy_modes_tracing,
    get_proxy_slot,
    has_proxy_slot,
    track_tensor_tree,
)
from torch.fx.traceback import preserve_node_meta, set_stack_trace

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
    if not all(has_proxy_slot(tensor, tracer) for tensor in tensors):
        return None
    proxies = [get_proxy_slot(tensor, tracer).proxy for tensor in tensors]
    with preserve_node_meta(), torch._C.DisableTorchFunctionSubclass(), torch._C.DisableTorchFunction():
        set_stack_trace([path])
        proxy = tracer.create_proxy(
            "call_function", op, (proxies, other), {}, name=op.overloadpacket.__name__
        )
        with disable_proxy_modes_tracing():
            results = [torch.empty_like(tensor) for tensor in made]
        track_tensor_tree(results, proxy, constant=None, tracer=tracer)
    if any(tensor.requires_grad for tensor in tensors):
        for result in results:
            result.requires_grad_(result.is_floating_point())
    return results
