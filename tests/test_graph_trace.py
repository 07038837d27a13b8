"""Tracing describes the model that would run: its parts, its parameters, its FLOPs, what its backward keeps."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import torch
import torch.utils._pytree as pytree
from equality import SEQ, VOCAB, PlainGPT, gpt_loss, llama_loss, make, make_batch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from autoplan.graph import trace as trace_module
from autoplan.graph.axes import rule_for
from autoplan.graph.ir import ModelGraph, OpKind
from autoplan.graph.trace import trace
from autoplan.precision import Precision

MODELS = ["gpt", "gpt-untied", "llama", "llama-tied"]


def loss_of(name: str) -> Any:
    return gpt_loss if name.startswith("gpt") else llama_loss


@cache
def traced(name: str) -> ModelGraph:
    model, _ = make(name, "fp32")
    return trace(model, make_batch(name, 2, 0), loss_of(name), device="cpu")


def run_step(model: nn.Module, name: str) -> None:
    batch = make_batch(name, 2, 0)
    loss_of(name)(model(**batch), batch).backward()


@pytest.mark.parametrize("name", MODELS)
def test_units_are_the_model_s_parts_in_order(name: str) -> None:
    graph = traced(name)
    layers = [f"{'h' if name.startswith('gpt') else 'model.layers'}.{i}" for i in range(4)]
    assert [unit.name for unit in graph.units] == ["prologue", *layers, "epilogue"]
    (kind,) = {unit.kind for unit in graph.units[1:-1]}
    assert kind.split("_")[0] == ("PlainBlock" if name.startswith("gpt") else "LlamaDecoderLayer")
    assert graph.count(kind) == 4
    assert graph.micro_batch == 2
    assert graph.units[-1].results == (graph.loss,)


@pytest.mark.parametrize("name", MODELS)
def test_parameters_are_the_module_s_each_once(name: str) -> None:
    model, graph = make(name, "fp32")[0], traced(name)
    assert graph.parameter_count == sum(p.numel() for p in model.parameters())
    shapes = {n: tuple(p.shape) for n, p in model.named_parameters(remove_duplicate=False)}
    found: dict[str, tuple[int, ...]] = {}
    for unit in graph.units:
        block = graph.kinds[unit.kind]
        for value, relative in block.parameters.items():
            found[f"{unit.path}.{relative}" if unit.path else relative] = block.values[value].shape
    assert {n: found[n] for n in shapes if n in found} == found
    assert {id(dict(model.named_parameters(remove_duplicate=False))[n]) for n in found} == {
        id(p) for p in model.parameters()
    }
    tied = "tied" in name.split("-") or name == "gpt"
    assert [[unit for unit, _ in group] for group in graph.tied] == (
        [["prologue", "epilogue"]] if tied else []
    )


@pytest.mark.parametrize("name", MODELS)
def test_every_chain_value_is_made_before_it_is_read(name: str) -> None:
    graph = traced(name)
    free = {f"free.{output}" for output in graph.free.outputs}
    known = free | {f"batch.{key}" for key in graph.batch_inputs}
    assert set(graph.batch_inputs) == set(make_batch(name, 2, 0))
    for unit in graph.units:
        block = graph.kinds[unit.kind]
        assert len(unit.arguments) == len(block.inputs)
        assert len(unit.results) == len(block.outputs)
        assert set(unit.arguments) <= known
        assert not known & set(unit.results)
        known |= set(unit.results)
    read = {name for unit in graph.units for name in unit.arguments}
    assert free - read <= {graph.weight}
    assert graph.weight == "free.target_count"


@pytest.mark.parametrize("name", ["gpt", "llama"])
def test_folding_changes_nothing(name: str) -> None:
    folded = traced(name)
    model, _ = make(name, "fp32")
    unfolded = trace(model, make_batch(name, 2, 0), loss_of(name), device="cpu", fold=False)
    assert [unit.name for unit in unfolded.units] == ["model"]

    def totals(graph: ModelGraph) -> dict[str, Any]:
        blocks = [graph.kinds[unit.kind] for unit in graph.units]
        # tables and masks move between a block and what all share, so only what a gradient flows through
        ops = [op for block in blocks for op in block.ops if block.values[op.output].requires_grad]
        return {
            "forward": sum(block.flops_forward for block in blocks),
            "backward": sum(block.flops_backward for block in blocks),
            "parameters": graph.parameter_count,
            "saved": sum(block.saved_bytes for block in blocks),
            "ops": Counter(op.target for op in ops),
            "gemms": Counter((op.kind, op.gemm) for op in ops if op.gemm),
            "bytes": sum(op.bytes_forward + op.bytes_backward for op in ops),
        }

    assert totals(folded) == totals(unfolded)


@pytest.mark.parametrize("name", MODELS)
def test_flops_are_those_that_torch_counts_when_the_model_runs(name: str) -> None:
    graph = traced(name)
    ops = [op for unit in graph.units for op in graph.kinds[unit.kind].ops] + list(graph.free.ops)
    attention = [op for op in ops if op.kind is OpKind.ATTENTION]
    counted = {}
    for backend in (SDPBackend.FLASH_ATTENTION, SDPBackend.MATH):
        model, _ = make(name, "fp32")
        with FlopCounterMode(display=False) as counter, sdpa_kernel(backend):
            run_step(model, name)
        counted[backend] = counter.get_total_flops()
    rest = [op for op in ops if op.kind is not OpKind.ATTENTION]
    # torch has no formula for the CPU's own flash kernel, so this is all but attention
    assert sum(op.flops_forward + op.flops_backward for op in rest) == counted[SDPBackend.FLASH_ATTENTION]
    assert len(attention) == 4
    products = [op.gemm.flops for op in attention if op.gemm]
    # unfused: two products forward and four backward; the flash kernels make the scores once more
    assert counted[SDPBackend.MATH] - counted[SDPBackend.FLASH_ATTENTION] == 6 * sum(products)
    assert [(op.flops_forward, op.flops_backward) for op in attention] == [(2 * p, 5 * p) for p in products]


def test_attention_s_size_is_heads_queries_keys_and_head_size() -> None:
    (op,) = [op for op in traced("gpt").kinds["PlainBlock_0"].ops if op.kind is OpKind.ATTENTION]
    assert op.gemm is not None
    assert (op.gemm.batch, op.gemm.m, op.gemm.n, op.gemm.k) == (2 * 8, SEQ, SEQ, 32 // 8)


@pytest.mark.parametrize("name", ["gpt", "llama"])
def test_saved_bytes_are_what_autograd_keeps_of_a_real_run(name: str) -> None:
    model = make(name, "fp32")[0] if name == "gpt" else one_key_per_head()
    graph = trace(model, make_batch(name, 2, 0), loss_of(name), device="cpu")
    block = graph.kinds[graph.units[1].kind]
    layer, args, kwargs = _first_call(model, block.path, lambda: run_step(model, name))
    args, kwargs = pytree.tree_map_only(Tensor, torch.detach, (args, kwargs))
    constant = [leaf for leaf in pytree.tree_leaves((args[1:], kwargs)) if isinstance(leaf, Tensor)]
    kept = [*layer.parameters(), *layer.buffers(), *constant]
    known = {tensor.untyped_storage().data_ptr() for tensor in kept}
    storages: dict[int, Any] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in known:
            storages[storage.data_ptr()] = storage  # held, so that no address is used twice
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        out = layer(args[0].requires_grad_(), *args[1:], **kwargs)
    assert out is not None
    assert block.saved_bytes == sum(storage.nbytes() for storage in storages.values())


def one_key_per_head() -> nn.Module:
    """Llama without grouped queries: Hugging Face leaves the repeating of keys to the kernel only when it runs."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=8, vocab_size=VOCAB,
        use_cache=False,
    )  # fmt: skip
    return LlamaForCausalLM(config)


def _first_call(model: nn.Module, path: str, run: Callable[[], None]) -> tuple[nn.Module, Any, Any]:
    """The module at ``path`` and the arguments of its first call."""
    seen: list[tuple[Any, Any]] = []
    layer = model.get_submodule(path)
    handle = layer.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append((args, kwargs)), with_kwargs=True
    )
    run()
    handle.remove()
    return layer, *seen[0]


@pytest.mark.parametrize("name", ["gpt-untied", "llama"])  # ``to`` would cut a tie
def test_a_model_on_the_meta_device_gives_the_same_graph(name: str) -> None:
    model, _ = make(name, "fp32")
    graph = trace(
        model.to("meta"),
        {k: v.to("meta") for k, v in make_batch(name, 2, 0).items()},
        loss_of(name),
        device="cpu",
    )
    assert graph.fingerprint == traced(name).fingerprint
    assert [graph.kinds[kind].ops for kind in graph.kinds] == [traced(name).kinds[k].ops for k in graph.kinds]


@pytest.mark.parametrize("name", ["gpt", "llama"])
def test_the_model_is_not_changed(name: str) -> None:
    model, _ = make(name, "fp32")
    parameters = dict(model.named_parameters(remove_duplicate=False))
    before = {n: (p, p.detach().clone(), p.requires_grad, p.device) for n, p in parameters.items()}
    attributes = {n: copy.copy(vars(m)) for n, m in model.named_modules()}
    batch = make_batch(name, 2, 0)
    tokens = {k: v.clone() for k, v in batch.items()}
    state = torch.get_rng_state()
    trace(model, batch, loss_of(name), Precision("bf16"))
    assert torch.equal(torch.get_rng_state(), state)
    after = dict(model.named_parameters(remove_duplicate=False))
    for path, (parameter, value, requires_grad, device) in before.items():
        assert after[path] is parameter
        assert torch.equal(parameter.detach(), value)
        assert (parameter.requires_grad, parameter.device, parameter.grad) == (requires_grad, device, None)
    assert {n: vars(m).keys() for n, m in model.named_modules()} == {
        n: a.keys() for n, a in attributes.items()
    }
    assert all(m.training for m in model.modules())
    assert all(torch.equal(batch[key], tokens[key]) for key in batch)


def test_weights_are_not_read() -> None:
    model = PlainGPT(layers=2)
    for parameter in model.parameters():
        parameter.data.fill_(float("nan"))
    graph = trace(model, make_batch("gpt", 2, 0), gpt_loss, device="cpu")
    assert graph.kinds["PlainBlock_0"].ops == traced("gpt").kinds["PlainBlock_0"].ops


def test_the_number_of_exports_does_not_grow_with_depth(monkeypatch: pytest.MonkeyPatch) -> None:
    counts = {}
    real = trace_module.export_clean
    for layers in (4, 64):
        calls: list[str] = []

        def counting(*args: Any, seen: list[str] = calls, **kwargs: Any) -> Any:
            seen.append(args[4])
            return real(*args, **kwargs)

        monkeypatch.setattr(trace_module, "export_clean", counting)
        graph = trace(PlainGPT(layers=layers), make_batch("gpt", 2, 0), gpt_loss)
        assert len(graph.units) == layers + 2
        counts[layers] = len(calls)
    assert counts[4] == counts[64] <= 3


def test_the_fingerprint_is_the_structure_s_and_not_the_batch_s() -> None:
    def fingerprint(samples: int, **config: Any) -> str:
        return trace(PlainGPT(layers=2, **config), make_batch("gpt", samples, 0), gpt_loss).fingerprint

    first = fingerprint(2)
    assert first == fingerprint(4)
    assert len({first, fingerprint(2, width=64), fingerprint(2, tied=False)}) == 3
    assert first != traced("gpt").fingerprint  # of another depth


def test_the_compute_dtype_is_the_precision_s() -> None:
    graph = trace(make("gpt", "fp32")[0], make_batch("gpt", 2, 0), gpt_loss, Precision("bf16"))
    block = graph.kinds["PlainBlock_0"]
    assert {block.values[name].dtype for name in block.parameters} == {"bfloat16"}
    assert {block.values[name].dtype for name in block.inputs} == {"bfloat16"}
    assert graph.batch_inputs["ids"] == ((2, SEQ), "int64")
    kept = traced("gpt").kinds["PlainBlock_0"]
    assert {kept.values[name].dtype for name in kept.parameters} == {"float32"}


def test_frozen_parameters_and_what_they_alone_make_need_no_gradient() -> None:
    model = PlainGPT(layers=2, tied=False)
    model.wte.weight.requires_grad_(False)
    model.wpe.weight.requires_grad_(False)
    graph = trace(model, make_batch("gpt", 2, 0), gpt_loss)
    prologue = graph.kinds["prologue"]
    assert not any(value.requires_grad for value in prologue.values.values())
    assert prologue.saved_bytes == 0
    assert prologue.flops_backward == 0


@pytest.mark.parametrize("name", MODELS)
def test_every_op_of_a_transformer_has_a_rule(name: str) -> None:
    """What has no rule runs whole on every rank: right, but not parallel."""
    graph = traced(name)
    nodes = [
        node for block in graph.kinds.values() for node in block.graph.nodes if node.op == "call_function"
    ]
    assert {str(node.target) for node in nodes if rule_for(node.target) is None} == set()


def test_logits_are_as_wide_as_the_vocabulary() -> None:
    epilogue = traced("gpt").kinds["epilogue"]
    assert any(value.shape[-1:] == (VOCAB,) for value in epilogue.values.values())
