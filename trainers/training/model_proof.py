"""Proof that a model can be trained with the settings of a stage, in its first second and without weights.

It runs the code that the stage itself runs, on an empty model: attention, precision, and the injection of the
adapter. What it finds is an error that names the field and the values that are possible.
"""

import warnings
from pathlib import Path

from peft import PeftConfig, get_peft_model
from transformers import PreTrainedModel

from trainers.configs.base import AdaptedModel
from trainers.configs.references import get_base_model
from trainers.configs.stages.sft import SftConfig
from trainers.configs.training import LoraTuning, TrainingConfig
from trainers.modeling.architecture import (
    MAX_LISTED_LAYERS,
    build_empty_model,
    list_layers,
)
from trainers.modeling.attention.choice import pick_attention
from trainers.modeling.load import (
    ModelUnsupported,
    check_torch_format,
    load_config,
    pick_device,
    pick_precision,
)
from trainers.runtime.errors import ConfigInvalid, first_line, join_names
from trainers.training.packing_proof import prove_packing
from trainers.training.policy import new_adapter_config

# What transformers and PEFT raise for a model or a setting that they do not support.
_LIBRARY_ERRORS = (
    ValueError,
    TypeError,
    KeyError,
    AttributeError,
    NotImplementedError,
    RuntimeError,
    ImportError,
)


class TargetModulesMissing(ConfigInvalid):
    """The model has no layers with these names."""


class TuningUnsupported(ConfigInvalid):
    """PEFT cannot adapt the model with these settings."""


def prove_model(config: TrainingConfig) -> None:
    """Raise an error if the model cannot be trained with the settings.

    Raises the errors of `load_config`, `pick_attention`, `pick_precision` and `prove_packing`,
    ModelUnsupported, TargetModulesMissing and TuningUnsupported.
    """
    base, device = get_base_model(config.base), pick_device(config.queue)
    model_config = load_config(base)
    attention = pick_attention(config.attention, device, model_config, config.precision)
    if not config.uses_mlx:
        check_torch_format(base, model_config)
        pick_precision(config.precision, device)
    if isinstance(config, SftConfig):
        prove_packing(config, model_config)
    try:
        model = build_empty_model(base, attention)
    except _LIBRARY_ERRORS as error:
        raise ModelUnsupported(
            f"The model {base} cannot be built with {attention} attention: {first_line(error)}",
            "Correct its config.json, or set attention to another value.",
        ) from error
    if isinstance(config.tuning, LoraTuning):
        if isinstance(config.base, AdaptedModel):
            _check_trainable_adapter(config.base)
        else:
            _prove_adapter(config, config.tuning, model)


def _prove_adapter(config: TrainingConfig, tuning: LoraTuning, model: PreTrainedModel) -> None:
    """Inject the adapter into the empty model; raises TargetModulesMissing or TuningUnsupported."""
    layers = list_layers(model)
    names = [name for name, _ in model.named_modules()]
    wanted = [] if tuning.target_modules == "all-linear" else tuning.target_modules
    missing = {name for name in wanted if not any(f".{layer}".endswith(f".{name}") for layer in names)}
    adapter = new_adapter_config(config, model)
    assert adapter is not None, "the config has LoRA tuning and the base has no adapter"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            adapted = get_peft_model(model, adapter)
    except _LIBRARY_ERRORS as error:
        if missing:
            raise _missing(missing, model, layers) from error
        raise TuningUnsupported(
            f"An adapter with these settings cannot be added to a model of type {model.config.model_type}: "
            f"{first_line(error)}",
            f"Change tuning. The layers of the model are {_join(layers)}.",
        ) from error
    # PEFT ignores a name without a layer if others have one. It renames those of fused experts.
    missing &= set(adapted.peft_config["default"].target_modules or ())
    if missing:
        raise _missing(missing, model, layers)


def _missing(names: set[str], model: PreTrainedModel, layers: list[str]) -> TargetModulesMissing:
    have = "does not have a layer" if len(names) == 1 else "does not have layers"
    return TargetModulesMissing(
        f"The model of type {model.config.model_type} {have} named {_join(sorted(names))} "
        f"(tuning.target_modules). Its layers are {_join(layers)}.",
        "Name some of these layers, or set target_modules to all-linear.",
    )


def _check_trainable_adapter(model: AdaptedModel) -> None:
    """Raise ModelUnsupported for an adapter with parts that TRL's loss does not train."""
    adapter = PeftConfig.from_pretrained(str(Path(model.adapter)))
    targets = getattr(adapter, "target_modules", None) or ()
    parts = {
        "an adapter on lm_head": not isinstance(targets, str) and "lm_head" in targets,
        "modules_to_save": bool(getattr(adapter, "modules_to_save", None)),
        "trainable_token_indices": bool(getattr(adapter, "trainable_token_indices", None)),
    }
    found = [name for name, is_used in parts.items() if is_used]
    if found:
        raise ModelUnsupported(
            f"The adapter {model.adapter} has {_join(found)}, which cannot be trained further.",
            "Merge it into its base with the stage merge, and train a new adapter on the result.",
        )


def _join(names: list[str]) -> str:
    return join_names(names, MAX_LISTED_LAYERS)
