"""Dense decoder-only language models of Hugging Face's transformers, at the sizes of published ones."""

from __future__ import annotations

from zoo.architecture import Architecture
from zoo.causal_lm import decoder, sizes

__all__ = ["DECODERS"]

_ROPE = {"rope_type": "default", "rope_theta": 1e6}
_GPT2_TINY = {"n_embd": 32, "n_layer": 4, "n_head": 4, "n_positions": 64, "vocab_size": 64}


# fmt: off
DECODERS: tuple[Architecture, ...] = (
    decoder("llama-2-7b", "llama", 4096, sizes(4096, 11008, 32, 32, 32, 32000)),
    decoder("llama-3-8b", "llama", 8192, sizes(4096, 14336, 32, 32, 8, 128256,
            max_position_embeddings=8192)),
    decoder("llama-3.1-405b", "llama", 8192, sizes(16384, 53248, 126, 128, 8, 128256)),
    decoder("mistral-7b", "mistral", 8192, sizes(4096, 14336, 32, 32, 8, 32000, sliding_window=4096),
            {"sliding_window": 8}),
    decoder("ministral-8b", "ministral", 8192, sizes(4096, 12288, 36, 32, 8, 131072, head_dim=128,
            sliding_window=4096, layer_types=["full_attention", *["sliding_attention"] * 3] * 9,
            rope_parameters=_ROPE), {"head_dim": 8, "rope_parameters": _ROPE, "sliding_window": 8, "layer_types": ["full_attention", "sliding_attention"] * 2}),
    decoder("qwen2-7b", "qwen2", 8192, sizes(3584, 18944, 28, 28, 4, 152064)),
    decoder("qwen3-32b", "qwen3", 8192, sizes(5120, 25600, 64, 64, 8, 151936, head_dim=128), {"head_dim":
            8}),
    decoder("gemma-7b", "gemma", 8192, sizes(3072, 24576, 28, 16, 16, 256000, head_dim=256), {"head_dim":
            8}),
    decoder("gemma-2-9b", "gemma2", 8192, sizes(3584, 14336, 42, 16, 8, 256000, head_dim=256,
            sliding_window=4096), {"head_dim": 8, "sliding_window": 8}),
    decoder("gemma-3-12b", "gemma3_text", 8192, sizes(3840, 15360, 48, 16, 8, 262208, head_dim=256,
            sliding_window=1024), {"head_dim": 8, "sliding_window": 8, "num_hidden_layers": 12}),
    decoder("phi-2", "phi", 2048, sizes(2560, 10240, 32, 32, 32, 51200, partial_rotary_factor=0.4),
            {"partial_rotary_factor": 0.5}),
    decoder("phi-3-mini", "phi3", 4096, sizes(3072, 8192, 32, 32, 32, 32064, sliding_window=2047),
            {"sliding_window": 8}),
    decoder("olmo-7b", "olmo", 2048, sizes(4096, 11008, 32, 32, 32, 50304)),
    decoder("olmo-2-13b", "olmo2", 4096, sizes(5120, 13824, 40, 40, 40, 100352)),
    decoder("olmo-3-7b", "olmo3", 8192, sizes(4096, 11008, 32, 32, 32, 100352, sliding_window=4096),
            {"sliding_window": 8, "num_hidden_layers": 8}),
    decoder("granite-3-8b", "granite", 4096, sizes(4096, 12800, 40, 32, 8, 49155,
            embedding_multiplier=12.0, logits_scaling=16.0, residual_multiplier=0.22,
            attention_multiplier=0.0078125)),
    decoder("starcoder2-7b", "starcoder2", 8192, sizes(4608, 18432, 32, 36, 4, 49152,
            sliding_window=4096), {"sliding_window": 8}),
    decoder("gpt2-xl", "gpt2", 1024, {"n_embd": 1600, "n_layer": 48, "n_head": 25, "n_positions": 1024,
            "vocab_size": 50257}, _GPT2_TINY),
    decoder("gpt-neox-20b", "gpt_neox", 2048, {"hidden_size": 6144, "intermediate_size": 24576,
            "num_hidden_layers": 44, "num_attention_heads": 64, "vocab_size": 50432}),
    decoder("gpt-neo-2.7b", "gpt_neo", 2048, {"hidden_size": 2560, "num_layers": 32, "num_heads": 20,
            "vocab_size": 50257, "attention_types": [[["global", "local"], 16]],
            "max_position_embeddings": 2048}, {"num_layers": 4, "num_heads": 4, "attention_types":
            [[["global", "local"], 2]], "window_size": 8}),
    decoder("gpt-j-6b", "gptj", 2048, {"n_embd": 4096, "n_layer": 28, "n_head": 16, "n_positions": 2048,
            "rotary_dim": 64, "vocab_size": 50400}, _GPT2_TINY | {"rotary_dim": 4}),
    decoder("codegen-6b", "codegen", 2048, {"n_embd": 4096, "n_layer": 33, "n_head": 16, "n_positions":
            2048, "rotary_dim": 64, "vocab_size": 51200}, _GPT2_TINY | {"rotary_dim": 4, "n_ctx": 64}),
    decoder("starcoder-15b", "gpt_bigcode", 8192, {"n_embd": 6144, "n_layer": 40, "n_head": 48, "n_inner":
            24576, "n_positions": 8192, "vocab_size": 49152}, _GPT2_TINY | {"n_inner": 48}),
    decoder("openai-gpt", "openai-gpt", 512, {"n_embd": 768, "n_layer": 12, "n_head": 12, "n_positions":
            512, "vocab_size": 40478}, _GPT2_TINY, samples=8, precision="fp32"),
    decoder("opt-66b", "opt", 2048, {"hidden_size": 9216, "ffn_dim": 36864, "num_hidden_layers": 64,
            "num_attention_heads": 72, "vocab_size": 50272, "max_position_embeddings": 2048,
            "word_embed_proj_dim": 9216}, {"ffn_dim": 48, "word_embed_proj_dim": 32}),
    decoder("bloom-176b", "bloom", 2048, {"hidden_size": 14336, "n_layer": 70, "n_head": 112,
            "vocab_size": 250880}, {"n_layer": 4, "n_head": 4}),
    decoder("falcon-40b", "falcon", 2048, {"hidden_size": 8192, "num_hidden_layers": 60,
            "num_attention_heads": 128, "num_kv_heads": 8, "vocab_size": 65024,
            "new_decoder_architecture": True, "ffn_hidden_size": 32768}, {"num_kv_heads": 2,
            "ffn_hidden_size": 48}),
    decoder("mpt-30b", "mpt", 8192, {"d_model": 7168, "n_layers": 48, "n_heads": 64, "max_seq_len": 8192,
            "vocab_size": 50432}, {"d_model": 32, "n_layers": 4, "n_heads": 4, "max_seq_len": 64}),
    decoder("command-r-35b", "cohere", 8192, sizes(8192, 22528, 40, 64, 64, 256000)),
    decoder("command-r7b", "cohere2", 8192, sizes(4096, 14336, 32, 32, 8, 256000, head_dim=128,
            sliding_window=4096), {"sliding_window": 8, "head_dim": 8}),
    decoder("stablelm-2-12b", "stablelm", 4096, sizes(5120, 13824, 40, 32, 8, 100352,
            use_parallel_residual=True, qk_layernorm=True, partial_rotary_factor=0.25),
            {"partial_rotary_factor": 0.5}),
    decoder("glm-4-9b", "glm", 8192, sizes(4096, 13696, 40, 32, 2, 151552, head_dim=128), {"head_dim": 8}),
    decoder("glm-4-32b", "glm4", 8192, sizes(6144, 23040, 61, 48, 2, 151552, head_dim=128), {"head_dim":
            8}),
    decoder("nemotron-4-15b", "nemotron", 4096, sizes(6144, 24576, 32, 48, 8, 256000, head_dim=128),
            {"head_dim": 8}),
    decoder("smollm3-3b", "smollm3", 8192, sizes(2048, 11008, 36, 16, 4, 128256)),
    decoder("exaone-4-32b", "exaone4", 8192, sizes(5120, 27392, 64, 40, 8, 102400, head_dim=128,
            sliding_window=4096, sliding_window_pattern=4), {"sliding_window": 8,
            "sliding_window_pattern": 4, "head_dim": 8, "num_hidden_layers": 8}),
    decoder("persimmon-8b", "persimmon", 8192, {"hidden_size": 4096, "intermediate_size": 16384,
            "num_hidden_layers": 36, "num_attention_heads": 64, "vocab_size": 262144}),
    decoder("xglm-7.5b", "xglm", 2048, {"d_model": 4096, "ffn_dim": 16384, "num_layers": 32,
            "attention_heads": 32, "vocab_size": 256008, "max_position_embeddings": 2048}, {"d_model": 32,
            "ffn_dim": 48, "num_layers": 4, "attention_heads": 4}),
    decoder("biogpt-large", "biogpt", 1024, {"hidden_size": 1600, "intermediate_size": 6400,
            "num_hidden_layers": 48, "num_attention_heads": 25, "vocab_size": 57717,
            "max_position_embeddings": 2048}),
    decoder("ernie-4.5-0.3b", "ernie4_5", 8192, sizes(1024, 3072, 18, 16, 2, 103424, head_dim=128),
            {"head_dim": 8}),
    decoder("hunyuan-7b", "hunyuan_v1_dense", 8192, sizes(4096, 14336, 32, 32, 8, 128167, head_dim=128),
            {"head_dim": 8}),
    decoder("helium-2b", "helium", 4096, sizes(2560, 7040, 24, 20, 20, 64000, head_dim=128), {"head_dim":
            8}),
    decoder("afm-4.5b", "arcee", 8192, sizes(2560, 18432, 36, 20, 4, 128004, head_dim=128), {"head_dim":
            8}),
    decoder("apertus-70b", "apertus", 4096, sizes(8192, 43008, 80, 64, 8, 131072)),
    decoder("seed-oss-36b", "seed_oss", 8192, sizes(5120, 27648, 64, 80, 8, 155136, head_dim=128),
            {"head_dim": 8}),
    decoder("bitnet-2b", "bitnet", 4096, sizes(2560, 6912, 30, 20, 5, 128256)),
    decoder("diffllama-375m", "diffllama", 2048, sizes(2048, 8192, 16, 32, 32, 32000)),
    decoder("doge-320m", "doge", 2048, sizes(1024, 2048, 32, 8, 4, 32768, keep_window_size=2048),
            {"keep_window_size": 64}),
    decoder("nanochat-d20", "nanochat", 2048, sizes(1280, 5120, 20, 10, 10, 65536), samples=8),
    decoder("cwm-32b", "cwm", 16384, sizes(6144, 21504, 64, 48, 8, 128256, head_dim=128,
            sliding_window=8192), {"head_dim": 8, "sliding_window": 8, "layer_types": ["full_attention",
            "sliding_attention"] * 2}),
    decoder("vaultgemma-1b", "vaultgemma", 1024, sizes(1152, 6912, 26, 4, 4, 256000, head_dim=256,
            sliding_window=512), {"head_dim": 8, "sliding_window": 8}),
    decoder("modernbert-decoder-1b", "modernbert-decoder", 8192, {"hidden_size": 1792,
            "intermediate_size": 3840, "num_hidden_layers": 28, "num_attention_heads": 28, "vocab_size":
            50368, "local_attention": 128, "pad_token_id": 50283}, {"local_attention": 8, "num_hidden_layers": 6,
            "pad_token_id": 0, "cls_token_id": 2, "sep_token_id": 3}),
    decoder("ctrl", "ctrl", 256, {"n_embd": 1280, "dff": 8192, "n_layer": 48, "n_head": 16, "n_positions":
            256, "vocab_size": 246534}, _GPT2_TINY | {"dff": 48}, samples=8),
    decoder("hyperclovax-14b", "hyperclovax", 4096, sizes(6144, 14336, 38, 48, 8, 110592, head_dim=128),
            {"head_dim": 8}),
    decoder("jais-2-8b", "jais2", 8192, sizes(3328, 26624, 32, 26, 26, 150272, head_dim=128), {"head_dim":
            8, "num_key_value_heads": 4}),
    decoder("gpt-neox-japanese-2.7b", "gpt_neox_japanese", 2048, {"hidden_size": 2560,
            "intermediate_multiple_size": 4, "num_hidden_layers": 32, "num_attention_heads": 32,
            "vocab_size": 32000}, {"intermediate_multiple_size": 4}),
    decoder("minicpm3-4b", "minicpm3", 4096, sizes(2560, 6400, 62, 40, 40, 73448, kv_lora_rank=256,
            q_lora_rank=768, qk_nope_head_dim=64, qk_rope_head_dim=32, v_head_dim=64),
            {"num_key_value_heads": 4, "kv_lora_rank": 16, "q_lora_rank": 24, "qk_nope_head_dim": 8,
            "qk_rope_head_dim": 4, "v_head_dim": 8}),
)
# fmt: on
