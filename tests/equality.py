"""The promise, checked: a program's loss, gradients and parameters are those of the one-process model."""

from __future__ import annotations

import functools
import importlib
import itertools
import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

import torch
import torch.nn.functional as F
from many_models import MANY
from msgspec.structs import replace
from routed_models import OddModel
from torch import Tensor, nn

import autoplan
from autoplan.cost.storages import storages_of
from autoplan.graph.axes import sequence_strategies, strategies, value_layouts
from autoplan.graph.cut import cut_graph
from autoplan.graph.expert_cut import cut_experts
from autoplan.graph.ir import Block, ModelGraph
from autoplan.graph.layout import REPLICATE, Layout
from autoplan.graph.sources.builtin import build_decoder
from autoplan.graph.sources.sizes import DecoderConfig
from autoplan.graph.strategy import Strategy
from autoplan.graph.trace import trace
from autoplan.hardware import Cluster
from autoplan.plan import Plan, Precision, Schedule, StagePlan
from autoplan.runtime import Program
from autoplan.search.sequence_choice import SequenceChoice, sequence_choices

SEQ, VOCAB = 16, 64


class PlainBlock(nn.Module):
    """A transformer layer as a user writes it: fused qkv, pre-norm; with ``drop`` above 0, dropout of attention's
    weights and of both branches, and samples that skip the second branch."""

    def __init__(self, width: int, heads: int, drop: float = 0.0) -> None:
        super().__init__()
        self.heads, self.drop = heads, drop
        self.ln_1, self.ln_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.c_attn, self.c_proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        b, s, c = x.shape
        q, k, v = (
            t.view(b, s, self.heads, c // self.heads).transpose(1, 2)
            for t in self.c_attn(self.ln_1(x)).split(c, 2)
        )
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True, dropout_p=self.drop)
        y = self.c_proj(y.transpose(1, 2).reshape(b, s, c))
        if not self.drop:
            x = x + y
            return x + self.mlp(self.ln_2(x))
        x = x + F.dropout(y, self.drop)
        taken = torch.rand(b, 1, 1, device=x.device) > self.drop
        return x + F.dropout(self.mlp(self.ln_2(x)), self.drop) * taken


class PlainGPT(nn.Module):
    """A small GPT with tied weights; returns logits."""

    def __init__(
        self, layers: int = 4, width: int = 32, heads: int = 8, tied: bool = True, drop: float = 0.0
    ) -> None:
        super().__init__()
        self.drop = drop
        self.wte, self.wpe = nn.Embedding(VOCAB, width), nn.Embedding(SEQ, width)
        self.h = nn.ModuleList(PlainBlock(width, heads, drop) for _ in range(layers))
        self.ln_f = nn.LayerNorm(width)
        self.head = nn.Linear(width, VOCAB, bias=False)
        if tied:
            self.head.weight = self.wte.weight

    def forward(self, ids: Tensor, labels: Tensor | None = None) -> Tensor:
        x = self.wte(ids) + self.wpe(torch.arange(ids.shape[1], device=ids.device))
        if self.drop:
            x = F.dropout(x, self.drop)
        for block in self.h:
            x = block(x)
        return self.head(self.ln_f(x))


def gpt_loss(logits: Tensor, batch: Any) -> Tensor:
    return F.cross_entropy(logits.reshape(-1, VOCAB), batch["labels"].reshape(-1))


def llama_loss(output: Any, batch: Any) -> Tensor:
    return F.cross_entropy(output.logits.reshape(-1, VOCAB), batch["labels"].reshape(-1))


def make(name: str, dtype: str, layers: int = 0) -> tuple[nn.Module, Any]:
    """(model, loss) by name, with weights from a fixed seed; of as many ``layers`` as usual where they are 0.

    Hugging Face's Llama computes its norms and its loss in float32 whatever its weights are. In float64 its
    norms are therefore replaced by torch's own, and the loss is taken outside.
    """
    torch.manual_seed(0)
    if name in MANY:
        made = MANY[name]()
        model = made.build(layers) if layers else made.build()
        return (model.double() if dtype == "fp64" else model), made.loss
    if name.startswith("gpt"):
        model = PlainGPT(layers or 4, tied=name != "gpt-untied", drop=0.2 if name == "gpt-dropout" else 0.0)
        return (model.double() if dtype == "fp64" else model), gpt_loss
    if name == "moe-odd":
        model = OddModel(VOCAB)
        return (model.double() if dtype == "fp64" else model), gpt_loss
    if name == "moe":
        config = DecoderConfig(
            "rotary", VOCAB, 32, 2, 4, 2, 8, 48, SEQ, "a small Mixtral", experts=4, experts_per_token=2
        )
        model = build_decoder(config)
        return (model.double() if dtype == "fp64" else model), None
    if name in _MIXTURES:
        return _mixture(name), None
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        hidden_size=32, intermediate_size=48, num_hidden_layers=layers or 4, num_attention_heads=8,
        num_key_value_heads=4, vocab_size=VOCAB, max_position_embeddings=SEQ,
        tie_word_embeddings=name == "llama-tied",
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    if dtype != "fp64":
        return model, None
    for module in list(model.modules()):
        for child_name, child in list(module.named_children()):
            if type(child).__name__ == "LlamaRMSNorm":
                setattr(module, child_name, nn.RMSNorm(config.hidden_size, eps=1e-6))
    return model.double(), llama_loss


_SMALL = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
    "vocab_size": VOCAB, "max_position_embeddings": SEQ, "intermediate_size": 48,
}  # fmt: skip
_MIXTURES: dict[str, tuple[str, dict[str, Any]]] = {
    "mixtral": ("Mixtral", {"num_local_experts": 4}),
    "qwen-moe": ("Qwen3Moe", {
        "num_experts": 8, "num_experts_per_tok": 3, "moe_intermediate_size": 24, "head_dim": 8, "mlp_only_layers": [0],
    }),
    "deepseek": ("DeepseekV3", {
        "n_routed_experts": 8, "num_experts_per_tok": 2, "n_shared_experts": 1, "moe_intermediate_size": 24,
        "first_k_dense_replace": 1, "n_group": 2, "topk_group": 1, "q_lora_rank": 16, "kv_lora_rank": 16,
        "qk_rope_head_dim": 4, "qk_nope_head_dim": 4, "v_head_dim": 8, "num_key_value_heads": 4,
    }),
}  # fmt: skip


def _mixture(name: str) -> nn.Module:
    """A small mixture of Hugging Face's, whose routers compute in float32."""
    import transformers

    family, more = _MIXTURES[name]
    config = getattr(transformers, f"{family}Config")(**(_SMALL | more))
    return getattr(transformers, f"{family}ForCausalLM")(config)


def optimizer_for(dtype: str) -> Any:
    """AdamW. It divides each gradient by its own size, so where the true gradient is zero (a key's bias) it
    steps along rounding noise; an eps above that noise makes the comparison mean something."""
    return lambda parameters: torch.optim.AdamW(parameters, lr=1e-3, eps=1e-4 if dtype == "fp64" else 1e-2)


def make_batch(name: str, samples: int, step: int, dtype: str = "fp32") -> dict[str, Tensor]:
    """A batch in which each sample has another number of targets that count."""
    if name in MANY:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(100 + step)
            batch = MANY[name]().batch(samples)
        wide = dtype == "fp64"
        return {key: t.double() if wide and t.is_floating_point() else t for key, t in batch.items()}
    generator = torch.Generator().manual_seed(100 + step)
    ids = torch.randint(0, VOCAB, (samples, SEQ), generator=generator)
    labels = torch.randint(0, VOCAB, (samples, SEQ), generator=generator)
    for row in range(samples):
        labels[row, : row % 5] = -100
    key = "ids" if name.startswith("gpt") or name == "moe-odd" else "input_ids"
    return {key: ids, "labels": labels}


@dataclass(frozen=True)
class Case:
    """One plan to check. ``seed`` draws a random legal strategy for every op and layout for every parameter.

    ``cp_attention`` takes on cp what the search would, with attention cut by ``rows`` of queries, the same in a
    ``ring``, or by ``heads``; ``cp_order``: in which order, as the search would if it is empty. ``uneven`` draws where
    stages end. ``policy``, of
    every second unit beside ``recompute``: ``random`` recomputes and offloads ops and changes of layout drawn by lot,
    ``offload`` all that can be, ``again`` all that can run again.
    """

    model: str = "gpt"
    layers: int = 0
    pp: int = 1
    dp: int = 1
    fsdp: int = 1
    cp: int = 1
    tp: int = 1
    ep: int = 1
    zero: int = 0
    micro_batch: int = 1
    num_micro_batches: int = 2
    recompute: str = "none"
    policy: str = ""
    dtype: str = "fp64"
    boundary: str = "R"
    cp_boundary: str = "S(1)"
    cp_attention: str = ""
    cp_order: str = ""
    seed: int = 0
    schedule: str = "1f1b"
    vpp: int = 1
    uneven: bool = False

    @property
    def world(self) -> int:
        return self.pp * self.dp * self.fsdp * self.cp * self.tp

    @property
    def global_batch(self) -> int:
        return self.micro_batch * self.num_micro_batches * self.dp * self.fsdp


def random_layouts(block: Block, degree: int, rng: random.Random) -> dict[str, str]:
    chosen = {op.name: rng.choice(strategies(block, op, degree)).name for op in block.ops}
    return chosen | {name: str(rng.choice(value_layouts(block, name, degree))) for name in block.parameters}


def random_cp_layouts(block: Block, degree: int, order: str, rng: random.Random) -> dict[str, str]:
    finest = 2 * degree if order == "zigzag" else degree
    return {op.name: rng.choice(sequence_strategies(block, op, finest)).name for op in block.ops}


@functools.cache
def _cluster() -> Cluster:
    return Cluster.of("h100-sxm", gpus=8)


_SEARCHED: dict[tuple[object, ...], tuple[ModelGraph, SequenceChoice]] = {}


def searched_cp_layouts(graph: ModelGraph, case: Case) -> SequenceChoice:
    """What the search would choose, once for a graph."""
    key = id(graph), case.cp, case.tp, case.cp_attention
    if key not in _SEARCHED:
        _SEARCHED[key] = graph, _searched(graph, case)
    return _SEARCHED[key][1]


def _searched(graph: ModelGraph, case: Case) -> SequenceChoice:
    for choice in sequence_choices(graph, case.cp, case.tp, _cluster()):
        names = {strategy for names in choice.layouts.values() for strategy in names.values()}
        found = "ring" if "ring q" in names else "rows" if "cut q" in names else "heads"
        if found == case.cp_attention:
            return choice
    raise AssertionError(f"the search has no way to cut attention by {case.cp_attention}")


def drawn_policy(block: Block, case: Case, layouts: dict[str, str], rng: random.Random) -> dict[str, str]:
    """A policy for every step of a unit that may have one."""
    degree, chosen = case.tp, {op.name: layouts.get(op.name, "R") for op in block.ops}
    ways = {
        op.name: next(s for s in strategies(block, op, degree) if s.name == chosen[op.name])
        if degree > 1
        else Strategy("R", (REPLICATE,) * len(op.inputs), REPLICATE, share=False)
        for op in block.ops
    }
    stored = {name: Layout.parse(layouts.get(name, "R")) for name in block.parameters}
    found = storages_of(block, ways, stored, Layout.parse(case.boundary), degree, _cluster())
    policy = {}
    for name, step in found.steps.items():
        actions = ["offload", "recompute"] if step.again else ["offload"]
        wanted = {"offload": ["offload"], "again": ["recompute"]}.get(case.policy)
        action = rng.choice([*actions, ""]) if wanted is None else wanted[0]
        if action in actions:
            policy[name] = action
    if case.policy != "again":
        policy |= dict.fromkeys(rng.sample(sorted(found.inputs), len(found.inputs) // 2), "offload")
    return policy


def plan_for(graph: ModelGraph, case: Case) -> Plan:
    rng = random.Random(case.seed)
    layouts, cp_layouts, order = {}, {}, case.cp_order or "plain"
    if case.cp > 1:
        if case.cp_attention:
            choice = searched_cp_layouts(graph, case)
            cp_layouts, order = choice.layouts, case.cp_order or choice.order
        else:
            kinds = sorted(graph.kinds.items())
            cp_layouts = {k: random_cp_layouts(b, case.cp, order, rng) for k, b in kinds}
        graph = cut_graph(graph, cp_layouts, Layout.parse(case.cp_boundary), case.cp, order)
    graph = cut_experts(graph, case.ep)
    if case.tp > 1:
        layouts = {kind: random_layouts(block, case.tp, rng) for kind, block in sorted(graph.kinds.items())}
        for group in graph.tied:  # one tensor has one layout
            kinds = {unit.name: unit.kind for unit in graph.units}
            first_unit, first_value = group[0]
            for unit, value in group[1:]:
                layouts[kinds[unit]][value] = layouts[kinds[first_unit]][first_value]
    names = [unit.name for unit in graph.units]
    count = case.pp * case.vpp
    cuts = [round(i * len(names) / count) for i in range(count + 1)]
    if case.uneven:
        cuts[1:-1] = sorted(rng.sample(range(1, len(names)), count - 1))
    stages = []
    for start, stop in itertools.pairwise(cuts):
        units = tuple(names[start:stop])
        inner = [u for u in units if u not in ("prologue", "epilogue")]
        again = {"none": [], "full": inner, "mixed": inner[::2]}[case.recompute]
        other = [u for u in units if u not in again][:: 2 if case.policy == "random" else 1]
        stages.append(
            StagePlan(
                units=units,
                recompute=tuple(again),
                policies=dict.fromkeys(other, "drawn") if case.policy else {},
            )
        )
    policies = {}
    if case.policy:
        drawn = {k: drawn_policy(b, case, layouts.get(k, {}), rng) for k, b in sorted(graph.kinds.items())}
        policies = {kind: {"drawn": policy} for kind, policy in drawn.items() if policy}
        kinds = {unit.name: unit.kind for unit in graph.units}
        stages = [
            replace(stage, policies={u: n for u, n in stage.policies.items() if kinds[u] in policies})
            for stage in stages
        ]
    return Plan(
        model=graph.name, fingerprint=graph.fingerprint, global_batch=case.global_batch, precision=Precision(case.dtype),
        pp=case.pp, dp=case.dp, fsdp=case.fsdp, cp=case.cp, tp=case.tp, ep=case.ep, micro_batch=case.micro_batch,
        num_micro_batches=case.num_micro_batches, zero=case.zero, stages=tuple(stages),
        boundary=str(Layout.parse(case.boundary)), layouts=layouts, vpp=case.vpp, schedule=Schedule(case.schedule),
        cp_boundary=case.cp_boundary if case.cp > 1 else "R", cp_layouts=cp_layouts, cp_order=order,
        policies=policies,
    )  # fmt: skip


def reference(case: Case, steps: int = 3) -> tuple[list[float], dict[str, Tensor], dict[str, Tensor]]:
    """(losses, first gradients, parameters afterwards) of the plain model in one process."""
    return _reference(case.model, case.layers, case.dtype, case.global_batch, steps)


@functools.cache
def _reference(
    model_name: str, layers: int, dtype: str, global_batch: int, steps: int
) -> tuple[list[float], dict[str, Tensor], dict[str, Tensor]]:
    model, loss = make(model_name, dtype, layers)
    optimizer = optimizer_for(dtype)(model.parameters())
    losses, gradients = [], {}
    for step in range(steps):
        batch = make_batch(model_name, global_batch, step, dtype)
        optimizer.zero_grad()
        output = model(**batch)
        value = loss(output, batch) if loss else getattr(output, "loss", output)
        value.backward()
        if step == 0:
            gradients = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
        optimizer.step()
        losses.append(value.item())
    return losses, gradients, {n: p.detach().clone() for n, p in model.named_parameters()}


@functools.cache
def _graph(model_name: str, layers: int, dtype: str, micro_batch: int) -> ModelGraph:
    model, loss = make(model_name, dtype, layers)
    return trace(model, make_batch(model_name, micro_batch, 0, dtype), loss, Precision(dtype))


def traced(case: Case) -> ModelGraph:
    """The graph of a case's model, traced once in a process."""
    return _graph(case.model, case.layers, case.dtype, case.micro_batch)


def facts_of(model_name: str) -> tuple[int, bool]:
    """Units of the chain, and whether samples meet."""
    graph = _graph(model_name, 0, "fp32", 2)
    return len(graph.units), bool(graph.meetings)


@contextmanager
def _traced_once(case: Case) -> Iterator[None]:
    """Let ``parallelize`` take the graph that this process has traced of the same model before."""
    module = importlib.import_module("autoplan.runtime.parallelize")
    with patch.object(module, "trace", lambda *_, **__: traced(case)):
        yield


Numbers = tuple[list[float], dict[str, Tensor], dict[str, Tensor]]
"""Losses, gradients of the first step, parameters after the last."""


@functools.cache
def _made(model_name: str, dtype: str, layers: int) -> tuple[nn.Module, Any]:
    """What ``make`` makes, once in a process: a program copies from a model, and leaves it as it is."""
    return make(model_name, dtype, layers)


def program_of(case: Case, optimizer: Any = None, scramble: bool = False, **more: Any) -> Program:
    """A program of ``case`` on this rank; with ``scramble``, of other weights than the case's."""
    model, loss = (make if scramble else _made)(case.model, case.dtype, case.layers)
    plan = plan_for(traced(case), case)
    if scramble:
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.fill_(0.5)
    batch = make_batch(case.model, case.global_batch, 0, case.dtype)
    with _traced_once(case):
        return autoplan.parallelize(
            model,
            batch,
            loss,
            optimizer or optimizer_for(case.dtype),
            plan=plan,
            precision=case.dtype,
            **more,
        )


def run(case: Case, steps: int = 3) -> Numbers:
    """What ``case`` gives on this rank."""
    program = program_of(case)
    losses, gradients = [], {}
    for step in range(steps):
        batch = make_batch(case.model, case.global_batch, step, case.dtype)
        losses.append(program.step(program.shard(batch)).item())
        if step == 0:
            gradients = program.full_gradients()
    return losses, gradients, program.full_state_dict()


def check(case: Case, steps: int = 3, expected: Numbers | None = None) -> float:
    """Run ``case`` on this rank; returns the largest relative difference from what is ``expected`` (the plain model in
    one process by default), raises if it is beyond the promise."""
    losses, gradients, parameters = run(case, steps)
    expected = expected or reference(case, steps)
    worst = max(abs(a - b) / abs(b) for a, b in zip(losses, expected[0], strict=True))
    worst = max(worst, difference(gradients, expected[1]), difference(parameters, expected[2]))
    limit = 1e-10 if case.dtype == "fp64" else 1e-5
    if not worst <= limit:
        raise Apart(f"{case}: relative difference {worst:.3g} is beyond {limit}")
    return worst


class Apart(AssertionError):
    """Numbers are not those that were promised; nothing else is wrong, and no rank waits for another."""


def difference(got: dict[str, Tensor], expected: dict[str, Tensor]) -> float:
    """Largest relative difference over tensors, each relative to its own largest value, or to a thousandth of the
    largest of all: a gradient may be zero but for rounding (a key's bias)."""
    assert set(got) >= set(expected), f"missing: {sorted(set(expected) - set(got))}"
    sizes = {n: e.abs().max().item() for n, e in expected.items()}
    least = max(max(sizes.values()) * 1e-3, 1e-30)
    return max((got[n] - e).abs().max().item() / max(sizes[n], least) for n, e in expected.items())
