"""Config values for mlx-lm, so that it computes the same as transformers.

mlx-lm reads config.json with defaults of its own that differ: without a top-level `rope_theta`, which
transformers 5 no longer writes, it uses 1e6 for Qwen2; without `tie_word_embeddings` it ties Llama. Both give
wrong completions without a warning. So mlx-lm gets every value as transformers understands it.
"""

import inspect
from collections.abc import Mapping
from typing import Any

from mlx_lm.utils import _get_classes

from trainers.modeling.load import ModelUnsupported

# Keys whose presence alone means something to mlx-lm, or that it reads from the file itself.
ACTIVATION_KEYS = ("hidden_act", "hidden_activation", "activation_function")
# Names of one function.
TANH_GELU = {"gelu_new", "gelu_pytorch_tanh", "gelu_fast"}
FILE_ONLY_KEYS = {"quantization_config", "quantization", "text_config", "vision_config", "model_type"}
Json = dict[str, Any]


def complete_config(path: str, file_config: Json, config: Any) -> Json:
    """Return the values that replace or complete those of config.json for mlx-lm.

    Args:
        path: The model, for messages.
        file_config: The contents of config.json.
        config: The config as transformers reads it.

    Raises:
        ModelUnsupported: mlx-lm lacks the architecture, or a value that it needs.
    """
    text = config.get_text_config()
    values = {key: value for key, value in text.to_dict().items() if key not in FILE_ONLY_KEYS}
    if text is config:
        supported = supported_keys(path, file_config)
        check_activation(path, config, supported)
        values |= rope_values(path, values, supported)
        return {key: value for key, value in values.items() if key in supported}
    # An architecture with several parts reads the language model's values from a part of its own.
    text_values = {**file_config.get("text_config", {}), **values}
    return {
        "text_config": text_values | rope_values(path, text_values, None),
        "tie_word_embeddings": config.tie_word_embeddings,
    }


def supported_keys(path: str, file_config: Json) -> set[str]:
    """Return the config keys of mlx-lm's class. Raises ModelUnsupported for an unknown architecture."""
    try:
        return set(inspect.signature(_get_classes(file_config)[1]).parameters)
    except ValueError as error:
        raise _unsupported(f"{path} is a {file_config['model_type']}, which mlx-lm does not have.") from error


def check_activation(path: str, config: Any, supported: set[str]) -> None:
    """Raise ModelUnsupported for another activation than that of the architecture, unless mlx-lm reads it.

    Most of mlx-lm's networks have a fixed activation, whatever the config names.
    """
    usual = type(config)()
    for key in ACTIVATION_KEYS:
        found, expected = getattr(config, key, None), getattr(usual, key, None)
        is_same = found == expected or {found, expected} <= TANH_GELU
        if key not in supported and not is_same:
            raise _unsupported(
                f"{path} has the {key} {found!r}, and mlx-lm computes {expected!r} for a {config.model_type}."
            )


def rope_values(path: str, values: Json, supported: set[str] | None) -> Json:
    """Return the rotary embedding's values under mlx-lm's keys, `rope_theta` and `rope_scaling`."""
    parameters: Json = values.get("rope_parameters") or {}
    if not parameters:
        return {}
    if supported is not None and not supported & {"rope_theta", "rope_parameters"}:
        raise _unsupported(f"mlx-lm does not read rope_theta for {path}; its completions would be wrong.")
    is_partial = parameters.get("partial_rotary_factor", 1) != 1
    if is_partial and supported is not None and not supported & {"partial_rotary_factor", "rope_parameters"}:
        raise _unsupported(f"mlx-lm rotates whole heads of {path}, of which the model rotates a part.")
    if all(isinstance(part, Mapping) for part in parameters.values()):
        return rope_values_by_layer(path, values, parameters, supported)
    return uniform_rope_values(parameters)


def uniform_rope_values(parameters: Json) -> Json:
    """Return the values of one rotary embedding for all layers."""
    values = {"rope_theta": parameters["rope_theta"], "rope_scaling": None, "rope_parameters": parameters}
    if "partial_rotary_factor" in parameters:
        values["partial_rotary_factor"] = parameters["partial_rotary_factor"]
    kind = parameters.get("rope_type", "default")
    if kind != "default":
        values["rope_scaling"] = {**parameters, "type": kind, "rope_type": kind}
    if kind == "longrope":
        # mlx-lm uses the long factors for every prompt, transformers only for those beyond the original
        # context. `exact_context_length` limits the context accordingly.
        values["rope_scaling"]["long_factor"] = parameters["short_factor"]
        values["original_max_position_embeddings"] = parameters["original_max_position_embeddings"]
    return values


def rope_values_by_layer(path: str, values: Json, parameters: Json, supported: set[str] | None) -> Json:
    """Return the values of Gemma 3: one base for layers with a sliding window, and one for the others."""
    if supported is not None and "rope_parameters" in supported:
        return {}
    layer_types = values["layer_types"]
    period = [*layer_types, "full_attention"].index("full_attention") + 1
    is_full = [(index + 1) % period == 0 for index in range(len(layer_types))]
    regular = any(is_full) and is_full == [kind == "full_attention" for kind in layer_types]
    sliding = parameters.get("sliding_attention", {})
    if (supported is not None and "rope_local_base_freq" not in supported) or not regular:
        raise _unsupported(
            f"{path} has a rotary embedding for each kind of layer, which mlx-lm does not read for it."
        )
    if sliding.get("rope_type", "default") != "default":
        raise _unsupported(
            f"{path} scales the rotary embedding of its sliding layers, which mlx-lm does not support."
        )
    full_values = uniform_rope_values(parameters["full_attention"])
    return {
        **full_values,
        "rope_local_base_freq": sliding["rope_theta"],
        "sliding_window_pattern": period,
    }


def exact_context_length(config: Any, has_sliding_cache: bool) -> int | None:
    """Return the tokens for which mlx-lm computes the same as transformers, or None for all."""
    text = config.get_text_config()
    parameters = text.to_dict().get("rope_parameters") or {}
    limits = []
    if parameters.get("rope_type") == "longrope":
        limits.append(parameters["original_max_position_embeddings"])
    window = getattr(text, "sliding_window", None)
    layer_types = getattr(text, "layer_types", None)
    if window and not has_sliding_cache and (layer_types is None or "sliding_attention" in layer_types):
        limits.append(window)
    return min(limits, default=None)


def _unsupported(message: str) -> ModelUnsupported:
    return ModelUnsupported(message, "Train it with the backend torch, or serve it with hf or vllm.")
