"""Tiny models of many architectures, each a function that makes it afresh with its batch and loss."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

VOCAB, SEQ, SAMPLES = 64, 16, 2
Made = tuple[nn.Module, Any, Any]

_TINY = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 4, "num_attention_heads": 4,
    "num_key_value_heads": 2, "vocab_size": VOCAB, "max_position_embeddings": 64, "pad_token_id": 0,
    "use_cache": False,
}  # fmt: skip
_SHORT = {"n_embd": 32, "n_head": 4, "n_layer": 4}
_MIXTURE = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}


def hugging_face(
    kind: str, attention: str, head: str = "AutoModelForCausalLM", **fields: Any
) -> Callable[[], Made]:
    def make() -> Made:
        import transformers

        torch.manual_seed(0)
        config = transformers.AutoConfig.for_model(kind, **(_TINY | fields))
        config.use_cache = False
        model = getattr(transformers, head).from_config(config, attn_implementation=attention)
        ids = torch.randint(2, VOCAB, (SAMPLES, SEQ))
        return model.train(), {"input_ids": ids, "labels": ids.clone()}, None

    return make


def vision(attention: str) -> Callable[[], Made]:
    def make() -> Made:
        import transformers

        torch.manual_seed(0)
        config = transformers.ViTConfig(
            hidden_size=32, num_hidden_layers=3, num_attention_heads=4, intermediate_size=48, image_size=32,
            patch_size=8, num_labels=4,
        )  # fmt: skip
        model = transformers.ViTForImageClassification._from_config(config, attn_implementation=attention)
        batch = {"pixel_values": torch.randn(SAMPLES, 3, 32, 32), "labels": torch.randint(0, 4, (SAMPLES,))}
        return model.train(), batch, None

    return make


class ConvNet(nn.Module):
    """Strided, grouped, depthwise and transposed convolutions with skips; repeated residual blocks."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, stride=2, padding=1)
        self.blocks = nn.ModuleList(Residual(8) for _ in range(3))
        self.down = nn.Conv2d(8, 16, 4, stride=2, groups=2)
        self.up = nn.ConvTranspose2d(16, 8, 2, stride=2)
        self.head = nn.Conv2d(8, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for block in self.blocks:
            x = block(x)
        return self.head(self.up(F.relu(self.down(x))))


class Residual(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(width, width, 3, padding=1, groups=width)
        self.norm = nn.GroupNorm(2, width)
        self.pointwise = nn.Conv2d(width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x + self.pointwise(F.gelu(self.norm(self.depthwise(x)))))


def convolutions() -> Made:
    torch.manual_seed(0)
    return ConvNet(), torch.randn(SAMPLES, 3, 16, 16), lambda out, batch: out.square().mean()


class HandAttention(nn.Module):
    """Heads by reshaping; the scores by ``product``."""

    def __init__(self, product: str) -> None:
        super().__init__()
        self.product = product
        self.norm, self.qkv, self.out = nn.LayerNorm(32), nn.Linear(32, 96), nn.Linear(32, 32)

    def forward(self, x: Tensor) -> Tensor:
        b, s, _ = x.shape
        q, k, v = (part.view(b, s, 4, 8).transpose(1, 2) for part in self.qkv(self.norm(x)).chunk(3, -1))
        if self.product == "einsum":
            weights = (torch.einsum("bnqd,bnkd->bnqk", q, k) / 8**0.5).softmax(-1)
            mixed = torch.einsum("bnqk,bnkd->bnqd", weights, v)
        elif self.product == "bmm":
            q, k, v = (part.reshape(b * 4, s, 8) for part in (q, k, v))
            mixed = torch.bmm(torch.bmm(q, k.transpose(1, 2)).softmax(-1), v).view(b, 4, s, 8)
        else:
            mixed = ((q @ k.transpose(-1, -2)).tril() / 8**0.5).softmax(-1) @ v
        return x + self.out(mixed.transpose(1, 2).reshape(b, s, 32))


class HandGPT(nn.Module):
    """Tied or untied head over attention written by hand, with RMS norm and dropout."""

    def __init__(self, product: str, tied: bool, dropout: float) -> None:
        super().__init__()
        self.embed = nn.Embedding(VOCAB, 32)
        self.layers = nn.ModuleList(HandAttention(product) for _ in range(3))
        self.norm, self.drop = nn.RMSNorm(32), nn.Dropout(dropout)
        self.head = nn.Linear(32, VOCAB, bias=False)
        if tied:
            self.head.weight = self.embed.weight

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embed(ids)
        for layer in self.layers:
            x = layer(x)
        return self.head(self.drop(self.norm(x)))


def by_hand(product: str, tied: bool = False, dropout: float = 0.0) -> Callable[[], Made]:
    def make() -> Made:
        torch.manual_seed(0)
        model = HandGPT(product, tied, dropout)
        return model, {"ids": torch.randint(0, VOCAB, (SAMPLES, SEQ))}, _next_token

    return make


def _next_token(logits: Tensor, batch: dict[str, Tensor]) -> Tensor:
    return F.cross_entropy(logits.view(-1, VOCAB), batch["ids"].view(-1))


def built_in(**fields: Any) -> Callable[[], Made]:
    def make() -> Made:
        from autoplan.graph.sources.decoder import RotaryDecoder
        from autoplan.graph.sources.sizes import DecoderConfig

        torch.manual_seed(0)
        sizes = {
            "family": "rotary", "vocabulary": VOCAB, "hidden": 32, "layers": 3, "heads": 4, "key_heads": 2,
            "head_size": 8, "ffn": 48, "seq": SEQ, "source": "made up",
        }  # fmt: skip
        ids = torch.randint(0, VOCAB, (SAMPLES, SEQ))
        return (
            RotaryDecoder(DecoderConfig(**(sizes | fields))),
            {"input_ids": ids, "labels": ids.clone()},
            None,
        )

    return make


PLAIN: dict[str, Callable[[], Made]] = {
    "convolutions": convolutions,
    "hand": by_hand("matmul"),
    "hand-bmm-tied": by_hand("bmm", tied=True),
    "hand-einsum-dropout": by_hand("einsum", dropout=0.1),
    "built-in": built_in(),
    "built-in-experts": built_in(experts=4, experts_per_token=2),
}

_KINDS: dict[str, dict[str, Any]] = {
    "llama": {}, "mistral": {}, "qwen2": {}, "qwen3": {"head_dim": 8}, "gemma3_text": {"head_dim": 8}, "phi3": {},
    "olmo2": {}, "granite": {}, "starcoder2": {}, "gpt2": _SHORT, "gpt_neox": {}, "cohere": {}, "stablelm": {},
    "opt": {"ffn_dim": 48, "word_embed_proj_dim": 32}, "falcon": {}, "phi": {},
}  # fmt: skip
_EAGER_ONLY: dict[str, dict[str, Any]] = {
    "gemma2": {"head_dim": 8}, "gptj": _SHORT | {"rotary_dim": 4}, "bloom": {"n_head": 4, "n_layer": 4},
    "mpt": {"d_model": 32, "n_heads": 4, "n_layers": 4, "max_seq_len": 64},
}  # fmt: skip
MIXTURES: dict[str, dict[str, Any]] = {
    "mixtral": {"num_local_experts": 4},
    "qwen2_moe": _MIXTURE | {"shared_expert_intermediate_size": 16},
    "qwen3_moe": _MIXTURE | {"head_dim": 8},
    "gpt_oss": {"num_local_experts": 4, "head_dim": 8},
    "deepseek_v3": {
        "n_routed_experts": 8, "n_group": 2, "topk_group": 1, "num_experts_per_tok": 2, "moe_intermediate_size": 16,
        "q_lora_rank": 16, "kv_lora_rank": 16, "qk_rope_head_dim": 4, "qk_nope_head_dim": 8, "v_head_dim": 8,
        "first_k_dense_replace": 2, "num_key_value_heads": 4,
    },
}  # fmt: skip
_SEQUENCE_PAIRS: dict[str, dict[str, Any]] = {
    "t5": {"d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 3, "num_heads": 4, "decoder_start_token_id": 0},
    "bart": {"d_model": 32, "encoder_layers": 3, "decoder_layers": 3, "encoder_attention_heads": 4,
             "decoder_attention_heads": 4, "encoder_ffn_dim": 48, "decoder_ffn_dim": 48, "decoder_start_token_id": 0},
}  # fmt: skip


def _all() -> dict[str, Callable[[], Made]]:
    made = dict(PLAIN)
    for attention in ("sdpa", "eager"):
        kinds = _KINDS if attention == "sdpa" else _KINDS | _EAGER_ONLY
        made |= {f"{kind}-{attention}": hugging_face(kind, attention, **f) for kind, f in kinds.items()}
        made |= {
            f"{kind}-{attention}": hugging_face(kind, attention, "AutoModelForSeq2SeqLM", **f)
            for kind, f in _SEQUENCE_PAIRS.items()
        }
        for kind in ("bert", "roberta", "modernbert"):
            made[f"{kind}-{attention}"] = hugging_face(kind, attention, "AutoModelForMaskedLM")
        made[f"vit-{attention}"] = vision(attention)
    made |= {f"{kind}-eager": hugging_face(kind, "eager", **f) for kind, f in MIXTURES.items()}
    return made


MODELS = _all()
