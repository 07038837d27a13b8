"""Decoders with routed experts, at the sizes of published ones."""

from __future__ import annotations

from zoo.architecture import Architecture
from zoo.causal_lm import decoder, sizes

__all__ = ["MIXTURES"]

_LATENT = {"kv_lora_rank": 512, "qk_nope_head_dim": 128, "qk_rope_head_dim": 64, "v_head_dim": 128}
_LATENT_TINY = {
    "num_key_value_heads": 4,
    "kv_lora_rank": 16,
    "q_lora_rank": 24,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 4,
    "v_head_dim": 8,
}
_ROUTED_TINY = {
    "moe_intermediate_size": 24,
    "n_routed_experts": 8,
    "n_shared_experts": 1,
    "num_experts_per_tok": 2,
}

# fmt: off
MIXTURES: tuple[Architecture, ...] = (
    decoder("mixtral-8x22b", "mixtral", 8192, sizes(6144, 16384, 56, 48, 8, 32768, num_local_experts=8,
            num_experts_per_tok=2), {"num_local_experts": 4, "num_experts_per_tok": 2}),
    decoder("llama-4-scout", "llama4_text", 8192, sizes(5120, 8192, 48, 40, 8, 202048,
            intermediate_size_mlp=16384, head_dim=128, num_local_experts=16, num_experts_per_tok=1),
            {"intermediate_size_mlp": 64, "head_dim": 8, "num_local_experts": 4, "attention_chunk_size":
            8, "num_hidden_layers": 8}),
    decoder("llama-4-maverick", "llama4_text", 8192, sizes(5120, 8192, 48, 40, 8, 202048,
            intermediate_size_mlp=16384, head_dim=128, num_local_experts=128, num_experts_per_tok=1,
            interleave_moe_layer_step=2), {"intermediate_size_mlp": 64, "head_dim": 8,
            "num_local_experts": 4, "attention_chunk_size": 8, "interleave_moe_layer_step": 2,
            "num_hidden_layers": 8}),
    decoder("qwen2-57b-a14b", "qwen2_moe", 8192, sizes(3584, 18944, 28, 28, 4, 151936,
            moe_intermediate_size=2560, shared_expert_intermediate_size=20480, num_experts=64,
            num_experts_per_tok=8), {"moe_intermediate_size": 24, "shared_expert_intermediate_size": 40,
            "num_experts": 8, "num_experts_per_tok": 2}),
    decoder("qwen3-235b-a22b", "qwen3_moe", 8192, sizes(4096, 12288, 94, 64, 4, 151936, head_dim=128,
            moe_intermediate_size=1536, num_experts=128, num_experts_per_tok=8, norm_topk_prob=True),
            {"head_dim": 8, "moe_intermediate_size": 24, "num_experts": 8, "num_experts_per_tok": 2}),
    decoder("deepseek-v2", "deepseek_v2", 4096, sizes(5120, 12288, 60, 128, 128, 102400, **_LATENT,
            q_lora_rank=1536, moe_intermediate_size=1536, n_routed_experts=160, n_shared_experts=2,
            num_experts_per_tok=6, first_k_dense_replace=1, topk_method="group_limited_greedy", n_group=8,
            topk_group=3, routed_scaling_factor=16.0), _LATENT_TINY | _ROUTED_TINY |
            {"first_k_dense_replace": 1, "n_group": 4, "topk_group": 2}),
    decoder("deepseek-v3", "deepseek_v3", 4096, sizes(7168, 18432, 61, 128, 128, 129280, **_LATENT,
            q_lora_rank=1536, moe_intermediate_size=2048, n_routed_experts=256, n_shared_experts=1,
            num_experts_per_tok=8, first_k_dense_replace=3, n_group=8, topk_group=4), _LATENT_TINY |
            _ROUTED_TINY | {"first_k_dense_replace": 2, "n_group": 4, "topk_group": 2,
            "num_hidden_layers": 5}),
    decoder("glm-4.5", "glm4_moe", 8192, sizes(5120, 12288, 92, 96, 8, 151552, head_dim=128,
            moe_intermediate_size=1536, n_routed_experts=160, n_shared_experts=1, num_experts_per_tok=8,
            first_k_dense_replace=3, use_qk_norm=True, routed_scaling_factor=2.5), _ROUTED_TINY |
            {"head_dim": 8, "first_k_dense_replace": 2, "num_hidden_layers": 5}),
    decoder("glm-4.7-flash", "glm4_moe_lite", 8192, sizes(2048, 10240, 47, 20, 20, 154880,
            kv_lora_rank=512, q_lora_rank=768, qk_nope_head_dim=192, qk_rope_head_dim=64, v_head_dim=256,
            moe_intermediate_size=1536, n_routed_experts=64, n_shared_experts=1, num_experts_per_tok=4),
            _LATENT_TINY | _ROUTED_TINY),
    decoder("phi-3.5-moe", "phimoe", 4096, sizes(4096, 6400, 32, 32, 8, 32064, num_local_experts=16,
            num_experts_per_tok=2), {"num_local_experts": 4, "num_experts_per_tok": 2}),
    decoder("olmoe-1b-7b", "olmoe", 4096, sizes(2048, 1024, 16, 16, 16, 50304, num_experts=64,
            num_experts_per_tok=8), {"num_experts": 8, "num_experts_per_tok": 2, "num_key_value_heads":
            4}),
    decoder("flex-olmo-7x7b", "flex_olmo", 4096, sizes(4096, 11008, 32, 32, 32, 100352, num_experts=7,
            num_experts_per_tok=5), {"num_experts": 4, "num_experts_per_tok": 2, "num_key_value_heads":
            4}),
    decoder("granite-3-3b-a800m", "granitemoe", 4096, sizes(1536, 512, 32, 24, 8, 49155,
            num_local_experts=40, num_experts_per_tok=8), {"num_local_experts": 8, "num_experts_per_tok":
            2}),
    decoder("granite-moe-shared", "granitemoeshared", 4096, sizes(1536, 512, 32, 24, 8, 49155,
            num_local_experts=40, num_experts_per_tok=8, shared_intermediate_size=1024),
            {"num_local_experts": 8, "num_experts_per_tok": 2, "shared_intermediate_size": 40}),
    decoder("gpt-oss-120b", "gpt_oss", 8192, sizes(2880, 2880, 36, 64, 8, 201088, head_dim=64,
            num_local_experts=128, num_experts_per_tok=4, sliding_window=128), {"head_dim": 8,
            "num_local_experts": 8, "num_experts_per_tok": 2, "sliding_window": 8}),
    decoder("ernie-4.5-21b-a3b", "ernie4_5_moe", 8192, sizes(2560, 12288, 28, 20, 4, 103424,
            moe_intermediate_size=1536, moe_num_experts=64, moe_k=6, moe_num_shared_experts=2,
            moe_layer_start_index=1, moe_layer_end_index=27), {"moe_intermediate_size": 24,
            "moe_num_experts": 8, "moe_k": 2, "moe_num_shared_experts": 2, "moe_layer_start_index": 1,
            "moe_layer_end_index": 3}),
    decoder("hunyuan-a13b", "hunyuan_v1_moe", 8192, sizes(4096, 3072, 32, 32, 8, 128167, head_dim=128,
            num_experts=64, moe_topk=8), {"head_dim": 8, "num_experts": 8, "moe_topk": 2}),
    decoder("dots1", "dots1", 4096, sizes(4096, 10944, 62, 32, 32, 152064, moe_intermediate_size=1408,
            n_routed_experts=128, n_shared_experts=2, num_experts_per_tok=6, first_k_dense_replace=1,
            norm_topk_prob=True), _ROUTED_TINY | {"first_k_dense_replace": 1}),
    decoder("minimax-m2", "minimax_m2", 8192, sizes(3072, 1536, 62, 48, 8, 200064, head_dim=128,
            num_local_experts=256, num_experts_per_tok=8), {"head_dim": 8, "num_local_experts": 8,
            "num_experts_per_tok": 2}),
    decoder("mimo-v2-flash", "mimo_v2_flash", 8192, sizes(4096, 16384, 48, 64, 4, 152576, head_dim=192,
            v_head_dim=128, moe_intermediate_size=2048, n_routed_experts=256, num_experts_per_tok=8,
            sliding_window=128), {"head_dim": 8, "v_head_dim": 4, "moe_intermediate_size": 24,
            "n_routed_experts": 8, "num_experts_per_tok": 2, "sliding_window": 8, "num_hidden_layers":
            12}),
    decoder("afmoe-26b", "afmoe", 8192, sizes(2048, 6144, 32, 32, 4, 200192, head_dim=128,
            moe_intermediate_size=1024, num_experts=128, num_experts_per_tok=8, num_shared_experts=1,
            num_dense_layers=2, sliding_window=2048), {"head_dim": 8, "moe_intermediate_size": 24,
            "num_experts": 8, "num_experts_per_tok": 2, "num_shared_experts": 1, "num_dense_layers": 2,
            "sliding_window": 8, "num_hidden_layers": 8}),
    decoder("exaone-moe-236b", "exaone_moe", 8192, sizes(6144, 18432, 48, 64, 8, 153600, head_dim=128,
            moe_intermediate_size=2048, num_experts=128, num_experts_per_tok=8, num_shared_experts=1,
            first_k_dense_replace=1, sliding_window=128), {"head_dim": 8, "moe_intermediate_size": 24,
            "num_experts": 8, "num_experts_per_tok": 2, "num_shared_experts": 1, "first_k_dense_replace":
            1, "sliding_window": 8, "num_hidden_layers": 8}),
    decoder("solar-open-100b", "solar_open", 8192, sizes(4096, 10240, 48, 64, 8, 196608, head_dim=128,
            moe_intermediate_size=1280, n_routed_experts=128, n_shared_experts=1, num_experts_per_tok=8),
            _ROUTED_TINY | {"head_dim": 8}),
    decoder("longcat-flash", "longcat_flash", 4096, {"hidden_size": 6144, "num_layers": 28,
            "num_attention_heads": 64, "num_key_value_heads": 64, "vocab_size": 131072, "ffn_hidden_size":
            12288, "expert_ffn_hidden_size": 2048, "n_routed_experts": 512, "zero_expert_num": 256,
            "moe_topk": 12, "q_lora_rank": 1536, **_LATENT}, _LATENT_TINY | {"num_layers": 2,
            "ffn_hidden_size": 48, "expert_ffn_hidden_size": 24, "n_routed_experts": 8, "zero_expert_num":
            4, "moe_topk": 2, "head_dim": 4}),
    decoder("jetmoe-8b", "jetmoe", 4096, sizes(2048, 5632, 24, 32, 16, 32000, kv_channels=128,
            num_local_experts=8, num_experts_per_tok=2), {"kv_channels": 8, "num_local_experts": 4,
            "num_experts_per_tok": 2}),
    decoder("dbrx", "dbrx", 8192, {"d_model": 6144, "n_heads": 48, "n_layers": 40, "max_seq_len": 32768,
            "vocab_size": 100352, "attn_config": {"kv_n_heads": 8, "clip_qkv": 8.0, "rope_theta":
            500000.0}, "ffn_config": {"ffn_hidden_size": 10752, "moe_num_experts": 16, "moe_top_k": 4,
            "moe_jitter_eps": 0.0}}, {"d_model": 32, "n_heads": 4, "n_layers": 4, "max_seq_len": 64,
            "attn_config": {"kv_n_heads": 2, "clip_qkv": 8.0, "rope_theta": 10000.0}, "ffn_config":
            {"ffn_hidden_size": 48, "moe_num_experts": 4, "moe_top_k": 2, "moe_jitter_eps": 0.0}}),
    decoder("deepseek-v3.2", "deepseek_v32", 4096, sizes(7168, 18432, 61, 128, 128, 129280, **_LATENT,
            q_lora_rank=1536, moe_intermediate_size=2048, n_routed_experts=256, n_shared_experts=1,
            num_experts_per_tok=8, n_group=8, topk_group=4), _LATENT_TINY | _ROUTED_TINY | {"n_group": 4,
            "topk_group": 2, "index_topk": 8, "index_head_dim": 8, "index_n_heads": 4,
            "num_hidden_layers": 6}),
)
# fmt: on
