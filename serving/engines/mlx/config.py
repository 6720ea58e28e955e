"""What mlx-lm is told of a model, so that it computes what transformers would.

mlx-lm reads config.json with defaults of its own, which differ: without a top-level `rope_theta`, where
transformers 5 no longer writes it, a Qwen2 is rotated by 1e6; without `tie_word_embeddings` a Llama is tied.
Both answer wrongly without a word. So it gets every value as transformers understands it.
"""

import inspect
from collections.abc import Mapping
from typing import Any

from mlx_lm.utils import _get_classes

from serving.engines.decoding.base import ModelNotLoadable

# What mlx-lm decides by the presence of a key, or reads from the file itself.
LEFT_TO_THE_FILE = {"quantization_config", "quantization", "text_config", "vision_config", "model_type"}
Json = dict[str, Any]


def complete_config(path: str, written: Json, config: Any) -> Json:
    """Values for mlx-lm beside and instead of those `written` in config.json; raises ModelNotLoadable."""
    text = config.get_text_config()
    values = {key: value for key, value in text.to_dict().items() if key not in LEFT_TO_THE_FILE}
    if text is config:
        known = arguments_of(path, written)
        return {key: value for key, value in (values | rope(path, values, known)).items() if key in known}
    # An architecture of several parts reads the language model's values from a part of its own.
    own = {**written.get("text_config", {}), **values}
    return {"text_config": own | rope(path, own, None), "tie_word_embeddings": config.tie_word_embeddings}


def arguments_of(path: str, written: Json) -> set[str]:
    """What mlx-lm's class of this architecture can be told; raises ModelNotLoadable where it has none."""
    try:
        return set(inspect.signature(_get_classes(written)[1]).parameters)
    except ValueError as fault:
        raise ModelNotLoadable(f"{path} is a {written['model_type']}, which mlx-lm does not have.") from fault


def rope(path: str, values: Json, known: set[str] | None) -> Json:
    """Positions in the words that mlx-lm knows: `rope_theta` and `rope_scaling` on the top level."""
    parameters: Json = values.get("rope_parameters") or {}
    if not parameters:
        return {}
    if known is not None and not known & {"rope_theta", "rope_parameters"}:
        raise ModelNotLoadable(f"mlx-lm does not read rope_theta for {path}; its answers would be wrong.")
    if all(isinstance(part, Mapping) for part in parameters.values()):
        return rope_by_layer(path, values, parameters, known)
    return one_rope(parameters)


def one_rope(parameters: Json) -> Json:
    """The same positions in every layer."""
    told = {"rope_theta": parameters["rope_theta"], "rope_scaling": None, "rope_parameters": parameters}
    if "partial_rotary_factor" in parameters:
        told["partial_rotary_factor"] = parameters["partial_rotary_factor"]
    kind = parameters.get("rope_type", "default")
    if kind != "default":
        told["rope_scaling"] = {**parameters, "type": kind, "rope_type": kind}
    if kind == "longrope":
        # mlx-lm takes the long factors for every prompt, transformers only for those beyond the original
        # context; `longest_exact_context` keeps answers within it.
        told["rope_scaling"]["long_factor"] = parameters["short_factor"]
        told["original_max_position_embeddings"] = parameters["original_max_position_embeddings"]
    return told


def rope_by_layer(path: str, values: Json, parameters: Json, known: set[str] | None) -> Json:
    """Positions of Gemma 3: one base for layers with a window and one for the others."""
    if known is not None and "rope_parameters" in known:
        return {}
    kinds = values["layer_types"]
    every = [*kinds, "full_attention"].index("full_attention") + 1
    whole = [(place + 1) % every == 0 for place in range(len(kinds))]
    regular = any(whole) and whole == [kind == "full_attention" for kind in kinds]
    local = parameters.get("sliding_attention", {})
    if (known is not None and "rope_local_base_freq" not in known) or not regular:
        raise ModelNotLoadable(f"{path} has positions by kind of layer, which mlx-lm does not read for it.")
    if local.get("rope_type", "default") != "default":
        raise ModelNotLoadable(f"{path} scales the positions of its sliding layers, which mlx-lm cannot.")
    told = one_rope(parameters["full_attention"])
    return {**told, "rope_local_base_freq": local["rope_theta"], "sliding_window_pattern": every}


def exact_context_length(config: Any, slides: bool) -> int | None:
    """Tokens within which mlx-lm computes what transformers does; None for the whole context."""
    text = config.get_text_config()
    parameters = text.to_dict().get("rope_parameters") or {}
    bounds = []
    if parameters.get("rope_type") == "longrope":
        bounds.append(parameters["original_max_position_embeddings"])
    window = getattr(text, "sliding_window", None)
    kinds = getattr(text, "layer_types", None)
    if window and not slides and (kinds is None or "sliding_attention" in kinds):
        bounds.append(window)
    return min(bounds, default=None)
