"""A small model of an architecture, to try its code without its weights."""

from copy import deepcopy
from typing import Any, Final

import torch
from transformers import PreTrainedConfig, PreTrainedModel

from trainers.modeling.model_config import EXPERT_COUNTS
from trainers.modeling.multimodal.architectures import auto_class

# About 1.2 GB in fp32, and two seconds to fill with random values.
MAX_PARAMETERS: Final = 300_000_000
# On a GPU: two layers of a model of 70 billion parameters, which are filled at once.
MAX_DEVICE_PARAMETERS: Final = 2_000_000_000
CPU: Final = torch.device("cpu")
VOCABULARY: Final = 128
MIN_LAYERS: Final = 2
MAX_EXPERTS: Final = 8


def build_small_model(
    model: PreTrainedConfig, attention: str, device: torch.device = CPU, dtype: torch.dtype = torch.float32
) -> PreTrainedModel | None:
    """Return a model with random weights and the first layers of each kind; None if that is too large."""
    config = deepcopy(model)
    text = config.get_text_config()
    # Layers of unlike sizes are not renumbered: then the model is reduced in its vocabulary only.
    is_uniform = not getattr(text, "is_heterogeneous", False)
    kinds = list(getattr(text, "layer_types", None) or ()) if is_uniform else []
    count = max([MIN_LAYERS, *(kinds.index(kind) + 1 for kind in set(kinds))])
    changes: dict[str, Any] = {
        name: VOCABULARY for name in ("vocab_size", "vocab_size_per_layer_input") if hasattr(text, name)
    }
    if is_uniform:
        changes["num_hidden_layers"] = min(count, text.num_hidden_layers)
    if kinds:
        changes["layer_types"] = kinds[:count]
    for name in EXPERT_COUNTS:
        if (experts := getattr(text, name, None)) is not None:
            changes[name] = min(experts, max(MAX_EXPERTS, getattr(text, "num_experts_per_tok", 0)))
    # Multimodal models replace the placeholders of images by the pad token, so that there must be one.
    changes |= {"pad_token_id": 0, "bos_token_id": None, "eos_token_id": None}
    for name, value in changes.items():
        # Some configs compute the kinds of their layers.
        if not isinstance(getattr(type(text), name, None), property):
            setattr(text, name, value)
    with torch.device("meta"):
        empty = auto_class(config).from_config(config, trust_remote_code=False)
    limit = MAX_PARAMETERS if device.type == "cpu" else MAX_DEVICE_PARAMETERS
    if sum(parameter.numel() for parameter in empty.parameters()) > limit:
        return None
    with torch.random.fork_rng(), device:
        torch.manual_seed(0)
        small: PreTrainedModel = auto_class(config).from_config(
            config, trust_remote_code=False, attn_implementation=attention, dtype=dtype
        )
    return small
