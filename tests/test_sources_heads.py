"""Hugging Face configs of every kind of head: a batch is made up that the model can be traced with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from zoo.others import LLAMA_TINY, STAGES, TEXT_TINY, VIT_TINY, WAV_TINY, WHISPER_TINY
from zoo.text import BERT_TINY, T5_TINY

from autoplan.graph.sources import load_source
from autoplan.graph.trace import trace

Shapes = dict[str, tuple[int, ...]]
SPEECH = WAV_TINY | {"layerdrop": 0.0, "apply_spec_augment": False}
AST = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 64, "max_length": 32,
       "num_mel_bins": 16, "patch_size": 4, "frequency_stride": 4, "time_stride": 4}  # fmt: skip
PAIR = {"text_config": TEXT_TINY, "vision_config": VIT_TINY}
LLAVA = {"text_config": LLAMA_TINY | {"model_type": "llama"}, "image_token_index": 150,
         "vision_config": VIT_TINY | {"model_type": "clip_vision_model", "projection_dim": 16}}  # fmt: skip
SEGFORMER = STAGES | {"hidden_sizes": [8, 16, 32, 32], "num_attention_heads": [1, 2, 4, 4], "decoder_hidden_size": 16,
                      "image_size": 64}  # fmt: skip
IMAGES = {"pixel_values": (2, 3, 32, 32)}
HEADS: list[tuple[str, dict[str, Any], int | None, Shapes]] = [
    ("T5ForConditionalGeneration", T5_TINY, 16, {"input_ids": (2, 16), "labels": (2, 16)}),
    ("BertForMaskedLM", BERT_TINY, None, {"input_ids": (2, 64), "labels": (2, 64)}),
    ("BertForSequenceClassification", BERT_TINY, 8, {"input_ids": (2, 8), "labels": (2,)}),
    ("ViTForImageClassification", VIT_TINY, None, IMAGES | {"labels": (2,)}),
    ("CLIPModel", PAIR, None, IMAGES | {"input_ids": (2, 32)}),
    ("SiglipModel", PAIR, 16, IMAGES | {"input_ids": (2, 16)}),
    ("LlavaForConditionalGeneration", LLAVA, 32, IMAGES | {"input_ids": (2, 32), "labels": (2, 32)}),
    ("WhisperForConditionalGeneration", WHISPER_TINY, None, {"input_features": (2, 8, 32), "labels": (2, 16)}),
    ("ASTForAudioClassification", AST, None, {"input_values": (2, 32, 16), "labels": (2,)}),
    ("Wav2Vec2ForSequenceClassification", SPEECH, None, {"input_values": (2, 160_000), "labels": (2,)}),
    ("SegformerForSemanticSegmentation", SEGFORMER, None, {"pixel_values": (2, 3, 64, 64), "labels": (2, 64, 64)}),
    ("TimesformerForVideoClassification", VIT_TINY | {"num_frames": 4}, None,
     {"pixel_values": (2, 4, 3, 32, 32), "labels": (2,)}),
]  # fmt: skip


@pytest.mark.parametrize(("head", "fields", "seq", "shapes"), HEADS, ids=[head for head, *_ in HEADS])
def test_a_head_gets_a_batch_that_it_is_traced_with(
    tmp_path: Path, head: str, fields: dict[str, Any], seq: int | None, shapes: Shapes
) -> None:
    transformers = pytest.importorskip("transformers")
    config = getattr(transformers, head).config_class(**fields, architectures=[head])
    config.save_pretrained(tmp_path)
    source = load_source(str(tmp_path), seq)
    batch = source.example_batch(2)
    assert {name: tuple(tensor.shape) for name, tensor in batch.items()} == shapes
    with torch.device("meta"):
        model = source.build()
    graph = trace(model, batch, source.loss)
    assert graph.parameter_count == sum(p.numel() for p in model.parameters())
    assert len(graph.units) > 4
    assert bool(graph.meetings) == (head in ("CLIPModel", "SiglipModel", "SegformerForSemanticSegmentation",
                                             "TimesformerForVideoClassification"))  # fmt: skip
