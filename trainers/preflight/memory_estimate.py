"""Does a training stage fit into the memory of the hosts, and if not, which settings would make it fit."""

import os
from collections.abc import Iterator
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

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
from trainers.preflight.memory_model import (
    PROGRAM_BYTES,
    USABLE_SHARE,
    MemorySettings,
    ModelShape,
    count_memory_parts,
)


def estimate_memory(config: TrainingConfig, hosts: list[HostMemory], longest_tokens: int) -> dict[str, Any]:
    """The bytes that a stage needs as it is written, and for each host a plan that fits, or what is missing.

    A plan keeps the rows per optimizer step. `longest_tokens` is the length of the longest sequence.
    """
    shape = model_shape(config)
    hosts = hosts or [local_host()]
    return {
        "parameters": shape.parameters,
        "adapter_parameters": shape.adapter_parameters,
        "longest_tokens": longest_tokens,
        "hosts": [_on_host(config, shape, host, longest_tokens) for host in hosts],
    }


def model_shape(config: TrainingConfig) -> ModelShape:
    """Sizes of the base, from its config alone: no weight is read, and none is made."""
    described = AutoConfig.from_pretrained(get_base_model(config.base), trust_remote_code=False)
    text = described.get_text_config()
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(described, trust_remote_code=False)
    linears = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and module is not model.get_output_embeddings()
    }
    linear_parameters = sum(module.weight.numel() for module in linears.values())
    every = sum(parameter.numel() for parameter in model.parameters())
    head_width = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    keys = getattr(text, "num_key_value_heads", None) or text.num_attention_heads
    return ModelShape(
        layers=text.num_hidden_layers,
        hidden=text.hidden_size,
        intermediate=text.intermediate_size,
        query=head_width * text.num_attention_heads,
        key_value=head_width * keys,
        vocabulary=text.vocab_size,
        linear_parameters=linear_parameters,
        other_parameters=every - linear_parameters,
        adapter_parameters=_adapter_parameters(config, linears),
    )


def _adapter_parameters(config: TrainingConfig, linears: dict[str, torch.nn.Linear]) -> int:
    tuning = config.tuning
    if not isinstance(tuning, LoraTuning):
        return 0
    chosen = [
        module
        for name, module in linears.items()
        if tuning.target_modules == "all-linear" or name.rpartition(".")[2] in tuning.target_modules
    ]
    matrices = sum(tuning.rank * (module.in_features + module.out_features) for module in chosen)
    magnitudes = sum(module.out_features for module in chosen) if tuning.dora else 0
    return int(matrices + magnitudes)


def local_host() -> HostMemory:
    """The memory of the host that this runs on, or of its GPUs."""
    if torch.cuda.is_available():
        memory = torch.cuda.get_device_properties(0).total_memory
        count = torch.cuda.device_count()
        return HostMemory(worker="this host", device="cuda", devices=count, memory_bytes=memory)
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return HostMemory(worker="this host", memory_bytes=memory)


def needs_checkpointing(config: TrainingConfig, host: HostMemory, longest_tokens: int) -> bool:
    """Whether the stage as it is written only fits if activations are computed again."""
    shape = model_shape(config)
    asked = _asked(config, host).changed(checkpointing=False)
    return _total(config, shape, asked, host, longest_tokens) > USABLE_SHARE * host.memory_bytes


def _asked(config: TrainingConfig, host: HostMemory) -> MemorySettings:
    assert config.micro_batch_size is not None
    several = Parallelism.ddp if config.parallelism is Parallelism.auto else config.parallelism
    return MemorySettings(
        micro_batch_size=config.micro_batch_size,
        checkpointing=bool(config.activation_checkpointing),
        quantized=isinstance(config.tuning, LoraTuning) and config.tuning.quantization is Quantization.nf4,
        parallelism=several if config.devices > 1 else Parallelism.auto,
        devices=config.devices,
    )


def _on_host(config: TrainingConfig, shape: ModelShape, host: HostMemory, tokens: int) -> dict[str, Any]:
    usable = int(USABLE_SHARE * host.memory_bytes)
    asked = _asked(config, host)
    parts = _parts(config, shape, asked, host, tokens)
    plans = ((plan, _total(config, shape, plan, host, tokens)) for plan in _plans(config, asked, host))
    plan, needed = next(((plan, needed) for plan, needed in plans if needed <= usable), (None, 0))
    told = {
        "worker": host.worker,
        "device": host.device,
        "memory_bytes": host.memory_bytes,
        "usable_bytes": usable,
        "needed_bytes": sum(parts.values()),
        "parts": parts,
        "fits": sum(parts.values()) <= usable,
    }
    if plan is None:
        least = min(_total(config, shape, plan, host, tokens) for plan in _plans(config, asked, host))
        advice = "Use a smaller model or max_length, LoRA instead of all weights, or more devices."
        return told | {"plan": None, "missing_bytes": least - usable, "advice": advice}
    return told | {"plan": _told(config, plan), "planned_bytes": needed}


def _plans(config: TrainingConfig, asked: MemorySettings, host: HostMemory) -> Iterator[MemorySettings]:
    """What might fit, from what was asked for to what costs most time.

    A micro-batch of half the rows costs little, computing activations again a third of the time; a quantised
    base costs some quality, and sharding over more devices costs traffic between them.
    """
    smaller = [size for size in range(asked.micro_batch_size, 0, -1) if asked.micro_batch_size % size == 0]
    can_quantize = isinstance(config.tuning, LoraTuning) and not asked.quantized
    shards = [asked.parallelism]
    if asked.devices > 1 and asked.parallelism is Parallelism.ddp:
        shards.append(Parallelism.fsdp2)
    for quantized in (asked.quantized, True) if can_quantize else (asked.quantized,):
        for parallelism in shards:
            for checkpointing in (asked.checkpointing, True):
                for size in smaller:
                    yield asked.changed(
                        micro_batch_size=size,
                        checkpointing=checkpointing,
                        quantized=quantized,
                        parallelism=parallelism,
                    )


def _parts(
    config: TrainingConfig, shape: ModelShape, settings: MemorySettings, host: HostMemory, tokens: int
) -> dict[str, int]:
    is_bf16 = config.precision is Precision.bf16 or (
        config.precision is Precision.auto and host.device == "cuda"
    )
    eager = config.attention is Attention.eager
    parts = count_memory_parts(config, shape, settings, tokens, is_bf16=is_bf16, eager=eager)
    return parts | {"program": PROGRAM_BYTES[host.device]}


def _total(
    config: TrainingConfig, shape: ModelShape, settings: MemorySettings, host: HostMemory, tokens: int
) -> int:
    return sum(_parts(config, shape, settings, host, tokens).values())


def _told(config: TrainingConfig, plan: MemorySettings) -> dict[str, Any]:
    """A plan as the fields of a stage that it sets."""
    return {
        "batch_size": config.batch_size,
        "micro_batch_size": plan.micro_batch_size,
        "gradient_accumulation_steps": config.batch_size // (plan.micro_batch_size * plan.devices),
        "activation_checkpointing": plan.checkpointing,
        "quantization": "nf4" if plan.quantized else None,
        "parallelism": plan.parallelism,
        "devices": plan.devices,
    }
