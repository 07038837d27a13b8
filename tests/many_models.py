"""Tiny models of every kind that programs are compared on: what builds each, its loss, its batches.

Hugging Face's T5 and Mixtral compute norms and softmax in float32 whatever their weights are: these are compared in
float32 alone.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from zoo.architecture import Example
from zoo.plain import PLAIN

__all__ = ["MANY", "Made"]

SEQ, VOCAB, CLASSES = 16, 64, 5


@dataclass(frozen=True, slots=True)
class Made:
    """Args:
    build: the module, with weights from the current seed; some take a number of layers.
    batch: from a number of samples to a batch, from the current seed.
    loss: ``fn(output, batch)``; None where the output is, or has, the loss.
    wide: whether float64 all through is float64.
    sequence: how many ranks may share a sequence at most; 1 where none is passed on between units.
    meets: whether samples meet, so that the batch must stay whole.
    depth: units of the chain.
    """

    build: Callable[..., nn.Module]
    batch: Callable[[int], dict[str, Tensor]]
    loss: Callable[[Any, Any], Tensor] | None
    wide: bool = True
    sequence: int = 1
    meets: bool = False
    depth: int = 6


def _ids(samples: int) -> Tensor:
    return torch.randint(0, VOCAB, (samples, SEQ))


def _token_loss(output: Any, batch: Any) -> Tensor:
    return F.cross_entropy(output.logits.reshape(-1, VOCAB), batch["labels"].reshape(-1))


def _class_loss(output: Any, batch: Any) -> Tensor:
    return F.cross_entropy(output.logits, batch["labels"])


def _gpt2(layers: int = 4) -> nn.Module:
    from transformers import GPT2Config, GPT2LMHeadModel

    none = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0)
    sizes = {"n_embd": 32, "n_layer": layers, "n_head": 4, "n_positions": SEQ, "vocab_size": VOCAB}
    return GPT2LMHeadModel(GPT2Config(**sizes, **none, bos_token_id=0, eos_token_id=0))


def _t5() -> nn.Module:
    from transformers import T5Config, T5ForConditionalGeneration

    sizes = {"d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4, "vocab_size": VOCAB}
    return T5ForConditionalGeneration(T5Config(**sizes, dropout_rate=0.0, decoder_start_token_id=0))


def _mixtral() -> nn.Module:
    from transformers import MixtralConfig, MixtralForCausalLM

    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4}
    experts = {"num_key_value_heads": 2, "num_local_experts": 4, "num_experts_per_tok": 2}
    return MixtralForCausalLM(
        MixtralConfig(**sizes, **experts, vocab_size=VOCAB, max_position_embeddings=SEQ)
    )


def _vit(layers: int = 4) -> nn.Module:
    from transformers import ViTConfig, ViTForImageClassification

    sizes = {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": layers,
        "num_attention_heads": 4,
    }
    return ViTForImageClassification(ViTConfig(**sizes, image_size=8, patch_size=4, num_labels=CLASSES))


def _tokens(samples: int) -> dict[str, Tensor]:
    labels = _ids(samples)
    for row in range(samples):  # each sample has another number of targets that count
        labels[row, : row % 5] = -100
    return {"input_ids": _ids(samples), "labels": labels}


def _images(samples: int) -> dict[str, Tensor]:
    return {"pixel_values": torch.randn(samples, 3, 8, 8), "labels": torch.randint(0, CLASSES, (samples,))}


def _of_zoo(name: str, **facts: Any) -> Made:
    example: Example = next(one for one in PLAIN if one.name == name).tiny()
    return Made(example.build, example.batch, example.loss, **facts)


def _encoder() -> Made:
    """Without dropout, whose masks torch would draw in another order."""
    made = _of_zoo("transformer-encoder", meets=True, sequence=4, depth=5)

    def build() -> nn.Module:
        model = made.build()
        for module in model.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0
            elif isinstance(module, nn.MultiheadAttention):
                module.dropout = 0.0
        return model

    return replace(made, build=build)


def _lazy(make: Callable[[], Made]) -> Callable[[], Made]:
    return functools.cache(make)


MANY: dict[str, Callable[[], Made]] = {
    "hf-gpt2": _lazy(lambda: Made(_gpt2, _tokens, _token_loss, sequence=4)),
    "hf-t5": _lazy(lambda: Made(_t5, _tokens, None, wide=False)),
    "hf-mixtral": _lazy(lambda: Made(_mixtral, _tokens, None, wide=False, sequence=4, depth=5)),
    "hf-vit": _lazy(lambda: Made(_vit, _images, _class_loss)),
    "dlrm": _lazy(lambda: _of_zoo("dlrm", depth=2)),
    "resnet-50": _lazy(lambda: _of_zoo("resnet-50", meets=True)),
    "transformer-encoder": _lazy(_encoder),
}
"""By name; made when it is asked for, as importing transformers takes seconds."""
