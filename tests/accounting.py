"""What torch itself counts when a model really runs: the truth that a traced graph's accounts are compared with."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

from autoplan.graph.ir import ModelGraph

Loss = Callable[[Any, Any], Tensor] | None
_aten = torch.ops.aten


def _flash(query: Any, key: Any, value: Any, *_: Any, out_shape: Any = None, **__: Any) -> int:
    return sdpa_flop_count(query, key, value)


def _flash_backward(
    grad: Any, query: Any, key: Any, value: Any, *_: Any, out_shape: Any = None, **__: Any
) -> int:
    return sdpa_backward_flop_count(grad, query, key, value)


FORMULAS = {
    _aten._scaled_dot_product_flash_attention_for_cpu: _flash,
    _aten._scaled_dot_product_flash_attention_for_cpu_backward: _flash_backward,
}
"""torch's formulas of flash attention, for the CPU's kernels, which FlopCounterMode does not know."""


def run_loss(model: nn.Module, batch: Any, loss: Loss) -> Tensor:
    """The step's loss, as ``trace`` understands it."""
    output = (
        model(**batch)
        if isinstance(batch, dict)
        else model(*batch)
        if isinstance(batch, tuple)
        else model(batch)
    )
    return loss(output, batch) if loss is not None else getattr(output, "loss", output)


def real_flops(model: nn.Module, batch: Any, loss: Loss) -> tuple[int, int]:
    """FLOPs that FlopCounterMode counts in a forward and a backward pass."""
    with FlopCounterMode(display=False, custom_mapping=FORMULAS) as counter:
        value = run_loss(model, batch, loss)
        forward = counter.get_total_flops()
        value.backward()
    return forward, counter.get_total_flops() - forward


def graph_flops(graph: ModelGraph) -> tuple[int, int]:
    """The same of a traced graph, every copy of a block counted."""
    ops = [op for unit in graph.units for op in graph.kinds[unit.kind].ops] + list(graph.free.ops)
    return sum(op.flops_forward for op in ops), sum(op.flops_backward for op in ops)


def real_saved_bytes(run: Callable[[], Any], excluded: Iterable[Tensor]) -> int:
    """Bytes of the storages that autograd keeps when ``run`` runs, each once, without those of ``excluded``."""
    known = {tensor.untyped_storage().data_ptr() for tensor in excluded}
    storages: dict[int, Any] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in known:
            storages[storage.data_ptr()] = storage  # held, so that no address is used twice
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        made = run()
    total = sum(storage.nbytes() for storage in storages.values())
    del made
    return total


def real_block_saved_bytes(model: nn.Module, path: str, batch: Any, loss: Loss) -> int:
    """Bytes that the module at ``path`` keeps when it is called as the model calls it first.

    Parameters, buffers and inputs without a gradient are left out: they stay whether backward keeps them or not.
    """
    calls: list[tuple[Any, Any]] = []
    layer = model.get_submodule(path)
    handle = layer.register_forward_pre_hook(
        lambda module, args, kwargs: calls.append((args, kwargs)), with_kwargs=True
    )
    run_loss(model, batch, loss)
    handle.remove()
    args, kwargs = pytree.tree_map_only(Tensor, _leaf, calls[0])
    given = [leaf for leaf in pytree.tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
    constant = [leaf for leaf in given if not leaf.requires_grad]
    excluded = [*layer.parameters(), *layer.buffers(), *constant]
    return real_saved_bytes(lambda: layer(*args, **kwargs), excluded)


def _leaf(tensor: Tensor) -> Tensor:
    return tensor.detach().requires_grad_(tensor.requires_grad)
