"""Estimates of whether a training stage fits into the memory of hosts, and settings with which it fits."""

from collections.abc import Container, Iterable, Iterator
from dataclasses import replace
from typing import Any

import torch
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from trainers.configs.references import get_base_model
from trainers.configs.stages.distill import DistillConfig
from trainers.configs.stages.preflight import HostMemory
from trainers.configs.stages.sft import SftConfig
from trainers.configs.training import (
    Attention,
    FullTuning,
    LoraTuning,
    Optimizer,
    Parallelism,
    Precision,
    Quantization,
    TrainingConfig,
)
from trainers.modeling.architecture import build_empty_model, list_attention
from trainers.modeling.load import ModelReference
from trainers.modeling.multimodal.encoders import list_encoders, text_modules
from trainers.preflight.memory.activations import PassFormat
from trainers.preflight.memory.engine_share import explain_small_share
from trainers.preflight.memory.host import count_host_bytes, local_host, usable_bytes
from trainers.preflight.memory.layer_sizes import (
    gates_attention,
    list_decoder_layers,
    measure_gated_delta,
    measure_layer_sizes,
    measure_per_layer_input,
)
from trainers.preflight.memory.model import PROGRAM_BYTES, count_memory_parts, engine_bytes, has_engine
from trainers.preflight.memory.shape import BF16_BYTES, FP32_BYTES, MemorySettings, ModelShape
from trainers.preflight.memory.unified import count_unified_parts


def estimate_memory(
    config: TrainingConfig, hosts: list[HostMemory], longest_tokens: int
) -> dict[str, Any] | None:
    """Return the bytes that a stage needs, and for each host a plan that fits or the missing bytes.

    None if the sizes of the model's layers are unknown. A plan keeps the rows per optimizer step.
    `longest_tokens` is the length of the longest sequence.
    """
    shape = _stage_shape(config)
    if shape is None:
        return None
    hosts = hosts or [local_host(config)]
    return {
        "parameters": shape.parameters,
        "adapter_parameters": shape.adapter_parameters,
        "longest_tokens": longest_tokens,
        "hosts": [_estimate_for_host(config, shape, host, longest_tokens) for host in hosts],
    }


def model_shape(base: ModelReference, tuning: LoraTuning | FullTuning) -> ModelShape | None:
    """Return the sizes of a base, without reading or allocating weights; None for an unknown kind of layers.

    Layers without attention, such as Mamba's, have sizes of other kinds, for which there is no formula.
    """
    return measure_shape(build_empty_model(get_base_model(base)), tuning)


def measure_shape(model: PreTrainedModel, tuning: LoraTuning | FullTuning) -> ModelShape | None:
    """Return the sizes of a model; see `model_shape`."""
    text = model.config.get_text_config()
    heads = getattr(text, "num_attention_heads", None)
    if not isinstance(heads, int):
        return None
    linears = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear | Conv1D) and module is not model.get_output_embeddings()
    }
    linear_parameters = sum(module.weight.numel() for module in linears.values())
    total = sum(parameter.numel() for parameter in model.parameters())
    layers = list_decoder_layers(model)
    return ModelShape(
        layers=text.num_hidden_layers,
        hidden=text.hidden_size,
        heads=heads,
        vocabulary=text.vocab_size,
        linear_parameters=linear_parameters,
        other_parameters=total - linear_parameters,
        adapter_parameters=_adapter_parameters(tuning, linears, tuple(text_modules(model))),
        frozen_parameters=_count_frozen(model),
        has_fused_attention=Attention.sdpa in list_attention(model.config),
        **measure_layer_sizes(model, layers),
        **_count_norms(layers, text.hidden_size),
        has_gated_mlp=any("gate" in name for name in linears),
        gates_attention=gates_attention(layers),
        per_layer_input=measure_per_layer_input(layers),
        gated_delta=measure_gated_delta(layers),
    )


def _count_norms(layers: list[torch.nn.Module], hidden: int) -> dict[str, Any]:
    """Return how often a layer normalizes its hidden state, and whether it normalizes queries and keys."""
    if not layers:
        return {}
    # The last layer is one with attention, where others have none.
    norms = {
        name: module.weight.numel()
        for name, module in layers[-1].named_modules()
        if type(module).__name__.endswith("Norm") and getattr(module, "weight", None) is not None
    }
    of_queries = [name for name in norms if name.rpartition(".")[2].startswith(("q_", "k_", "query", "key"))]
    of_hidden = [name for name, size in norms.items() if size == hidden and name not in of_queries]
    of_values = any(name.endswith("v_norm") for layer in layers for name, _ in layer.named_modules())
    return {
        "norms": len(of_hidden),
        "normalizes_queries": bool(of_queries),
        "normalizes_values": of_values,
    }


def _count_frozen(model: PreTrainedModel) -> int:
    encoders = (model.get_submodule(name) for name in list_encoders(model))
    return sum(parameter.numel() for encoder in encoders for parameter in encoder.parameters())


def _stage_shape(config: TrainingConfig) -> ModelShape | None:
    """Return the sizes of the stage's base, with those of its teacher if it has one."""
    shape = model_shape(config.base, config.tuning)
    if shape is None or not isinstance(config, DistillConfig):
        return shape
    teacher = build_empty_model(get_base_model(config.teacher))
    return replace(shape, teacher_parameters=sum(parameter.numel() for parameter in teacher.parameters()))


def _adapter_parameters(
    tuning: LoraTuning | FullTuning, linears: dict[str, Any], adaptable: Container[str]
) -> int:
    if not isinstance(tuning, LoraTuning):
        return 0
    adapted = [
        module.weight.shape
        for name, module in linears.items()
        if name in adaptable
        and (tuning.target_modules == "all-linear" or name.rpartition(".")[2] in tuning.target_modules)
    ]
    matrices = sum(tuning.rank * sum(shape) for shape in adapted)
    magnitudes = sum(shape[0] for shape in adapted) if tuning.dora else 0
    return int(matrices + magnitudes)


def choose_recomputation(config: TrainingConfig, host: HostMemory, longest_tokens: int) -> int | None:
    """Return every how many layers one must be recomputed so that the stage fits; None for no layer.

    1, for all layers, also if the stage does not fit even then; None also if the memory is unknown.
    """
    shape = _stage_shape(config)
    if shape is None:
        return None
    requested, usable = _requested_settings(config, host), usable_bytes(host)
    # MLX recomputes all blocks or none.
    choices: Iterable[int] = [1] if config.uses_mlx else range(shape.layers, 0, -1)
    candidates: list[int | None] = [None, *choices]
    for every in candidates:
        plan = requested.replace(recomputed_every=every)
        if _total_bytes(config, shape, plan, host, longest_tokens) <= usable:
            return every
    return 1


def _requested_settings(config: TrainingConfig, host: HostMemory) -> MemorySettings:
    assert config.micro_batch_size is not None
    parallelism = Parallelism.ddp if config.parallelism is Parallelism.auto else config.parallelism
    return MemorySettings(
        micro_batch_size=config.micro_batch_size,
        recomputed_every=1 if config.activation_checkpointing is True else None,
        quantized=isinstance(config.tuning, LoraTuning) and config.tuning.quantization is not None,
        parallelism=parallelism if config.processes > 1 else Parallelism.auto,
        devices=config.processes,
    )


def _estimate_for_host(
    config: TrainingConfig, shape: ModelShape, host: HostMemory, tokens: int
) -> dict[str, Any]:
    usable = usable_bytes(host)
    requested = _requested_settings(config, host)
    small_share = explain_small_share(config, shape, host, is_bf16=_has_16_bits(config, host))
    parts = _parts_in_bytes(config, shape, requested, host, tokens)
    plans = (
        (plan, _total_bytes(config, shape, plan, host, tokens))
        for plan in _candidate_plans(config, requested, host)
    )
    plan, needed = next(((plan, needed) for plan, needed in plans if needed <= usable), (None, 0))
    estimate = {
        "worker": host.worker,
        "device": host.device,
        "memory_bytes": host.memory_bytes,
        "usable_bytes": usable,
        "needed_bytes": sum(parts.values()),
        "parts": parts,
        "fits": sum(parts.values()) <= usable and small_share is None,
        # As `activation_checkpointing: auto` does.
        "fits_recomputed": small_share is None
        and _total_bytes(config, shape, requested.replace(recomputed_every=1), host, tokens) <= usable,
    }
    if host.device == "cuda":
        width = BF16_BYTES if _has_16_bits(config, host) else FP32_BYTES
        estimate["host_memory_parts"] = count_host_bytes(config, shape, requested, width)
    if small_share is not None:
        return estimate | {"plan": None, "missing_bytes": 0, "advice": " ".join(small_share)}
    if plan is None:
        least = min(
            _total_bytes(config, shape, plan, host, tokens)
            for plan in _candidate_plans(config, requested, host)
        )
        more = "a host with a GPU" if config.uses_mlx else "more devices"
        advice = f"Use a smaller model or max_length, LoRA instead of full tuning, or {more}."
        return estimate | {"plan": None, "missing_bytes": least - usable, "advice": advice}
    return estimate | {"plan": _plan_to_fields(config, plan), "planned_bytes": needed}


def _candidate_plans(
    config: TrainingConfig, requested: MemorySettings, host: HostMemory
) -> Iterator[MemorySettings]:
    """Yield settings that may fit, from the requested ones to the slowest.

    A smaller micro-batch costs little. Recomputing activations costs a third of the time, sharding costs
    traffic between the devices, and a quantized base costs some quality.
    """
    smaller = [
        size for size in range(requested.micro_batch_size, 0, -1) if requested.micro_batch_size % size == 0
    ]
    # An engine samples from whole weights in 16 bits on each device.
    can_quantize = (
        isinstance(config.tuning, LoraTuning) and not requested.quantized and not has_engine(config)
    )
    shards = [requested.parallelism]
    is_ddp = requested.devices > 1 and requested.parallelism is Parallelism.ddp
    if is_ddp and config.optimizer is Optimizer.adamw and not has_engine(config):
        shards.append(Parallelism.fsdp2)
    for quantized in (requested.quantized, True) if can_quantize else (requested.quantized,):
        for parallelism in shards:
            for recomputed_every in (requested.recomputed_every, 1):
                for size in smaller:
                    yield requested.replace(
                        micro_batch_size=size,
                        recomputed_every=recomputed_every,
                        quantized=quantized,
                        parallelism=parallelism,
                    )


def _parts_in_bytes(
    config: TrainingConfig, shape: ModelShape, settings: MemorySettings, host: HostMemory, tokens: int
) -> dict[str, int]:
    is_bf16 = _has_16_bits(config, host)
    program = {"program": PROGRAM_BYTES[host.device]}
    if config.uses_mlx:
        return count_unified_parts(config, shape, settings, tokens, is_bf16=is_bf16) | program
    passes = PassFormat(
        is_bf16=is_bf16,
        is_eager=config.attention is Attention.eager or not shape.has_fused_attention,
        # The rows of `sft` are concatenated; those of the other stages are padded.
        is_masked=not isinstance(config, SftConfig) or config.attention is Attention.sdpa,
        on_gpu=host.device == "cuda",
    )
    parts = count_memory_parts(config, shape, settings, tokens, passes)
    engine = engine_bytes(config, shape, host.device, host.memory_bytes, is_bf16=is_bf16)
    return parts | engine | program


def _has_16_bits(config: TrainingConfig, host: HostMemory) -> bool:
    # With MLX, weights that are trained are computed in fp32.
    has_bf16 = host.device == "cuda" or (host.device == "mlx" and isinstance(config.tuning, LoraTuning))
    return config.precision.has_16_bits or (config.precision is Precision.auto and has_bf16)


def _total_bytes(
    config: TrainingConfig, shape: ModelShape, settings: MemorySettings, host: HostMemory, tokens: int
) -> int:
    return sum(_parts_in_bytes(config, shape, settings, host, tokens).values())


def _plan_to_fields(config: TrainingConfig, plan: MemorySettings) -> dict[str, Any]:
    """Return a plan as fields of a stage."""
    chosen = config.tuning.quantization if isinstance(config.tuning, LoraTuning) else None
    return {
        "batch_size": config.batch_size,
        "micro_batch_size": plan.micro_batch_size,
        "gradient_accumulation_steps": config.batch_size // (plan.micro_batch_size * plan.devices),
        "activation_checkpointing": plan.recomputed_every is not None,
        "quantization": (chosen or Quantization.four_bit) if plan.quantized else None,
        "parallelism": plan.parallelism,
        "devices": config.devices,
    }
