"""Estimates of whether a training stage fits into the memory of hosts, and settings with which it fits."""

import os
from collections.abc import Iterator
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from trainers.configs.references import get_base_model
from trainers.configs.stages.preflight import HostMemory
from trainers.configs.training import (
    Attention,
    LoraTuning,
    Parallelism,
    Precision,
    Quantization,
    TrainingConfig,
)
from trainers.modeling.load import load_config
from trainers.preflight.memory_model import (
    PROGRAM_BYTES,
    USABLE_SHARE,
    MemorySettings,
    ModelShape,
    count_memory_parts,
)


def estimate_memory(config: TrainingConfig, hosts: list[HostMemory], longest_tokens: int) -> dict[str, Any]:
    """Return the bytes that a stage needs, and for each host a plan that fits or the missing bytes.

    A plan keeps the rows per optimizer step. `longest_tokens` is the length of the longest sequence.
    """
    shape = model_shape(config)
    hosts = hosts or [local_host()]
    return {
        "parameters": shape.parameters,
        "adapter_parameters": shape.adapter_parameters,
        "longest_tokens": longest_tokens,
        "hosts": [_estimate_for_host(config, shape, host, longest_tokens) for host in hosts],
    }


def model_shape(config: TrainingConfig) -> ModelShape:
    """Return the sizes of the base from its config, without reading or allocating weights."""
    model_config = load_config(get_base_model(config.base))
    text = model_config.get_text_config()
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(model_config, trust_remote_code=False)
    linears = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and module is not model.get_output_embeddings()
    }
    linear_parameters = sum(module.weight.numel() for module in linears.values())
    total = sum(parameter.numel() for parameter in model.parameters())
    head_width = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    key_heads = getattr(text, "num_key_value_heads", None) or text.num_attention_heads
    return ModelShape(
        layers=text.num_hidden_layers,
        hidden=text.hidden_size,
        intermediate=text.intermediate_size,
        query=head_width * text.num_attention_heads,
        key_value=head_width * key_heads,
        vocabulary=text.vocab_size,
        linear_parameters=linear_parameters,
        other_parameters=total - linear_parameters,
        adapter_parameters=_adapter_parameters(config, linears),
    )


def _adapter_parameters(config: TrainingConfig, linears: dict[str, torch.nn.Linear]) -> int:
    tuning = config.tuning
    if not isinstance(tuning, LoraTuning):
        return 0
    adapted = [
        module
        for name, module in linears.items()
        if tuning.target_modules == "all-linear" or name.rpartition(".")[2] in tuning.target_modules
    ]
    matrices = sum(tuning.rank * (module.in_features + module.out_features) for module in adapted)
    magnitudes = sum(module.out_features for module in adapted) if tuning.dora else 0
    return int(matrices + magnitudes)


def local_host() -> HostMemory:
    """Return the memory of this host, or of its GPUs."""
    if torch.cuda.is_available():
        memory = torch.cuda.get_device_properties(0).total_memory
        count = torch.cuda.device_count()
        return HostMemory(worker="this host", device="cuda", devices=count, memory_bytes=memory)
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return HostMemory(worker="this host", memory_bytes=memory)


def needs_checkpointing(config: TrainingConfig, host: HostMemory, longest_tokens: int) -> bool:
    """Return whether the stage does not fit unless activations are recomputed."""
    shape = model_shape(config)
    requested = _requested_settings(config, host).replace(checkpointing=False)
    return _total_bytes(config, shape, requested, host, longest_tokens) > USABLE_SHARE * host.memory_bytes


def _requested_settings(config: TrainingConfig, host: HostMemory) -> MemorySettings:
    assert config.micro_batch_size is not None
    parallelism = Parallelism.ddp if config.parallelism is Parallelism.auto else config.parallelism
    return MemorySettings(
        micro_batch_size=config.micro_batch_size,
        checkpointing=bool(config.activation_checkpointing),
        quantized=isinstance(config.tuning, LoraTuning) and config.tuning.quantization is Quantization.nf4,
        parallelism=parallelism if config.devices > 1 else Parallelism.auto,
        devices=config.devices,
    )


def _estimate_for_host(
    config: TrainingConfig, shape: ModelShape, host: HostMemory, tokens: int
) -> dict[str, Any]:
    usable = int(USABLE_SHARE * host.memory_bytes)
    requested = _requested_settings(config, host)
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
        "fits": sum(parts.values()) <= usable,
    }
    if plan is None:
        least = min(
            _total_bytes(config, shape, plan, host, tokens)
            for plan in _candidate_plans(config, requested, host)
        )
        advice = "Use a smaller model or max_length, LoRA instead of full tuning, or more devices."
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
    can_quantize = isinstance(config.tuning, LoraTuning) and not requested.quantized
    shards = [requested.parallelism]
    if requested.devices > 1 and requested.parallelism is Parallelism.ddp:
        shards.append(Parallelism.fsdp2)
    for quantized in (requested.quantized, True) if can_quantize else (requested.quantized,):
        for parallelism in shards:
            for checkpointing in (requested.checkpointing, True):
                for size in smaller:
                    yield requested.replace(
                        micro_batch_size=size,
                        checkpointing=checkpointing,
                        quantized=quantized,
                        parallelism=parallelism,
                    )


def _parts_in_bytes(
    config: TrainingConfig, shape: ModelShape, settings: MemorySettings, host: HostMemory, tokens: int
) -> dict[str, int]:
    is_bf16 = config.precision is Precision.bf16 or (
        config.precision is Precision.auto and host.device == "cuda"
    )
    eager = config.attention is Attention.eager
    parts = count_memory_parts(config, shape, settings, tokens, is_bf16=is_bf16, eager=eager)
    return parts | {"program": PROGRAM_BYTES[host.device]}


def _total_bytes(
    config: TrainingConfig, shape: ModelShape, settings: MemorySettings, host: HostMemory, tokens: int
) -> int:
    return sum(_parts_in_bytes(config, shape, settings, host, tokens).values())


def _plan_to_fields(config: TrainingConfig, plan: MemorySettings) -> dict[str, Any]:
    """Return a plan as fields of a stage."""
    return {
        "batch_size": config.batch_size,
        "micro_batch_size": plan.micro_batch_size,
        "gradient_accumulation_steps": config.batch_size // (plan.micro_batch_size * plan.devices),
        "activation_checkpointing": plan.checkpointing,
        "quantization": "nf4" if plan.quantized else None,
        "parallelism": plan.parallelism,
        "devices": plan.devices,
    }
