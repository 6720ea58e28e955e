"""Tiny random models of many architectures, written as folders that every program can load.

The sizes follow one pattern, and each architecture adds what makes it different: experts, a sliding window,
recurrent layers. The tokenizer and chat template are those of the starter model.
"""

import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoTokenizer, PreTrainedConfig, PreTrainedModel

from trainers.modeling.multimodal.architectures import auto_class

TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "generation_config.json")
SIZES: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 256,
    "initializer_range": 0.05,
}
GPT2_SIZES: dict[str, Any] = {"n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 256}
PHI: dict[str, Any] = {"original_max_position_embeddings": 256}
ROUTED_EXPERTS = {"n_routed_experts": 4, "n_shared_experts": 1, "n_group": 1, "topk_group": 1}
# Without attention, or with other names for its sizes.
BARE_SIZES = {name: SIZES[name] for name in ("hidden_size", "num_hidden_layers", "initializer_range")}
FALCON_SIZES = {name: SIZES[name] for name in SIZES if name not in ("head_dim", "num_key_value_heads")}
EXPERTS: dict[str, Any] = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
SHARED_EXPERT: dict[str, Any] = {"shared_expert_intermediate_size": 32}
LOCAL_EXPERTS: dict[str, Any] = {"num_local_experts": 4, "num_experts_per_tok": 2}
LATENT_ATTENTION: dict[str, Any] = {
    "head_dim": 8,
    "num_key_value_heads": 4,
    "q_lora_rank": 32,
    "kv_lora_rank": 16,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8,
    "v_head_dim": 16,
    "n_routed_experts": 4,
    "n_shared_experts": 1,
    "num_experts_per_tok": 2,
    "n_group": 1,
    "topk_group": 1,
    "first_k_dense_replace": 1,
    "moe_intermediate_size": 32,
}
LINEAR_ATTENTION: dict[str, Any] = {
    "layer_types": ["linear_attention", "full_attention"],
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 16,
    "linear_value_head_dim": 16,
}
MAMBA: dict[str, Any] = {
    "mamba_n_heads": 4,
    "mamba_d_head": 32,
    "mamba_d_state": 16,
    "mamba_n_groups": 1,
    "mamba_expand": 2,
    "mamba_chunk_size": 8,
}


GRANITE_HYBRID: dict[str, Any] = {
    "layer_types": ["mamba", "attention"],
    "num_local_experts": 0,
    "shared_intermediate_size": 96,
}
MAMBA_2: dict[str, Any] = {"num_heads": 8, "head_dim": 16, "state_size": 16, "n_groups": 1, "chunk_size": 8}
LFM_2: dict[str, Any] = {"layer_types": ["conv", "full_attention"], "block_auto_adjust_ff_dim": False}
# Of each kind of layer one, then one that uses their keys and values.
GEMMA_4: dict[str, Any] = {
    "num_hidden_layers": 4,
    "layer_types": ["sliding_attention", "full_attention", "sliding_attention", "full_attention"],
    "num_kv_shared_layers": 2,
    "global_head_dim": 32,
    "sliding_window": 16,
    "hidden_size_per_layer_input": 16,
    "final_logit_softcapping": 30.0,
}
GEMMA_4_EXPERTS: dict[str, Any] = {
    "enable_moe_block": True,
    "num_experts": 4,
    "top_k_experts": 2,
    "moe_intermediate_size": 32,
    "hidden_size_per_layer_input": 0,
    "num_kv_shared_layers": 0,
    "attention_k_eq_v": True,
    "num_global_key_value_heads": 1,
}
MINISTRAL_3: dict[str, Any] = {
    "rope_parameters": {
        "rope_type": "yarn",
        "rope_theta": 10_000.0,
        "factor": 8.0,
        "original_max_position_embeddings": 32,
        "beta_fast": 32.0,
        "beta_slow": 1.0,
        "mscale_all_dim": 1.0,
        "mscale": 1.0,
        "llama_4_scaling_beta": 0.1,
    }
}
# Encoders of images: of Qwen, of Gemma 4, of Gemma 3, and Mistral's.
QWEN_VISION: dict[str, Any] = {
    "depth": 1,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_heads": 2,
    "patch_size": 4,
    "out_hidden_size": 64,
    "num_position_embeddings": 16,
}
ENCODER: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "patch_size": 4,
    "image_size": 16,
}
GEMMA_4_ENCODER: dict[str, Any] = ENCODER | {"position_embedding_size": 64, "pooling_kernel_size": 2}
FALCON: dict[str, Any] = {"new_decoder_architecture": False, "multi_query": True}


@dataclass(frozen=True)
class Architecture:
    """An architecture and what its tiny config sets apart from the common sizes."""

    name: str
    model_type: str
    settings: dict[str, Any] = field(default_factory=dict)
    sizes: dict[str, Any] = field(default_factory=lambda: SIZES)
    text_type: str | None = None
    """The type of the text model that a multimodal one contains."""
    whole: dict[str, Any] = field(default_factory=dict)
    """What a multimodal config contains besides that of its text model."""

    @property
    def text_architecture(self) -> str:
        """The type of the text model."""
        return self.text_type or self.model_type

    def config(self, vocabulary: int, pad: int, end: int) -> PreTrainedConfig:
        """Return the config for a vocabulary of this size."""
        tokens = {"vocab_size": vocabulary, "pad_token_id": pad, "bos_token_id": end, "eos_token_id": end}
        settings = {**self.sizes, **tokens, **self.settings}
        if "hidden_size_per_layer_input" in settings:
            settings["vocab_size_per_layer_input"] = vocabulary
        if self.text_type is None:
            return AutoConfig.for_model(self.model_type, **settings)
        text = {"model_type": self.text_type, **settings}
        return AutoConfig.for_model(self.model_type, text_config=text, **self.whole)


ARCHITECTURES = [
    Architecture("Llama", "llama"),
    Architecture("Mistral", "mistral", {"sliding_window": 16}),
    Architecture("Mixtral", "mixtral", LOCAL_EXPERTS),
    Architecture("Qwen 2", "qwen2"),
    Architecture("Qwen 2 MoE", "qwen2_moe", EXPERTS | SHARED_EXPERT),
    Architecture("Qwen 3", "qwen3"),
    Architecture("Qwen 3 MoE", "qwen3_moe", EXPERTS),
    Architecture("Qwen 3 Next", "qwen3_next", EXPERTS | SHARED_EXPERT | LINEAR_ATTENTION),
    Architecture("Qwen 3.5", "qwen3_5_text", LINEAR_ATTENTION),
    Architecture("Gemma", "gemma"),
    Architecture("Gemma 2", "gemma2", {"sliding_window": 16, "query_pre_attn_scalar": 16}),
    Architecture("Gemma 3", "gemma3_text", {"sliding_window": 16, "query_pre_attn_scalar": 16}),
    Architecture("Gemma 4", "gemma4_text", GEMMA_4),
    Architecture("Gemma 4 MoE", "gemma4_text", GEMMA_4 | GEMMA_4_EXPERTS),
    Architecture("Ministral 3", "ministral3", MINISTRAL_3),
    Architecture("Phi 2", "phi"),
    Architecture("Phi 3", "phi3", PHI),
    Architecture("Phi 4 mini", "phi3", PHI | {"partial_rotary_factor": 0.5, "tie_word_embeddings": True}),
    Architecture("gpt-oss", "gpt_oss", LOCAL_EXPERTS | {"sliding_window": 16}),
    Architecture("GLM", "glm"),
    Architecture("GLM 4", "glm4"),
    Architecture("GLM 4 MoE", "glm4_moe", EXPERTS | ROUTED_EXPERTS | {"first_k_dense_replace": 1}),
    Architecture("DeepSeek V3", "deepseek_v3", LATENT_ATTENTION),
    Architecture("Granite", "granite"),
    Architecture("Granite 4 hybrid", "granitemoehybrid", MAMBA | GRANITE_HYBRID),
    Architecture("OLMo 2", "olmo2"),
    Architecture("OLMo 3", "olmo3", {"sliding_window": 16}),
    Architecture("SmolLM 3", "smollm3", {"no_rope_layer_interval": 2}),
    Architecture("Cohere 2", "cohere2", {"sliding_window": 16}),
    Architecture("StarCoder 2", "starcoder2"),
    Architecture("StableLM", "stablelm"),
    Architecture("GPT-2", "gpt2", sizes=GPT2_SIZES),
    Architecture("GPT-NeoX", "gpt_neox"),
    Architecture("LFM 2", "lfm2", LFM_2),
    Architecture("Falcon", "falcon", FALCON, sizes=FALCON_SIZES),
    Architecture("Falcon H1", "falcon_h1", MAMBA | {"mamba_d_ssm": 128}),
    Architecture("OPT", "opt", {"ffn_dim": 96, "word_embed_proj_dim": 64}),
    Architecture("Bloom", "bloom", {"n_head": 4}, sizes=BARE_SIZES),
    Architecture("Mamba", "mamba", {"state_size": 8}, sizes=BARE_SIZES),
    Architecture("Mamba 2", "mamba2", MAMBA_2, sizes=BARE_SIZES),
]
# As the families of today are published: a text model with an encoder of images. Their placeholders of images
# are beyond the ids that the tokenizer produces.
MULTIMODAL = [
    Architecture(
        "Qwen 3.5 with vision",
        "qwen3_5",
        LINEAR_ATTENTION,
        text_type="qwen3_5_text",
        whole={"vision_config": QWEN_VISION, "tie_word_embeddings": True},
    ),
    Architecture(
        "Gemma 3 with vision",
        "gemma3",
        {"sliding_window": 16, "query_pre_attn_scalar": 16},
        text_type="gemma3_text",
        whole={"vision_config": ENCODER | {"model_type": "siglip_vision_model"}, "mm_tokens_per_image": 4},
    ),
    Architecture(
        "Gemma 4 with vision",
        "gemma4",
        GEMMA_4 | {"use_bidirectional_attention": "vision"},
        text_type="gemma4_text",
        whole={"vision_config": GEMMA_4_ENCODER, "audio_config": None},
    ),
    Architecture(
        "Gemma 4 unified",
        "gemma4_unified",
        {"sliding_window": 16, "global_head_dim": 32},
        text_type="gemma4_unified_text",
        whole={"vision_config": {"mm_embed_dim": 32, "patch_size": 4}, "audio_config": None},
    ),
    Architecture(
        "Qwen 3.5 MoE with vision",
        "qwen3_5_moe",
        EXPERTS | SHARED_EXPERT | LINEAR_ATTENTION,
        text_type="qwen3_5_moe_text",
        whole={"vision_config": QWEN_VISION},
    ),
    Architecture(
        "Mistral 3 with vision",
        "mistral3",
        MINISTRAL_3,
        text_type="ministral3",
        whole={"vision_config": ENCODER | {"model_type": "pixtral"}, "tie_word_embeddings": False},
    ),
]


def find_architecture(name: str) -> Architecture:
    """Return the architecture with this name."""
    return next(known for known in [*ARCHITECTURES, *MULTIMODAL] if known.name == name)


def build_model(config: PreTrainedConfig, **options: Any) -> PreTrainedModel:
    """Return the model of a config with the random weights of a fixed seed."""
    torch.manual_seed(0)
    model: PreTrainedModel = auto_class(config).from_config(config, **options)
    return model


def write_model(architecture: Architecture, starter: Path, folder: Path) -> Path:
    """Write the model with random weights and the starter's tokenizer; return its folder."""
    tokenizer = AutoTokenizer.from_pretrained(starter)
    config = architecture.config(len(tokenizer), tokenizer.pad_token_id, tokenizer.eos_token_id)
    build_model(config).save_pretrained(folder)
    for name in TOKENIZER_FILES:
        shutil.copyfile(starter / name, folder / name)
    return folder
