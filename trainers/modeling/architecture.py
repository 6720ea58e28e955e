"""What an architecture supports: attention, the layers that LoRA adapts, and the engine hf.

All of it is found on an empty model, on torch's `meta` device, so that a stage fails in its first second
instead of after the weights of the model, or an earlier stage of the job, have taken their time.
"""

from collections.abc import Sequence
from typing import Final, cast

import torch
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.pytorch_utils import Conv1D

from trainers.configs.training import Attention
from trainers.modeling.attention.varlen import explain_varlen_refusal
from trainers.modeling.load import ModelUnsupported, load_config
from trainers.modeling.model_config import EXPERT_COUNTS, PADDABLE_LAYERS, is_quantized_by_mlx
from trainers.modeling.multimodal.architectures import (
    MULTIMODAL_ARCHITECTURES,
    auto_class,
    is_multimodal,
    list_head_widths,
)
from trainers.modeling.multimodal.encoders import text_modules
from trainers.runtime.errors import ConfigInvalid

# PEFT refuses to adapt these layers of models with Mamba blocks: their kernels read the weights directly.
MAMBA_TYPES: Final = frozenset({"falcon_h1", "falcon_mamba", "mamba", "mamba2", "nemotron_h"})
MAMBA_KERNEL_LAYERS: Final = ("conv1d", "out_proj")
MAX_LISTED_LAYERS: Final = 30
# FlashAttention has no kernel for wider ones.
MAX_FLASH_HEAD_WIDTH: Final = 256


def list_attention(model: PreTrainedConfig) -> list[Attention]:
    """Return the kinds of attention that a model has, by its classes and its config."""
    kind = find_model_class(model)
    declared: Sequence[str] | None = getattr(kind, "_compatible_flash_implementations", None)
    # The full-attention layers of Gemma 4 have heads of 512.
    fits_flash = kind._supports_flash_attn and max(list_head_widths(model), default=0) <= MAX_FLASH_HEAD_WIDTH
    flash = [
        name
        for name in (Attention.flash_attention_2, Attention.flash_attention_3)
        if fits_flash and (declared is None or name.value in declared)
    ]
    varlen = [] if explain_varlen_refusal(model) else [Attention.varlen]
    return [Attention.eager, *([Attention.sdpa] if kind._supports_sdpa else []), *varlen, *flash]


def find_model_class(model: PreTrainedConfig) -> type[PreTrainedModel]:
    """Return the class of a model that can be trained to complete text; raises ModelUnsupported."""
    text = model.get_text_config()
    if text is not model and not is_multimodal(model):
        known = ", ".join(sorted(MULTIMODAL_ARCHITECTURES))
        raise ModelUnsupported(
            f"The architecture {model.model_type} has other parts than its text model {text.model_type}, and "
            f"no test shows that this can be trained within it. It is shown for {known}.",
            "Choose a model of one of these architectures, or one of text alone.",
        )
    return _find_text_class(model)


def _find_text_class(model: PreTrainedConfig) -> type[PreTrainedModel]:
    """Return the class of a model that completes text; raises ModelUnsupported if there is none."""
    if is_multimodal(model):
        return cast(type[PreTrainedModel], MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING[type(model)])
    found = MODEL_FOR_CAUSAL_LM_MAPPING.get(type(model), None)
    if found is None:
        raise ModelUnsupported(
            f"The architecture {model.model_type} is not a causal language model, so it cannot be trained to "
            "complete text.",
            "Choose a decoder model, such as Llama, Qwen, Mistral or Gemma.",
        )
    kind: type[PreTrainedModel] = found[0] if isinstance(found, tuple) else found
    return kind


def build_empty_model(base: str, attention: str | None = None) -> PreTrainedModel:
    """Return the model without reading or allocating weights; callers may change it."""
    config = load_config(base)
    with torch.device("meta"):
        model: PreTrainedModel = auto_class(config).from_config(
            config, trust_remote_code=False, attn_implementation=attention
        )
    return model


def list_layers(model: PreTrainedModel) -> list[str]:
    """Return the names of the layers that an adapter can name, without those of embeddings and norms."""
    names = {
        name.rpartition(".")[2]
        for name, module in text_modules(model).items()
        if isinstance(module, torch.nn.Linear | Conv1D)
    }
    return sorted(names - {"lm_head"})


def explain_hf_refusal(model: PreTrainedConfig, max_model_len: int | None) -> str | None:
    """Return why the engine hf does not serve an architecture, to complete "The model …", or None.

    It pads prompts on the left, which recurrent layers and chunked attention do not ignore.
    """
    if is_quantized_by_mlx(model):
        return "is quantized in the format of mlx-lm, which torch does not read; use mlx"
    text = model.get_text_config()
    kinds = set(getattr(text, "layer_types", None) or []) - PADDABLE_LAYERS
    if kinds or _find_text_class(model)._is_stateful:
        found = ", ".join(sorted(kinds)) or "recurrent"
        return f"has {found} layers, which the engine hf cannot batch; use vllm"
    if max_model_len is None and getattr(text, "max_position_embeddings", None) is None:
        return "has no context length in its config; set options.max_model_len"
    return None


def check_mergeable(base: str) -> None:
    """Raise ConfigInvalid for a quantized base: the sum would be rounded to its few bits again."""
    if getattr(load_config(base), "quantization_config", None) is not None:
        raise ConfigInvalid(
            f"The base {base} is quantized, so an adapter cannot be merged into it.",
            "Use the base that it was quantized from, or serve the adapter on this one.",
        )


def name_experts(model: PreTrainedConfig) -> None:
    """Let TRL read the number of experts, which it only knows as `num_experts`, to balance their load.

    A model of an architecture with experts may have none; then there is nothing to balance.
    """
    text = model.get_text_config()
    if not hasattr(text, "num_experts"):
        name = next((name for name in EXPERT_COUNTS if hasattr(text, name)), None)
        if name is None:
            return
        # The way in which Mixtral's config does it; the name in config.json stays the same.
        type(text).attribute_map = {**type(text).attribute_map, "num_experts": name}
    if not text.num_experts and hasattr(text, "router_aux_loss_coef"):
        text.router_aux_loss_coef = 0.0
