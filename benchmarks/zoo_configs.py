"""Settings of the zoo's Transformers models: common small sizes, then what each type needs besides."""

from __future__ import annotations

from typing import Any

from zoo_case import sgd

VOCABULARY = 1000
LENGTH = 32  # tokens
CLASSES = 4

ENCODER: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 128,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "intermediate_size": 256,
    "max_position_embeddings": 128,
}

DECODER = {**ENCODER, "num_key_value_heads": 2, "head_dim": 32, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}

SEQ2SEQ: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "d_model": 128,
    "encoder_layers": 3,
    "decoder_layers": 3,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 256,
    "decoder_ffn_dim": 256,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "decoder_start_token_id": 2,
    "forced_eos_token_id": 2,
}

T5: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "d_model": 128,
    "d_kv": 32,
    "d_ff": 256,
    "num_layers": 3,
    "num_decoder_layers": 3,
    "num_heads": 4,
    "pad_token_id": 0,
    "eos_token_id": 1,
    "decoder_start_token_id": 0,
}

VIT: dict[str, Any] = {
    "hidden_size": 128,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "intermediate_size": 256,
    "image_size": 32,
    "patch_size": 8,
}

SPEECH: dict[str, Any] = {
    "hidden_size": 128,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "intermediate_size": 256,
    "conv_dim": (64, 64, 64),
    "conv_kernel": (10, 3, 3),
    "conv_stride": (5, 2, 2),
    "num_conv_pos_embeddings": 16,
    "num_conv_pos_embedding_groups": 4,
    "vocab_size": 32,
    "num_labels": CLASSES,
    "classifier_proj_size": 64,
    "mask_time_length": 2,
}

TEXT: dict[str, dict[str, Any]] = {
    "bert": {},
    "roberta": {"max_position_embeddings": 130},
    "albert": {"embedding_size": 64},
    "distilbert": {"dim": 128, "n_layers": 4, "n_heads": 4, "hidden_dim": 256},
    "electra": {"embedding_size": 64},
    "deberta": {"pos_att_type": ["c2p", "p2c"], "relative_attention": True},
    "deberta-v2": {"pos_att_type": ["c2p", "p2c"], "relative_attention": True, "position_buckets": 16},
    "mpnet": {},
    "funnel": {
        "d_model": 128, "n_head": 4, "d_head": 32, "d_inner": 256, "block_sizes": [2, 2], "num_decoder_layers": 1,
        "num_hidden_layers": None,
    },
    "xlnet": {"d_model": 128, "n_layer": 4, "n_head": 4, "d_inner": 256, "max_position_embeddings": None},
    "fnet": {"tpu_short_seq_length": LENGTH},
    "nystromformer": {"num_landmarks": 8, "segment_means_seq_len": LENGTH},
    "longformer": {"attention_window": 16, "max_position_embeddings": 130},
    "big_bird": {"attention_type": "original_full"},
    "convbert": {"embedding_size": 64, "head_ratio": 2, "num_groups": 1},
    "squeezebert": {"embedding_size": 128, "q_groups": 4, "k_groups": 4, "v_groups": 4, "intermediate_groups": 4, "output_groups": 4},
    "modernbert": {"global_attn_every_n_layers": 2, "local_attention": 16, "cls_token_id": 1, "sep_token_id": 2},
    "roformer": {},
    "xlm-roberta": {"max_position_embeddings": 130},
    "camembert": {"max_position_embeddings": 130},
}  # fmt: skip

MASKED: dict[str, dict[str, Any]] = {
    "bert": {},
    "roberta": {"max_position_embeddings": 130},
    "rembert": {"input_embedding_size": 64, "output_embedding_size": 64},
    "esm": {"mask_token_id": 4, "position_embedding_type": "rotary"},
}

CAUSAL: dict[str, dict[str, Any]] = {
    "gpt2": {},
    "gpt_neo": {"num_layers": 4, "num_heads": 4, "attention_types": [[["global", "local"], 2]], "window_size": 16},
    "gpt_neox": {},
    "gptj": {"rotary_dim": 16},
    "gpt_bigcode": {},
    "codegen": {"rotary_dim": 16},
    "opt": {"ffn_dim": 256, "word_embed_proj_dim": 128},
    "bloom": {"n_layer": 4, "n_head": 4},
    "mpt": {"d_model": 128, "n_heads": 4, "n_layers": 4, "max_seq_len": 64},
    "xglm": {"d_model": 128, "num_layers": 4, "attention_heads": 4, "ffn_dim": 256},
    "biogpt": {},
    "llama": {},
    "mistral": {"sliding_window": 16},
    "mixtral": {"num_local_experts": 4, "num_experts_per_tok": 2},
    "qwen2": {},
    "qwen2_moe": {"moe_intermediate_size": 64, "shared_expert_intermediate_size": 128, "num_experts": 4, "num_experts_per_tok": 2},
    "qwen3": {},
    "qwen3_moe": {"moe_intermediate_size": 64, "num_experts": 4, "num_experts_per_tok": 2},
    "gemma": {},
    "gemma2": {"query_pre_attn_scalar": 32, "sliding_window": 16},
    "gemma3_text": {"query_pre_attn_scalar": 32, "sliding_window": 16},
    "phi": {},
    "phi3": {},
    "falcon": {"multi_query": True, "parallel_attn": True, "alibi": False, "head_dim": None, "num_key_value_heads": None},
    "olmo": {},
    "olmo2": {},
    "olmoe": {"num_experts": 4, "num_experts_per_tok": 2},
    "stablelm": {},
    "starcoder2": {},
    "cohere": {},
    "granite": {},
    "granitemoe": {"num_local_experts": 4, "num_experts_per_tok": 2},
    "nemotron": {},
    "persimmon": {},
    "mamba": {"state_size": 8, "time_step_rank": 8},
    "mamba2": {"state_size": 16, "num_heads": 8, "head_dim": 32, "n_groups": 1, "chunk_size": 16},
    "falcon_mamba": {"state_size": 8, "time_step_rank": 8},
    "rwkv": {"attention_hidden_size": 128, "context_length": 64},
    "recurrent_gemma": {"lru_width": 128, "attention_window_size": 16},
    "jamba": {
        "attn_layer_period": 2, "attn_layer_offset": 1, "expert_layer_period": 2, "expert_layer_offset": 1, "num_experts": 4,
        "use_mamba_kernels": False, "mamba_d_state": 8, "mamba_dt_rank": 8,
    },
    "deepseek_v3": {
        "n_routed_experts": 4, "n_shared_experts": 1, "num_experts_per_tok": 2, "n_group": 1, "topk_group": 1, "moe_intermediate_size": 64,
        "first_k_dense_replace": 1, "q_lora_rank": 64, "kv_lora_rank": 32, "qk_rope_head_dim": 16, "qk_nope_head_dim": 16, "v_head_dim": 32,
        "num_key_value_heads": 4, "head_dim": 16,
    },
    "gpt_oss": {"num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": 16},
}  # fmt: skip

SEQ2SEQ_MODELS: dict[str, dict[str, Any]] = {
    "t5": T5,
    "mt5": {**T5, "feed_forward_proj": "gated-gelu", "tie_word_embeddings": False},
    "umt5": T5,
    "longt5": {**T5, "local_radius": 8},
    "switch_transformers": {**T5, "num_experts": 4, "expert_capacity": 64, "num_sparse_encoder_layers": 1, "num_sparse_decoder_layers": 1},
    "bart": {},
    "mbart": {},
    "pegasus": {"static_position_embeddings": True},
    "marian": {"decoder_vocab_size": VOCABULARY},
    "blenderbot": {},
    "m2m_100": {},
    "prophetnet": {
        "hidden_size": 128, "encoder_layers": None, "decoder_layers": None, "num_encoder_layers": 3, "num_decoder_layers": 3,
        "num_encoder_attention_heads": 4, "num_decoder_attention_heads": 4,
        "disable_ngram_loss": False, "ngram": 2,
    },
    "led": {"attention_window": 16, "max_encoder_position_embeddings": 64, "max_decoder_position_embeddings": 64},
}  # fmt: skip

VISION: dict[str, dict[str, Any]] = {
    "vit": VIT,
    "deit": VIT,
    "beit": VIT,
    "dinov2": {**VIT, "mlp_ratio": 2},
    "ijepa": VIT,
    "swin": {"image_size": 32, "patch_size": 2, "embed_dim": 32, "depths": [2, 2, 2], "num_heads": [2, 4, 8], "window_size": 4},
    "swinv2": {"image_size": 32, "patch_size": 2, "embed_dim": 32, "depths": [2, 2, 2], "num_heads": [2, 4, 8], "window_size": 4},
    "convnext": {"hidden_sizes": [32, 64, 96, 128], "depths": [2, 2, 4, 2], "patch_size": 2},
    "convnextv2": {"hidden_sizes": [32, 64, 96, 128], "depths": [2, 2, 4, 2], "patch_size": 2},
    "focalnet": {
        "image_size": 32, "patch_size": 2, "embed_dim": 32, "depths": [2, 2, 2], "focal_levels": [2, 2, 2], "focal_windows": [3, 3, 3],
    },
    "resnet": {"embedding_size": 32, "hidden_sizes": [64, 96, 128, 160], "depths": [2, 2, 2, 2], "optimizer": sgd, "size": 64},
    "regnet": {
        "embedding_size": 32, "hidden_sizes": [32, 64, 96, 128], "depths": [2, 2, 2, 2], "groups_width": 16, "optimizer": sgd, "size": 64,
    },
    "bit": {"embedding_size": 32, "hidden_sizes": [32, 64, 96, 128], "depths": [2, 2, 2, 2], "num_groups": 8, "size": 64},
    "mobilenet_v1": {"depth_multiplier": 0.5, "size": 64, "classifier_dropout_prob": 0.1},
    "mobilenet_v2": {"depth_multiplier": 0.5, "size": 64},
    "mobilevit": {
        "image_size": 64, "size": 64, "samples": 8, "hidden_sizes": [64, 80, 96], "neck_hidden_sizes": [16, 32, 48, 64, 80, 96, 128],
        "num_attention_heads": 4, "expand_ratio": 2.0, "unit_gains": True,
    },
    "efficientnet": {
        "image_size": 32, "size": 32, "width_coefficient": 0.5, "depth_coefficient": 0.6, "hidden_dim": 640, "drop_connect_rate": 0.0,
        "unit_gains": True,
    },
    "poolformer": {"hidden_sizes": [32, 64, 96, 128], "depths": [2, 2, 2, 2], "size": 64, "drop_path_rate": 0.0},
    "segformer": {
        "size": 64, "hidden_sizes": [32, 64, 96, 128], "depths": [2, 2, 2, 2], "num_attention_heads": [1, 2, 4, 8],
        "decoder_hidden_size": 64,
    },
    "cvt": {"size": 64, "embed_dim": [32, 64, 128], "num_heads": [1, 2, 4], "depth": [1, 2, 4], "drop_path_rate": [0.0, 0.0, 0.0]},
    "levit": {
        "image_size": 64, "size": 64, "hidden_sizes": [64, 96, 128], "num_attention_heads": [4, 6, 8], "depths": [2, 2, 2],
        "key_dim": [16, 16, 16],
    },
    "pvt": {"image_size": 64, "size": 64, "hidden_sizes": [32, 64, 160, 128], "depths": [2, 2, 2, 2]},
    "pvt_v2": {"image_size": 64, "size": 64, "hidden_sizes": [32, 64, 160, 128], "depths": [2, 2, 2, 2]},
    "swiftformer": {"size": 64, "depths": [2, 2, 2, 2], "embed_dims": [32, 48, 64, 96], "drop_path_rate": 0.0},
    "hiera": {
        "image_size": [64, 64], "size": 64, "embed_dim": 32, "depths": [1, 2, 3, 1], "num_heads": [1, 2, 4, 8], "drop_path_rate": 0.0,
    },
}  # fmt: skip

SPEECH_MODELS: dict[str, dict[str, Any]] = {"wav2vec2": {}, "hubert": {}, "wavlm": {}, "unispeech-sat": {}, "sew": {"squeeze_factor": 2}}
