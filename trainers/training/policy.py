"""The model to train, and the adapter that is put on it."""

from typing import TypeVar

import torch
from peft import LoraConfig, PeftModel
from transformers import PreTrainedModel, Trainer

from trainers.configs.training import FullTuning, LoraTuning, Precision, TrainingConfig
from trainers.modeling.load import forward_dtype, load_model, pick_attention, pick_device
from trainers.modeling.quantization import quantization_config
from trainers.runtime.events import EventWriter

T = TypeVar("T", bound=Trainer)


def load_policy(
    config: TrainingConfig, precision: Precision, report: EventWriter
) -> PreTrainedModel | PeftModel:
    """The model to train, on the CPU; with full tuning an adapter is merged into the weights.

    A frozen base is kept in the forward pass's format; fp32 does not round small updates away.
    """
    is_lora = isinstance(config.tuning, LoraTuning)
    dtype = forward_dtype(precision) if is_lora else torch.float32
    attention = pick_attention(config.attention, pick_device(config.queue))
    model = load_model(
        config.base,
        dtype,
        is_trainable=is_lora,
        attention=attention,
        quantization=quantization_config(config, dtype),
    )
    if not isinstance(model, PeftModel):
        return model
    if isinstance(config.tuning, FullTuning):
        # PEFT froze the base when it put the adapter on.
        return model.merge_and_unload().requires_grad_(True)
    adapter = model.peft_config["default"]
    if (adapter.r, adapter.lora_alpha) != (config.tuning.rank, config.tuning.alpha):
        report.warning(
            "adapter_settings_kept",
            f"Training goes on with the adapter's rank {adapter.r} and alpha {adapter.lora_alpha}, "
            f"not with rank {config.tuning.rank} and alpha {config.tuning.alpha} of the config.",
        )
    return model


def new_adapter_config(config: TrainingConfig, model: PreTrainedModel | PeftModel) -> LoraConfig | None:
    """The adapter that is still to be put on the model; None where there is one, or none is asked for."""
    tuning = config.tuning
    if not isinstance(tuning, LoraTuning) or isinstance(model, PeftModel):
        return None
    return LoraConfig(
        r=tuning.rank,
        lora_alpha=tuning.alpha,
        lora_dropout=tuning.dropout,
        use_dora=tuning.dora,
        use_rslora=tuning.rslora,
        target_modules=tuning.target_modules,
        task_type="CAUSAL_LM",
    )


def cast_adapter_to_fp32(trainer: T) -> T:
    """TRL keeps the adapter of a quantised base in bf16, whose 8 bits lose small updates: make it fp32."""
    for parameter in trainer.model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    return trainer
