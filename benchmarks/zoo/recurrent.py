"""Decoders whose mixers are state-space models, linear attention or other recurrences, in part or whole."""

from __future__ import annotations

from zoo.architecture import Architecture
from zoo.causal_lm import decoder, sizes

__all__ = ["RECURRENT"]

_STATE_TINY = {
    "mamba_d_state": 8,
    "mamba_n_heads": 4,
    "mamba_d_head": 16,
    "mamba_n_groups": 1,
    "mamba_chunk_size": 8,
}
_DELTA_TINY = {
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
}

# fmt: off
RECURRENT: tuple[Architecture, ...] = (
    decoder("mamba-2.8b", "mamba", 2048, {"hidden_size": 2560, "num_hidden_layers": 64, "state_size": 16,
            "time_step_rank": 160, "vocab_size": 50280}, {"state_size": 8, "time_step_rank": 4}),
    decoder("mamba2-2.7b", "mamba2", 2048, {"hidden_size": 2560, "num_hidden_layers": 64, "state_size":
            128, "num_heads": 80, "head_dim": 64, "n_groups": 1, "vocab_size": 50288}, {"state_size": 8,
            "num_heads": 4, "head_dim": 16, "n_groups": 1, "chunk_size": 8}),
    decoder("falcon-mamba-7b", "falcon_mamba", 2048, {"hidden_size": 4096, "num_hidden_layers": 64,
            "state_size": 16, "time_step_rank": 256, "vocab_size": 65024}, {"state_size": 8,
            "time_step_rank": 4}),
    decoder("jamba-v0.1", "jamba", 4096, sizes(4096, 14336, 32, 32, 8, 65536, num_experts=16,
            num_experts_per_tok=2, mamba_d_state=16, mamba_dt_rank=256), {"num_experts": 4,
            "num_experts_per_tok": 2, "mamba_d_state": 8, "mamba_dt_rank": 4, "num_hidden_layers": 8,
            "attn_layer_period": 4, "attn_layer_offset": 2}),
    decoder("bamba-9b", "bamba", 4096, sizes(4096, 14336, 32, 32, 8, 128000, attn_layer_indices=[9, 18,
            27], mamba_d_state=128), _STATE_TINY | {"attn_layer_indices": [1, 3]}),
    decoder("zamba-7b", "zamba", 4096, sizes(3712, 14848, 76, 16, 16, 32000), {"num_hidden_layers": 8,
            "mamba_d_state": 8, "mamba_dt_rank": 4, "num_key_value_heads": 4, "attn_layer_period": 4,
            "attn_layer_offset": 2}),
    decoder("zamba2-2.7b", "zamba2", 4096, sizes(2560, 10240, 54, 32, 32, 32000), {"num_hidden_layers": 6,
            "mamba_d_state": 8, "n_mamba_heads": 4, "mamba_headdim": 16, "chunk_size": 8,
            "num_key_value_heads": 4, "layers_block_type": ["linear_attention", "linear_attention",
            "hybrid"] * 2, "adapter_rank": 4}),
    decoder("recurrentgemma-9b", "recurrent_gemma", 4096, sizes(4096, 12288, 38, 16, 1, 256000,
            lru_width=4096, attention_window_size=2048), {"lru_width": 32, "num_hidden_layers": 6,
            "attention_window_size": 8}),
    decoder("falcon-h1-7b", "falcon_h1", 4096, sizes(3072, 12288, 44, 12, 2, 130048, mamba_d_ssm=3072,
            mamba_n_heads=24, mamba_d_head=128, mamba_d_state=256), _STATE_TINY | {"mamba_d_ssm": 64}),
    decoder("granite-4-h-small", "granitemoehybrid", 4096, sizes(4096, 768, 40, 32, 8, 100352,
            shared_intermediate_size=1536, num_local_experts=72, num_experts_per_tok=10,
            mamba_d_state=128, layer_types=["full_attention" if i in (5, 15, 25, 35) else
            "linear_attention" for i in range(40)]), _STATE_TINY | {"shared_intermediate_size": 40,
            "num_local_experts": 4, "num_experts_per_tok": 2, "layer_types": ["linear_attention",
            "full_attention"] * 2}),
    decoder("nemotron-h-8b", "nemotron_h", 4096, {"hidden_size": 4096, "intermediate_size": 21504,
            "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 131072,
            "layers_block_type": ["linear_attention", "mlp"] * 12 + ["full_attention", "mlp"] * 2 +
            ["linear_attention", "mlp"] * 12}, {"ssm_state_size": 8, "mamba_num_heads": 4,
            "mamba_head_dim": 16, "n_groups": 1, "chunk_size": 8, "head_dim": 8, "layers_block_type":
            ["linear_attention", "mlp", "full_attention", "mlp"] * 2}),
    decoder("minimax-text-01", "minimax", 4096, sizes(6144, 9216, 80, 64, 8, 200064, head_dim=128,
            num_local_experts=32, num_experts_per_tok=2, layer_types=(["linear_attention"] * 7 +
            ["full_attention"]) * 10), {"head_dim": 8, "num_local_experts": 4, "num_experts_per_tok": 2,
            "block_size": 8, "layer_types": ["linear_attention", "full_attention"] * 2},
            precision="fp32"),
    decoder("qwen3-next-80b-a3b", "qwen3_next", 4096, sizes(2048, 5120, 48, 16, 2, 151936, head_dim=256,
            num_experts=512, num_experts_per_tok=10, moe_intermediate_size=512,
            shared_expert_intermediate_size=512), _DELTA_TINY | {"head_dim": 8, "num_experts": 8,
            "num_experts_per_tok": 2, "moe_intermediate_size": 24, "shared_expert_intermediate_size": 24,
            "num_hidden_layers": 8}),
    decoder("qwen3.5-9b", "qwen3_5_text", 4096, sizes(4096, 12288, 32, 16, 4, 248320, head_dim=256),
            _DELTA_TINY | {"head_dim": 8, "num_hidden_layers": 8}),
    decoder("olmo-hybrid-7b", "olmo_hybrid", 4096, sizes(3840, 11008, 32, 30, 30, 100352), _DELTA_TINY |
            {"linear_num_key_heads": 4, "num_hidden_layers": 8, "num_key_value_heads": 4}),
    decoder("kimi-linear-48b-a3b", "kimi_linear", 4096, sizes(2304, 9216, 27, 32, 32, 163840,
            kv_lora_rank=512, num_experts=256, num_experts_per_token=8, moe_intermediate_size=1024),
            {"num_hidden_layers": 8, "num_key_value_heads": 4, "kv_lora_rank": 16, "qk_nope_head_dim": 8,
            "qk_rope_head_dim": 4, "v_head_dim": 8, "num_experts": 8, "num_experts_per_token": 2,
            "moe_intermediate_size": 24, "linear_head_dim": 8, "linear_num_heads": 4}),
    decoder("lfm2-1.2b", "lfm2", 8192, sizes(2048, 12288, 16, 32, 8, 65536, full_attn_idxs=[2, 5, 8, 10,
            12, 14]), {"full_attn_idxs": [1, 3], "num_hidden_layers": 6, "block_multiple_of": 8}),
    decoder("lfm2-8b-a1b", "lfm2_moe", 8192, sizes(2048, 7168, 24, 32, 8, 65536,
            moe_intermediate_size=1792, num_experts=32, num_experts_per_tok=4, num_dense_layers=2,
            layer_types=["full_attention" if i in (2, 6, 10, 14, 18, 21) else "conv" for i in range(24)]),
            {"moe_intermediate_size": 24, "num_experts": 4, "num_experts_per_tok": 2, "num_dense_layers":
            2, "num_hidden_layers": 6, "layer_types": ["conv", "conv", "full_attention"] * 2}),
    decoder("rwkv-4-7b", "rwkv", 1024, {"hidden_size": 4096, "attention_hidden_size": 4096,
            "num_hidden_layers": 32, "vocab_size": 50277, "context_length": 1024},
            {"attention_hidden_size": 32, "context_length": 64}),
    decoder("xlstm-7b", "xlstm", 2048, {"hidden_size": 4096, "embedding_dim": 4096, "num_blocks": 32,
            "num_hidden_layers": 32, "num_heads": 8, "vocab_size": 50304, "mode": "train",
            "use_cache": False}, {"embedding_dim": 32, "num_blocks": 4, "num_heads": 4, "chunk_size": 8}),
)
# fmt: on
