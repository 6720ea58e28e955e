"""The architectures of multimodal models whose text model is trained, and the class that loads each."""

from typing import Any, Final

from transformers import AutoModelForCausalLM, AutoModelForImageTextToText, PreTrainedConfig

# A test shows for these that the text model alone is trained, merged and served.
MULTIMODAL_ARCHITECTURES: Final = frozenset(
    {"gemma3", "gemma4", "gemma4_unified", "mistral3", "qwen3_5", "qwen3_5_moe"}
)


def is_multimodal(config: PreTrainedConfig) -> bool:
    """Return whether the model contains encoders next to its text model."""
    return config.model_type in MULTIMODAL_ARCHITECTURES


def auto_class(config: PreTrainedConfig) -> Any:
    """Return the class of transformers that loads the whole model."""
    return AutoModelForImageTextToText if is_multimodal(config) else AutoModelForCausalLM


def text_architecture(config: PreTrainedConfig) -> str:
    """Return the type of the text model: of a multimodal model, that of the one it contains."""
    return str(config.get_text_config().model_type if is_multimodal(config) else config.model_type)


def list_head_widths(config: PreTrainedConfig) -> set[int]:
    """Return the widths of the heads of attention, which differ between the layers of some text models."""
    text = config.get_text_config()
    layers = text.per_layer_config if getattr(text, "is_heterogeneous", False) else [text]
    heads = [
        (getattr(layer, "head_dim", None), getattr(layer, "num_attention_heads", None)) for layer in layers
    ]
    return {width or text.hidden_size // count for width, count in heads if width or count}
