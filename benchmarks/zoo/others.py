"""Vision, audio and multimodal models of Hugging Face's transformers.

Sizes are those of the published model that an entry is named after.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from autoplan.graph.sources.loss import pair_loss, pair_sigmoid_loss
from zoo.architecture import Architecture
from zoo.transformers_entry import audio, classes, entry, floats, ids, images, made

__all__ = ["OTHERS"]

from zoo.text import TEXT

VIT_TINY = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 64,
            "image_size": 32, "patch_size": 8}  # fmt: skip
TEXT_TINY = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 64,
             "vocab_size": 99, "max_position_embeddings": 32, "pad_token_id": 1, "bos_token_id": 2, "eos_token_id": 3}  # fmt: skip
STAGES = {"depths": [2, 2, 2, 2]}
NARROW = STAGES | {"embedding_size": 8, "hidden_sizes": [8, 16, 24, 32]}
SWIN_TINY = {"image_size": 32, "patch_size": 2, "embed_dim": 8, "depths": [2, 4, 2], "num_heads": [2, 2, 4],
             "window_size": 4}  # fmt: skip
LARGE = {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 4096}


def vision(
    name: str,
    model: str,
    samples: int,
    size: int,
    full: dict[str, Any],
    tiny: dict[str, Any],
    tiny_size: int = 32,
    precision: str = "bf16",
) -> Architecture:
    """A classifier of images."""
    return entry(
        name, "vision", model, (samples, {"num_labels": 1000} | full, _classified(size)),
        ({"num_labels": 5} | tiny, _classified(tiny_size)), precision=precision,
    )  # fmt: skip


def _classified(size: int) -> dict[str, Any]:
    return {"pixel_values": images(size), "labels": classes()}


def _segmented(size: int) -> dict[str, Any]:
    return {"pixel_values": images(size), "labels": classes(size, size)}


def _pixels(size: int) -> dict[str, Any]:
    return {"pixel_values": images(size)}


def _to_fill(size: int, patches: int) -> dict[str, Any]:
    return _pixels(size) | {"bool_masked_pos": lambda config, rows: torch.rand(rows, patches) < 0.5}


def _pair(size: int, seq: int) -> dict[str, Any]:
    return {"input_ids": ids(seq), "pixel_values": images(size)}


class Transcribed(nn.Module):
    """A CTC model with its loss. The model's own looks at the labels' values to count them: here all count."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_values: Tensor, labels: Tensor) -> Tensor:
        logits = self.model(input_values).logits
        frames = logits.log_softmax(-1, dtype=torch.float32).transpose(0, 1)
        rows = labels.shape[0]
        return F.ctc_loss(frames, labels, [len(frames)] * rows, [labels.shape[1]] * rows)


WAV_TINY = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 64,
            "conv_dim": [16, 16], "conv_kernel": [10, 3], "conv_stride": [5, 2], "num_conv_pos_embeddings": 8,
            "num_conv_pos_embedding_groups": 2, "vocab_size": 20, "num_feat_extract_layers": 2, "num_labels": 5,
            "squeeze_factor": 1}  # fmt: skip


def speech(name: str, model: str, full: dict[str, Any], transcribed: bool = True) -> Architecture:
    """Ten seconds of sound at 16 kHz, to a transcript or to a class."""
    if transcribed:
        full_inputs: dict[str, Any] = {"input_values": audio(160_000), "labels": made(20, 100)}
        tiny_inputs: dict[str, Any] = {"input_values": audio(400), "labels": made(20, 6)}
        return entry(name, "audio", model, (8, full, full_inputs), (WAV_TINY, tiny_inputs), wrap=Transcribed)
    full_inputs = {"input_values": audio(160_000), "labels": classes()}
    return entry(
        name,
        "audio",
        model,
        (8, full, full_inputs),
        (WAV_TINY, {"input_values": audio(400), "labels": classes()}),
    )


def _with_image(tokens: int, image_token: int, patches: int, size: int) -> dict[str, Any]:
    """Text that begins with an image's tokens."""

    def prompt(config: Any, rows: int) -> Tensor:
        found = torch.randint(6, config.get_text_config().vocab_size - 100, (rows, tokens))
        image = torch.full((rows, patches), image_token, dtype=torch.int64)
        return torch.cat([image, found[:, patches:]], 1)

    return {"input_ids": prompt, "pixel_values": images(size), "labels": ids(tokens)}


def _prefix(tokens: int, patches: int) -> Any:
    """Which tokens are an answer (1), and which the image, that all of it may attend to (0)."""
    return lambda config, rows: (torch.arange(tokens) >= patches).long().expand(rows, tokens).clone()


LLAMA_TINY = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 4,
              "intermediate_size": 64, "vocab_size": 199, "max_position_embeddings": 128}  # fmt: skip
CLIP_L = {"hidden_size": 1024, "image_size": 336, "intermediate_size": 4096, "num_attention_heads": 16,
          "num_hidden_layers": 24, "patch_size": 14, "projection_dim": 768}  # fmt: skip
SO400M = {"hidden_size": 1152, "intermediate_size": 4304, "num_hidden_layers": 27, "num_attention_heads": 16,
          "patch_size": 14, "image_size": 224}  # fmt: skip
WHISPER_LARGE = {"d_model": 1280, "encoder_layers": 32, "decoder_layers": 32, "encoder_attention_heads": 20,
                 "decoder_attention_heads": 20, "encoder_ffn_dim": 5120, "decoder_ffn_dim": 5120, "num_mel_bins": 128,
                 "vocab_size": 51_866}  # fmt: skip
WHISPER_TINY = {"d_model": 32, "encoder_layers": 2, "decoder_layers": 3, "encoder_attention_heads": 4,
                "decoder_attention_heads": 4, "encoder_ffn_dim": 64, "decoder_ffn_dim": 64, "num_mel_bins": 8,
                "vocab_size": 99, "max_source_positions": 16, "max_target_positions": 16, "pad_token_id": 1,
                "bos_token_id": 2, "eos_token_id": 3, "decoder_start_token_id": 2}  # fmt: skip

OTHERS: tuple[Architecture, ...] = (
    *TEXT,
    vision("vit-large-16", "ViTForImageClassification", 32, 224, LARGE, VIT_TINY),
    entry("vit-mae-large", "vision", "ViTMAEForPreTraining", (32, LARGE, _pixels(224)),
          (VIT_TINY | {"decoder_hidden_size": 16, "decoder_num_hidden_layers": 2, "decoder_num_attention_heads": 4,
                       "decoder_intermediate_size": 32}, _pixels(32))),
    entry("vit-masked-image", "vision", "ViTForMaskedImageModeling", (32, {"encoder_stride": 16}, _to_fill(224, 196)),
          (VIT_TINY | {"encoder_stride": 8}, _to_fill(32, 16))),
    vision("deit-base-16", "DeiTForImageClassification", 32, 224, {}, VIT_TINY),
    vision("beit-large-16", "BeitForImageClassification", 32, 224, LARGE | {"use_relative_position_bias": True},
           VIT_TINY | {"use_relative_position_bias": True, "drop_path_rate": 0.0}),
    vision("data2vec-vision-base", "Data2VecVisionForImageClassification", 32, 224, {}, VIT_TINY),
    vision("swin-base", "SwinForImageClassification", 32, 224,
           {"embed_dim": 128, "depths": [2, 2, 18, 2], "num_heads": [4, 8, 16, 32]}, SWIN_TINY),
    vision("swinv2-base", "Swinv2ForImageClassification", 32, 256,
           {"image_size": 256, "window_size": 8, "embed_dim": 128, "depths": [2, 2, 18, 2],
            "num_heads": [4, 8, 16, 32]}, SWIN_TINY, precision="fp32"),
    vision("convnext-base", "ConvNextForImageClassification", 32, 224,
           {"depths": [3, 3, 27, 3], "hidden_sizes": [128, 256, 512, 1024]},
           {"depths": [2, 3, 2], "hidden_sizes": [8, 16, 32], "num_stages": 3}),
    vision("convnextv2-base", "ConvNextV2ForImageClassification", 32, 224,
           {"depths": [3, 3, 27, 3], "hidden_sizes": [128, 256, 512, 1024]},
           {"depths": [2, 3, 2], "hidden_sizes": [8, 16, 32], "num_stages": 3}),
    vision("dinov2-large-14", "Dinov2ForImageClassification", 32, 224, LARGE | {"patch_size": 14}, VIT_TINY),
    entry("segformer-b5", "vision", "SegformerForSemanticSegmentation",
          (8, {"depths": [3, 6, 40, 3], "hidden_sizes": [64, 128, 320, 512], "decoder_hidden_size": 768,
               "num_labels": 150}, _segmented(512)),
          (STAGES | {"hidden_sizes": [8, 16, 32, 32], "num_attention_heads": [1, 2, 4, 4],
                     "decoder_hidden_size": 16, "num_labels": 5}, _segmented(64))),
    vision("resnet-50-hf", "ResNetForImageClassification", 64, 224, {}, NARROW, 64),
    vision("regnet-y", "RegNetForImageClassification", 64, 224, {}, NARROW | {"groups_width": 4}, 64),
    vision("efficientnet-b7", "EfficientNetForImageClassification", 16, 600, {},
           {"image_size": 32, "width_coefficient": 0.25, "depth_coefficient": 1.0, "hidden_dim": 320}),
    vision("mobilevit-small", "MobileViTForImageClassification", 64, 256, {},
           {"image_size": 64, "hidden_sizes": [16, 20, 24], "neck_hidden_sizes": [8, 8, 16, 16, 20, 24, 32]}, 64),
    vision("mobilenetv2", "MobileNetV2ForImageClassification", 64, 224, {}, {"depth_multiplier": 0.25}),
    vision("poolformer-s12", "PoolFormerForImageClassification", 64, 224, {},
           STAGES | {"hidden_sizes": [8, 16, 16, 16]}, 64),
    vision("pvt-v2-b0", "PvtV2ForImageClassification", 64, 224, {},
           STAGES | {"image_size": 64, "hidden_sizes": [8, 16, 32, 32], "num_attention_heads": [1, 2, 4, 4]}, 64),
    vision("levit-128s", "LevitForImageClassification", 64, 224, {},
           {"image_size": 64, "hidden_sizes": [16, 24, 32], "num_attention_heads": [2, 2, 2], "depths": [2, 2, 2],
            "key_dim": [4, 4, 4]}, 64),
    vision("cvt-13", "CvtForImageClassification", 64, 224, {},
           {"embed_dim": [8, 16, 16], "num_heads": [1, 2, 2], "depth": [1, 2, 3]}, 64),
    vision("focalnet-tiny", "FocalNetForImageClassification", 64, 224, {},
           STAGES | {"image_size": 32, "patch_size": 2, "embed_dim": 8, "hidden_sizes": [8, 16, 32, 64]}),
    vision("hiera-base", "HieraForImageClassification", 64, 224, {},
           {"image_size": [64, 64], "embed_dim": 8, "num_heads": [1, 2, 2, 2], "depths": [1, 2, 3, 2]}, 64),
    entry("timesformer-base", "vision", "TimesformerForVideoClassification",
          (8, {"num_labels": 400}, {"pixel_values": floats(8, 3, 224, 224), "labels": classes()}),
          (VIT_TINY | {"num_frames": 4}, {"pixel_values": floats(4, 3, 32, 32), "labels": classes()})),
    entry("vivit-base", "vision", "VivitForVideoClassification",
          (4, {"num_labels": 400}, {"pixel_values": floats(32, 3, 224, 224), "labels": classes()}),
          (VIT_TINY | {"num_frames": 4, "tubelet_size": [2, 8, 8]},
           {"pixel_values": floats(4, 3, 32, 32), "labels": classes()})),
    entry("clip-vit-base", "multimodal", "CLIPModel", (64, {}, _pair(224, 77)),
          ({"text_config": TEXT_TINY, "vision_config": VIT_TINY, "projection_dim": 16}, _pair(32, 16)), pair_loss),
    entry("siglip-base", "multimodal", "SiglipModel", (64, {}, _pair(224, 64)),
          ({"text_config": TEXT_TINY, "vision_config": VIT_TINY}, _pair(32, 16)), pair_sigmoid_loss),
    entry("blip-captioning-base", "multimodal", "BlipForConditionalGeneration",
          (16, {}, _pair(384, 64) | {"labels": ids(64)}),
          ({"text_config": TEXT_TINY | {"encoder_hidden_size": 32}, "vision_config": VIT_TINY},
           _pair(32, 16) | {"labels": ids(16)})),
    entry("llava-1.5-7b", "multimodal", "LlavaForConditionalGeneration",
          (2, {"text_config": {"model_type": "llama", "vocab_size": 32_064, "max_position_embeddings": 4096},
               "vision_config": CLIP_L | {"model_type": "clip_vision_model"}}, _with_image(2048, 32_000, 576, 336)),
          ({"text_config": LLAMA_TINY | {"model_type": "llama"}, "image_token_index": 150,
            "vision_config": VIT_TINY | {"model_type": "clip_vision_model", "projection_dim": 16}},
           _with_image(32, 150, 16, 32))),
    entry("paligemma-3b", "multimodal", "PaliGemmaForConditionalGeneration",
          (2, {"text_config": {"model_type": "gemma", "hidden_size": 2048, "num_hidden_layers": 18,
                               "intermediate_size": 16_384, "num_attention_heads": 8, "num_key_value_heads": 1,
                               "vocab_size": 257_216},
               "vision_config": SO400M | {"model_type": "siglip_vision_model"}, "projection_dim": 2048,
               "hidden_size": 2048, "image_token_index": 257_152}, _with_image(512, 257_152, 256, 224) | {"token_type_ids": _prefix(512, 256)}),
          ({"text_config": LLAMA_TINY | {"model_type": "gemma", "head_dim": 8}, "image_token_index": 150,
            "vision_config": VIT_TINY | {"model_type": "siglip_vision_model"}, "projection_dim": 32,
            "hidden_size": 32}, _with_image(32, 150, 16, 32) | {"token_type_ids": _prefix(32, 16)})),
    entry("whisper-large-v3", "audio", "WhisperForConditionalGeneration",
          (8, WHISPER_LARGE, {"input_features": floats(128, 3000), "labels": ids(448)}),
          (WHISPER_TINY, {"input_features": floats(8, 32), "labels": ids(8)})),
    speech("wav2vec2-large", "Wav2Vec2ForCTC", LARGE),
    speech("wav2vec2-classifier", "Wav2Vec2ForSequenceClassification", {}, transcribed=False),
    speech("hubert-large", "HubertForSequenceClassification", LARGE, transcribed=False),
    speech("wavlm-base", "WavLMForSequenceClassification", {}, transcribed=False),
    speech("unispeech-large", "UniSpeechForSequenceClassification", {}, transcribed=False),
    speech("sew-base", "SEWForSequenceClassification", {}, transcribed=False),
    entry("ast", "audio", "ASTForAudioClassification",
          (16, {"num_labels": 527}, {"input_values": floats(1024, 128), "labels": classes()}),
          ({"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 64,
            "max_length": 32, "num_mel_bins": 16, "patch_size": 4, "frequency_stride": 4, "time_stride": 4},
           {"input_values": floats(32, 16), "labels": classes()})),
)  # fmt: skip
"""Every model of transformers that is no decoder-only language model."""
