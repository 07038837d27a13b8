"""Text encoders and encoder-decoders of Hugging Face's transformers.

Sizes are those of the published model that an entry is named after.
"""

from __future__ import annotations

from typing import Any

from zoo.architecture import Architecture
from zoo.transformers_entry import entry, floats, ids, made, ones

__all__ = ["TEXT"]


def tokens(seq: int) -> dict[str, Any]:
    return {"input_ids": ids(seq), "labels": ids(seq)}


def masked(seq: int) -> dict[str, Any]:
    return {"input_ids": ids(seq), "attention_mask": ones(seq), "labels": ids(seq)}


T5_TINY = {"d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 4, "num_decoder_layers": 3, "num_heads": 4,
           "vocab_size": 99, "decoder_start_token_id": 0}  # fmt: skip
BART_TINY = {"d_model": 32, "encoder_layers": 2, "decoder_layers": 3, "encoder_attention_heads": 4,
             "decoder_attention_heads": 4, "encoder_ffn_dim": 64, "decoder_ffn_dim": 64, "vocab_size": 99,
             "max_position_embeddings": 64, "pad_token_id": 1, "eos_token_id": 2, "bos_token_id": 0,
             "decoder_start_token_id": 2}  # fmt: skip
BERT_TINY = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 64,
             "vocab_size": 99, "max_position_embeddings": 64, "embedding_size": 32}  # fmt: skip
RELATIVE = {
    "relative_attention": True,
    "max_relative_positions": -1,
    "position_biased_input": False,
    "type_vocab_size": 0,
}


def t5(heads: int, width: int, ffn: int, size: int = 64, vocabulary: int = 32_128) -> dict[str, Any]:
    return {"d_model": width, "d_kv": size, "d_ff": ffn, "num_layers": 24, "num_heads": heads,
            "vocab_size": vocabulary, "decoder_start_token_id": 0}  # fmt: skip


def seq2seq(
    name: str, model: str, samples: int, seq: int, full: dict[str, Any], tiny: dict[str, Any]
) -> Architecture:
    return entry(name, "encoder-decoder", model, (samples, full, tokens(seq)), (tiny, tokens(16)))


def encoder(
    name: str,
    model: str,
    samples: int,
    seq: int,
    full: dict[str, Any],
    tiny: dict[str, Any] | None = None,
    precision: str = "bf16",
) -> Architecture:
    small = BERT_TINY | (tiny or {}), tokens(16)
    return entry(name, "encoder", model, (samples, full, tokens(seq)), small, precision=precision)


def bert(layers: int, width: int, heads: int, vocabulary: int, positions: int = 512) -> dict[str, Any]:
    return {"hidden_size": width, "num_hidden_layers": layers, "num_attention_heads": heads,
            "intermediate_size": 4 * width, "vocab_size": vocabulary, "max_position_embeddings": positions}  # fmt: skip


def _series(past: int, future: int) -> dict[str, Any]:
    return {"past_values": floats(past), "past_time_features": floats(past, 2), "past_observed_mask": ones(past),
            "future_values": floats(future), "future_time_features": floats(future, 2)}  # fmt: skip


def _channels(past: int, future: int, channels: int) -> dict[str, Any]:
    return {"past_values": floats(past, channels), "future_values": floats(future, channels)}


DEBERTA_V2 = RELATIVE | {"norm_rel_ebd": "layer_norm", "share_att_key": True, "pos_att_type": ["p2c", "c2p"]}

TEXT: tuple[Architecture, ...] = (
    seq2seq("t5-3b", "T5ForConditionalGeneration", 4, 512, t5(32, 1024, 16_384, 128), T5_TINY),
    seq2seq("mt5-large", "MT5ForConditionalGeneration", 4, 512, t5(16, 1024, 2816, vocabulary=250_112), T5_TINY),
    seq2seq("umt5-large", "UMT5ForConditionalGeneration", 4, 512, t5(16, 1024, 2816, vocabulary=256_384), T5_TINY),
    entry("longt5-base", "encoder-decoder", "LongT5ForConditionalGeneration",
          (1, t5(12, 768, 2048) | {"num_layers": 12, "encoder_attention_type": "local"}, masked(4096)),
          (T5_TINY | {"local_radius": 3}, masked(16)), precision="fp32"),
    entry("switch-base-8", "encoder-decoder", "SwitchTransformersForConditionalGeneration",
          (4, t5(12, 768, 3072) | {"num_layers": 12, "num_experts": 8}, masked(512)),
          (T5_TINY | {"num_layers": 4, "num_decoder_layers": 4, "num_experts": 4, "num_sparse_encoder_layers": 2,
                      "num_sparse_decoder_layers": 2}, masked(16))),
    seq2seq("bart-large", "BartForConditionalGeneration", 8, 1024, {}, BART_TINY),
    seq2seq("mbart-large-50", "MBartForConditionalGeneration", 8, 1024, {"vocab_size": 250_054}, BART_TINY),
    seq2seq("pegasus-large", "PegasusForConditionalGeneration", 8, 512,
            {"encoder_layers": 16, "decoder_layers": 16, "vocab_size": 96_103}, BART_TINY),
    seq2seq("opus-mt-en-de", "MarianMTModel", 16, 512,
            {"d_model": 512, "encoder_layers": 6, "decoder_layers": 6, "encoder_attention_heads": 8,
             "decoder_attention_heads": 8, "encoder_ffn_dim": 2048, "decoder_ffn_dim": 2048, "vocab_size": 58_101,
             "pad_token_id": 58_100, "decoder_start_token_id": 58_100}, BART_TINY),
    seq2seq("blenderbot-3b", "BlenderbotForConditionalGeneration", 8, 128, {}, BART_TINY),
    seq2seq("m2m100-418m", "M2M100ForConditionalGeneration", 8, 512, {}, BART_TINY),
    seq2seq("led-base-16384", "LEDForConditionalGeneration", 1, 4096, {},
            BART_TINY | {"attention_window": 8, "max_encoder_position_embeddings": 64,
                         "max_decoder_position_embeddings": 64}),
    encoder("bert-large", "BertForMaskedLM", 8, 512, bert(24, 1024, 16, 30_522)),
    entry("bert-base-classifier", "encoder", "BertForSequenceClassification",
          (16, bert(12, 768, 12, 30_522) | {"num_labels": 3}, {"input_ids": ids(512), "labels": made(3)}),
          (BERT_TINY | {"num_labels": 3}, {"input_ids": ids(16), "labels": made(3)})),
    encoder("roberta-large", "RobertaForMaskedLM", 8, 512, bert(24, 1024, 16, 50_265, 514)),
    encoder("xlm-roberta-large", "XLMRobertaForMaskedLM", 8, 512, bert(24, 1024, 16, 250_002, 514)),
    encoder("camembert-base", "CamembertForMaskedLM", 8, 512, bert(12, 768, 12, 32_005, 514)),
    encoder("electra-large-generator", "ElectraForMaskedLM", 8, 512,
            bert(24, 1024, 16, 30_522) | {"embedding_size": 1024}),
    encoder("mpnet-base", "MPNetForMaskedLM", 8, 512, bert(12, 768, 12, 30_527, 514)),
    encoder("ernie-2.0-large", "ErnieForMaskedLM", 8, 512, bert(24, 1024, 16, 30_522)),
    encoder("megatron-bert-345m", "MegatronBertForMaskedLM", 8, 512, bert(24, 1024, 16, 29_056)),
    encoder("roformer-base", "RoFormerForMaskedLM", 8, 512, bert(12, 768, 12, 50_000, 1536)),
    encoder("layoutlm-large", "LayoutLMForMaskedLM", 8, 512, bert(24, 1024, 16, 30_522)),
    encoder("convbert-base", "ConvBertForMaskedLM", 8, 512, bert(12, 768, 12, 30_522)),
    encoder("rembert", "RemBertForMaskedLM", 4, 512, bert(32, 1152, 18, 250_300)),
    encoder("esm2-650m", "EsmForMaskedLM", 8, 512,
            {"vocab_size": 33, "hidden_size": 1280, "num_hidden_layers": 33, "num_attention_heads": 20,
             "intermediate_size": 5120, "pad_token_id": 1, "mask_token_id": 32, "position_embedding_type": "rotary",
             "token_dropout": True},
            {"pad_token_id": 1, "mask_token_id": 32, "position_embedding_type": "rotary"}),
    encoder("yoso-4096", "YosoForMaskedLM", 2, 4096, {"use_expectation": True}),
    encoder("albert-xxlarge", "AlbertForMaskedLM", 8, 512,
            {"hidden_size": 4096, "num_attention_heads": 64, "intermediate_size": 16_384, "embedding_size": 128}),
    encoder("albert-two-groups", "AlbertForMaskedLM", 8, 512, {"num_hidden_groups": 2, "inner_group_num": 2},
            {"num_hidden_layers": 4, "num_hidden_groups": 2, "inner_group_num": 2}),
    entry("distilbert-base", "encoder", "DistilBertForMaskedLM", (16, {}, tokens(512)),
          ({"dim": 32, "n_layers": 3, "n_heads": 4, "hidden_dim": 64, "vocab_size": 99,
            "max_position_embeddings": 64}, tokens(16))),
    encoder("deberta-base", "DebertaForMaskedLM", 8, 512, RELATIVE | {"pos_att_type": ["c2p", "p2c"]},
            RELATIVE | {"pos_att_type": ["c2p", "p2c"]}),
    encoder("deberta-v3-large", "DebertaV2ForMaskedLM", 8, 512,
            bert(24, 1024, 16, 128_100) | DEBERTA_V2 | {"position_buckets": 256},
            DEBERTA_V2 | {"position_buckets": 8}),
    encoder("modernbert-large", "ModernBertForMaskedLM", 4, 4096,
            {"hidden_size": 1024, "num_hidden_layers": 28, "num_attention_heads": 16, "intermediate_size": 2624},
            {"num_hidden_layers": 6, "local_attention": 4, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
             "cls_token_id": 1, "sep_token_id": 2}),
    entry("funnel-large", "encoder", "FunnelForMaskedLM", (8, {"block_sizes": [8, 8, 8], "d_model": 1024, "n_head": 16,
                                                               "d_inner": 4096}, tokens(512)),
          ({"vocab_size": 99, "block_sizes": [2, 2], "num_decoder_layers": 2, "d_model": 32, "n_head": 4,
            "d_head": 8, "d_inner": 64}, tokens(16))),
    entry("xlnet-large", "encoder", "XLNetLMHeadModel", (8, {}, tokens(512)),
          ({"vocab_size": 99, "d_model": 32, "n_layer": 3, "n_head": 4, "d_inner": 64}, tokens(16))),
    encoder("fnet-large", "FNetForMaskedLM", 8, 512, bert(24, 1024, 16, 32_000), precision="fp32"),
    encoder("longformer-base-4096", "LongformerForMaskedLM", 1, 4096, {"max_position_embeddings": 4098},
            {"attention_window": 8}),
    encoder("bigbird-base", "BigBirdForMaskedLM", 1, 4096, {},
            {"block_size": 2, "num_random_blocks": 1, "attention_type": "block_sparse"}),
    entry("perceiver-language", "encoder", "PerceiverForMaskedLM", (8, {}, tokens(2048)),
          ({"num_latents": 8, "d_latents": 16, "d_model": 24, "num_blocks": 1, "num_self_attends_per_block": 3,
            "num_self_attention_heads": 2, "num_cross_attention_heads": 2, "vocab_size": 99,
            "max_position_embeddings": 16, "qk_channels": 16, "v_channels": 16}, tokens(16))),
    entry("time-series-transformer", "time series", "TimeSeriesTransformerForPrediction",
          (64, {"prediction_length": 24, "context_length": 48, "num_time_features": 2, "d_model": 64,
                "encoder_layers": 4, "decoder_layers": 4}, _series(55, 24)),
          ({"prediction_length": 4, "context_length": 8, "lags_sequence": [1, 2, 3], "num_time_features": 2,
            "d_model": 16, "encoder_layers": 2, "decoder_layers": 3}, _series(11, 4))),
    entry("patchtst", "time series", "PatchTSTForPrediction",
          (64, {"num_input_channels": 7, "context_length": 512, "prediction_length": 96, "patch_length": 16,
                "patch_stride": 16, "d_model": 128}, _channels(512, 96, 7)),
          ({"num_input_channels": 3, "context_length": 32, "prediction_length": 8, "patch_length": 8,
            "patch_stride": 8, "d_model": 16, "num_attention_heads": 4, "ffn_dim": 32}, _channels(32, 8, 3))),
    entry("patchtsmixer", "time series", "PatchTSMixerForPrediction",
          (64, {"num_input_channels": 7, "context_length": 512, "prediction_length": 96, "patch_length": 16,
                "patch_stride": 16, "d_model": 64, "num_layers": 8}, _channels(512, 96, 7)),
          ({"num_input_channels": 3, "context_length": 32, "prediction_length": 8, "patch_length": 8,
            "patch_stride": 8, "d_model": 8, "num_layers": 3}, _channels(32, 8, 3))),
)  # fmt: skip
"""Masked language models, sequence to sequence, time series."""
