"""What the JSON files of a model may say: no code, and no file or model elsewhere.

Code of a model's author never runs: `auto_map` and its like are removed, so that a loader falls back to the
class of its own library or reports that it has none. A value that would make a loader import a module, or
fetch code from a hub, is refused, because no ordinary model has one.
"""

import json
import re
from pathlib import Path
from typing import Any

# tokenizer_config.json lists every added token, and an index every tensor.
MAX_JSON_BYTES = 32 << 20
# Names of code in the model's own folder or on a hub.
CODE_KEYS = frozenset({"auto_map", "custom_generate", "custom_pipelines", "trust_remote_code"})
# `model_file` is a module that mlx-lm imports, `megatron_core` one that PEFT imports, and
# `transformers_weights` a file that transformers reads in place of safetensors.
REFUSED_KEYS = frozenset({"model_file", "megatron_config", "transformers_weights"})
# `_attn_implementation` and its like: a value with a slash is a kernel on a hub.
IMPLEMENTATION = re.compile(r".*_implementation(_internal)?")
# Prompt tuning loads a tokenizer by name, X-LoRA other adapters.
ADAPTER_TYPES = frozenset({"LORA"})
TEMPLATE_INCLUDE = re.compile(r"\{%[-+]?\s*(include|import|from|extends)\b")

# The names of the number of experts. That of DeepSeek comes before the one that is an alias of it there.
EXPERT_COUNTS = ("num_experts", "n_routed_experts", "num_local_experts")
# Layers that the engine hf can pad on the left.
PADDABLE_LAYERS = frozenset({"full_attention", "sliding_attention"})

Json = dict[str, Any]


class ModelFileRefused(ValueError):
    """A file of a model that no loader may read; the message completes "its file NAME … ."."""


def is_quantized_by_mlx(config: Any) -> bool:
    """Return whether a config of transformers is that of weights in the format of mlx-lm.

    mlx-lm names no method, by which transformers finds the format.
    """
    found = getattr(config, "quantization_config", None)
    return isinstance(found, dict) and "quant_method" not in found and {"bits", "group_size"} <= found.keys()


def list_unpaddable_layers(config: Json) -> list[str]:
    """Return the kinds of layers in a config.json, such as linear_attention, that do not ignore padding."""
    text = config.get("text_config") or config
    kinds = text.get("layer_types") if isinstance(text, dict) else None
    return sorted({str(kind) for kind in kinds} - PADDABLE_LAYERS) if isinstance(kinds, list) else []


def read_object(path: Path) -> Json:
    """Read a JSON object; raises ModelFileRefused or OSError."""
    value = _read_json(path)
    if not isinstance(value, dict):
        raise ModelFileRefused("is not a JSON object")
    return value


def read_list(path: Path) -> list[Any]:
    """Read a JSON array; raises ModelFileRefused or OSError."""
    value = _read_json(path)
    if not isinstance(value, list):
        raise ModelFileRefused("is not a JSON array")
    return value


def clean_config(name: str, config: Json) -> Json:
    """Return a config without names of code and of files elsewhere; raises ModelFileRefused."""
    cleaned: Json = _clean(config)
    # Without a type it may be mlx-lm's, which is converted with its weights.
    is_of_mlx = "peft_type" not in cleaned and "lora_parameters" in cleaned
    if name == "adapter_config.json" and not is_of_mlx and cleaned.get("peft_type") not in ADAPTER_TYPES:
        raise ModelFileRefused(
            f"has the peft_type {cleaned.get('peft_type')!r}; only LORA adapters are loaded"
        )
    if name == "tokenizer_config.json":
        # `vocab_file` and its like have precedence over the folder's own file of that kind.
        cleaned = {key: value for key, value in cleaned.items() if not key.endswith("_file")}
    return cleaned


def check_template(template: str) -> None:
    """Refuse a chat template that names another one; raises ModelFileRefused."""
    if (found := TEMPLATE_INCLUDE.search(template)) is not None:
        raise ModelFileRefused(
            f"has a chat template with {found[1]!r}; a template must be complete in itself"
        )


def _read_json(path: Path) -> Any:
    if path.stat().st_size > MAX_JSON_BYTES:
        raise ModelFileRefused(f"is larger than {MAX_JSON_BYTES >> 20} MiB")
    try:
        return json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ModelFileRefused(f"is not valid JSON: {error}") from error


def _clean(value: Any) -> Any:
    if isinstance(value, list):
        return [_clean(item) for item in value]
    if not isinstance(value, dict):
        return value
    for key, item in value.items():
        if key in REFUSED_KEYS and item:
            raise ModelFileRefused(f"sets {key}, which would load code or a file of its author's choice")
        if IMPLEMENTATION.fullmatch(key) and not _is_builtin(item):
            raise ModelFileRefused(f"sets {key} to {str(item)[:100]!r}; kernels of a hub are not loaded")
        if key == "chat_template":
            for template in _templates(item):
                check_template(template)
    return {
        key: _clean(item) for key, item in value.items() if key not in CODE_KEYS and key not in REFUSED_KEYS
    }


def _is_builtin(implementation: Any) -> bool:
    """Return whether an implementation, or each of a config with several parts, is a plain name."""
    if isinstance(implementation, dict):
        return all(_is_builtin(part) for part in implementation.values())
    return implementation is None or (
        isinstance(implementation, str) and re.fullmatch(r"[A-Za-z0-9_]*", implementation) is not None
    )


def _templates(value: Any) -> list[str]:
    """Return the templates of `chat_template`: one, or a list with names."""
    named = value if isinstance(value, list) else [value]
    found = [item.get("template") if isinstance(item, dict) else item for item in named]
    return [template for template in found if isinstance(template, str)]
