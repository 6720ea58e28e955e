"""The model to train, and its new adapter."""

import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Final, TypeVar

import torch
from peft import LoraConfig, PeftConfig, PeftModel, get_peft_model
from peft.tuners.tuners_utils import BaseTunerLayer
from torch.nn import Dropout
from transformers import PreTrainedModel, Trainer
from transformers.integrations import HfDeepSpeedConfig
from transformers.pytorch_utils import Conv1D

from trainers.configs.base import AdaptedModel
from trainers.configs.references import get_base_model
from trainers.configs.training import (
    SHARDED_STATE,
    FullTuning,
    LoraTuning,
    Parallelism,
    Precision,
    TrainingConfig,
)
from trainers.modeling.architecture import (
    MAMBA_KERNEL_LAYERS,
    MAMBA_TYPES,
    build_empty_model,
    name_experts,
)
from trainers.modeling.attention.choice import describe_package, pick_attention
from trainers.modeling.fused.compilation import check_compiler
from trainers.modeling.fused.kernels import check_kernels, use_kernels
from trainers.modeling.load import (
    Placement,
    check_adapter_folder,
    forward_dtype,
    load_adapter,
    load_base,
    load_config,
    pick_device,
)
from trainers.modeling.model_source import open_base
from trainers.modeling.multimodal.encoders import exclude_encoders, freeze_encoders, text_modules
from trainers.modeling.quantization.nf4 import quantization_config
from trainers.modeling.shared_weights import is_stored, share_weights
from trainers.runtime import run_dir as files
from trainers.runtime.events import EventWriter
from trainers.runtime.ranks import ranks_of_host

FP16_NOTICE = (
    "The GPU emulates bf16, so training is in fp16, whose largest value is 65,504; the loss is scaled, and "
    "steps whose gradients overflow are skipped. If the loss is not finite, set precision to fp32."
)

# Linear layers that all-linear leaves out: the router of experts in Gemma 4. Those of other models are not
# linear layers, so they have no adapter either.
ROUTERS: Final = (r".*\.router\.proj",)

T = TypeVar("T", bound=Trainer)


def load_policy(
    config: TrainingConfig, precision: Precision, run_dir: Path, events: EventWriter
) -> PreTrainedModel | PeftModel:
    """Load the model to train, onto the GPU unless it will be sharded.

    With full tuning, an adapter of the base is merged into it.
    A frozen base has the dtype of the forward pass. Trained weights are fp32: bf16 keeps 8 bits of a number,
    and rounds small updates away.
    """
    check_speed_settings(config)
    model_config = load_config(get_base_model(config.base))
    attention = pick_attention(config.attention, pick_device(config.queue), model_config, config.precision)
    if precision is Precision.fp16 and config.precision is Precision.auto:
        events.write_warning("precision_fp16", FP16_NOTICE)
    if (notice := describe_package(attention)) is not None:
        events.write_warning("attention_from_package", notice)
    dtype = _pick_dtype(config, precision)
    model = _load_base(config, dtype, attention, run_dir)
    name_experts(model.config)
    if (notice := use_kernels(model, config.kernels, pick_device(config.queue), dtype)) is not None:
        events.write_warning("kernels_used", notice)
    if isinstance(config.tuning, FullTuning):
        return freeze_encoders(model)
    if isinstance(config.base, AdaptedModel):
        model = load_adapter(model, config.base, is_trainable=True)
        warn_of_kept_settings(config.tuning, model.peft_config["default"], events)
    return model


def _pick_dtype(config: TrainingConfig, precision: Precision) -> torch.dtype:
    is_deepspeed = config.processes > 1 and config.parallelism in (Parallelism.zero2, Parallelism.zero3)
    # DeepSpeed casts the weights to bf16 before it copies them to fp32. It would do so on each rank.
    if isinstance(config.tuning, LoraTuning) or (is_deepspeed and precision is Precision.bf16):
        return forward_dtype(precision)
    return torch.float32


def _load_base(
    config: TrainingConfig, dtype: torch.dtype, attention: str | None, run_dir: Path
) -> PreTrainedModel:
    """Load the base, with an adapter merged into it if all weights are trained.

    The host's memory must not hold a copy for each rank.
    """
    base = get_base_model(config.base)
    quantization = quantization_config(config, dtype)
    is_sharded = config.processes > 1 and config.parallelism in SHARDED_STATE
    on_gpu = pick_device(config.queue).type == "cuda" and not is_sharded
    is_merged = isinstance(config.base, AdaptedModel) and isinstance(config.tuning, FullTuning)

    def load() -> PreTrainedModel:
        placement: Placement = "gpu" if on_gpu else "cpu"
        model = load_base(base, dtype, attention, quantization, placement)
        if not is_merged:
            return model
        assert isinstance(config.base, AdaptedModel)
        # PEFT freezes the base when it loads the adapter.
        return load_adapter(model, config.base, is_trainable=False).merge_and_unload().requires_grad_(True)

    load_empty = partial(load_base, base, dtype, attention, placement="meta")
    if partitions_while_loading(config):
        with _partition_weights(dtype):
            return load()
    if not is_sharded or quantization is not None or ranks_of_host() == 1:
        return load()
    if not is_merged and is_stored(Path(open_base(base)), load_empty()):
        return load()
    return share_weights(load, load_empty, run_dir / files.SCRATCH)


def check_speed_settings(config: TrainingConfig) -> None:
    """Raise DeviceUnavailable if this host lacks what compiles the model, or the kernels."""
    device = pick_device(config.queue)
    check_kernels(config.kernels, device)
    if config.compile:
        check_compiler(device)


def partitions_while_loading(config: TrainingConfig) -> bool:
    """Return whether DeepSpeed partitions each weight when it is loaded; else it first needs it on each GPU.

    It cannot merge an adapter into weights that are partitioned, nor quantize them.
    """
    is_lora = isinstance(config.tuning, LoraTuning)
    return (
        config.processes > 1
        and config.parallelism is Parallelism.zero3
        and (is_lora or not isinstance(config.base, AdaptedModel))
        and not (isinstance(config.tuning, LoraTuning) and config.tuning.quantization)
    )


@contextmanager
def _partition_weights(dtype: torch.dtype) -> Iterator[None]:
    """Let transformers load a model of which each process holds its shard, on its device (ZeRO-3).

    The first process reads the weights, and each has one module whole at a time.
    """
    # transformers finds it as long as it exists. The arguments of the Trainer create the one of the training.
    settings = HfDeepSpeedConfig(
        {
            "train_micro_batch_size_per_gpu": 1,
            "bf16": {"enabled": dtype is torch.bfloat16},
            "fp16": {"enabled": dtype is torch.float16},
            "zero_optimization": {"stage": 3},
        }
    )
    try:
        yield
    finally:
        del settings


def build_empty_policy(config: TrainingConfig) -> PreTrainedModel | PeftModel:
    """Return the model to train without reading or allocating its weights, to count its parameters."""
    model = build_empty_model(get_base_model(config.base))
    if isinstance(config.tuning, FullTuning):
        return freeze_encoders(model)
    if isinstance(config.base, AdaptedModel):
        adapter = PeftConfig.from_pretrained(check_adapter_folder(Path(config.base.adapter)))
        adapter.inference_mode = False
    else:
        adapter = new_adapter_config(config, model)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return get_peft_model(model, adapter)


def warn_of_kept_settings(tuning: LoraTuning, adapter: LoraConfig, events: EventWriter) -> None:
    """Warn if the adapter that is trained further has another rank or alpha than the config."""
    if (adapter.r, adapter.lora_alpha) != (tuning.rank, tuning.alpha):
        events.write_warning(
            "adapter_settings_kept",
            f"Training continues with the adapter's rank {adapter.r} and alpha {adapter.lora_alpha}; the "
            f"config's rank {tuning.rank} and alpha {tuning.alpha} have no effect. "
            "Remove them, or start from a base without an adapter.",
        )


def new_adapter_config(config: TrainingConfig, model: PreTrainedModel | PeftModel) -> LoraConfig | None:
    """Return the config of a new adapter; None with full tuning, or if the model has an adapter."""
    tuning = config.tuning
    if not isinstance(tuning, LoraTuning) or isinstance(model, PeftModel):
        return None
    return LoraConfig(
        r=tuning.rank,
        lora_alpha=tuning.alpha,
        lora_dropout=tuning.dropout,
        use_dora=tuning.dora,
        use_rslora=tuning.rslora,
        # GPT-2's layers store their weights transposed.
        fan_in_fan_out=any(isinstance(module, Conv1D) for module in model.modules()),
        **_choose_layers(tuning, model),
        task_type="CAUSAL_LM",
    )


def _choose_layers(tuning: LoraTuning, model: PreTrainedModel) -> dict[str, Any]:
    """Return the names of the layers to adapt, and those with such a name that stay as they are."""
    targets, encoders = tuning.target_modules, exclude_encoders(model)
    if targets != "all-linear":
        return {"target_modules": targets, "exclude_modules": encoders}
    if model.config.model_type in MAMBA_TYPES:
        return {"target_modules": targets, "exclude_modules": list(MAMBA_KERNEL_LAYERS)}
    layers = [
        name
        for name, module in text_modules(model).items()
        if isinstance(module, torch.nn.Linear | Conv1D) and module is not model.get_output_embeddings()
    ]
    routers = [pattern for pattern in ROUTERS if any(re.fullmatch(pattern, name) for name in layers)]
    if not routers and encoders is None:
        return {"target_modules": targets, "exclude_modules": None}
    excluded = "|".join([*routers, *([encoders] if encoders else [])])
    # With all-linear, the names of the excluded layers would be among those in the adapter's config.
    kept = {name.rpartition(".")[2] for name in layers if re.fullmatch(excluded, name) is None}
    return {"target_modules": sorted(kept), "exclude_modules": excluded}


def adapter_rank(config: TrainingConfig) -> int:
    """Return the rank of the adapter that is trained: that of the base's own adapter, or of a new one."""
    assert isinstance(config.tuning, LoraTuning)
    if not isinstance(config.base, AdaptedModel):
        return config.tuning.rank
    own = LoraConfig.from_pretrained(config.base.adapter)
    return int(max([own.r, *own.rank_pattern.values()]))


def cast_adapter_to_fp32(trainer: T) -> T:
    """Cast the adapter to fp32: TRL gives that of a quantized base bf16, which rounds small updates away.

    Under autocast its inputs stay as they are. Where DeepSpeed has partitioned the base, the adapter gets its
    dtype: DeepSpeed itself keeps an fp32 copy of what it trains.
    """
    parameters = list(trainer.model.parameters())
    dtype = next((parameter.dtype for parameter in parameters if is_partitioned(parameter)), torch.float32)
    for parameter in parameters:
        if parameter.requires_grad and not is_partitioned(parameter):
            parameter.data = parameter.data.to(dtype)
    skip_casts_under_autocast(trainer.model)
    return trainer


def is_partitioned(parameter: torch.nn.Parameter) -> bool:
    """Return whether this process holds a shard of a parameter, by DeepSpeed's ZeRO-3."""
    return hasattr(parameter, "ds_id")


class CastsOutsideAutocast:
    """True where PEFT must cast an adapter's input itself: autocast does it otherwise.

    Both together convert a bf16 input to fp32 and back, which changes no bit and keeps a copy for each
    adapted layer.
    """

    def __bool__(self) -> bool:
        return not (torch.is_autocast_enabled("cuda") or torch.is_autocast_enabled("cpu"))


def skip_casts_under_autocast(model: torch.nn.Module) -> None:
    """Let PEFT cast the inputs of adapters only outside autocast, as in generation.

    Adapters with dropout keep the casts, since dropout in bf16 draws other masks, and so do those with DoRA,
    whose norms would be computed in bf16.
    """
    for module in model.modules():
        dropouts = getattr(module, "lora_dropout", {}).values()
        is_plain = not any(isinstance(part, Dropout) for part in dropouts)
        if (
            isinstance(module, BaseTunerLayer)
            and is_plain
            and not any(getattr(module, "use_dora", {}).values())
        ):
            module.cast_input_dtype_enabled = CastsOutsideAutocast()
