"""Goal: each preset for GPUs fits its hardware, with the largest model that its summary names.

Method: the estimate of memory, for models of which only the config exists.
"""

from typing import Any

import pytest
from transformers import LlamaConfig, Qwen3Config

from trainers.configs import StageKind, TrainingConfig, parse_stage
from trainers.configs.on_policy import OnPolicyConfig
from trainers.configs.stages.preflight import HostMemory
from trainers.preflight.memory.estimate import estimate_memory

GB = 10**9
PROMPT_TOKENS = 512
# Sizes of Qwen3 4B, 8B and 14B, and of Llama 3 8B and 70B.
QWEN = {"vocab_size": 151936, "head_dim": 128, "num_key_value_heads": 8}
LLAMA = {"vocab_size": 128256, "head_dim": 128, "num_key_value_heads": 8}
MODELS = {
    "4b": Qwen3Config(hidden_size=2560, intermediate_size=9728, num_hidden_layers=36, num_attention_heads=32,
                      tie_word_embeddings=True, **QWEN),
    "8b": LlamaConfig(hidden_size=4096, intermediate_size=14336, num_hidden_layers=32,
                      num_attention_heads=32, **LLAMA),
    "14b": Qwen3Config(hidden_size=5120, intermediate_size=17408, num_hidden_layers=40,
                       num_attention_heads=40, **QWEN),
    "70b": LlamaConfig(hidden_size=8192, intermediate_size=28672, num_hidden_layers=80,
                       num_attention_heads=64, **LLAMA),
}  # fmt: skip
# The largest model, and the memory and the number of the GPUs.
LARGEST = {
    "gpu-24gb": ("4b", 24, 1),
    "gpu-24gb-nf4": ("8b", 24, 1),
    "gpu-80gb": ("14b", 80, 1),
    "gpus-8x80gb-lora": ("14b", 80, 8),
    "gpus-8x80gb": ("8b", 80, 8),
    "gpus-8x80gb-70b": ("70b", 80, 8),
}


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("bases")
    for name, config in MODELS.items():
        config.save_pretrained(folder / name)
    return {name: str(folder / name) for name in MODELS}


@pytest.mark.parametrize("stage", [kind for kind in StageKind if kind.trains and kind != "distill"])
@pytest.mark.parametrize("preset", LARGEST)
def test_a_preset_fits_its_gpus_with_its_largest_model(
    preset: str, stage: str, bases: dict[str, str]
) -> None:
    model, gigabytes, count = LARGEST[preset]
    required: dict[str, Any] = {"grpo": {"rewards": [{"kind": "correctness"}]}}
    values = {"stage": stage, "preset": preset, "base": bases[model], "dataset": "rows"}
    config = parse_stage(values | required.get(stage, {}))
    assert isinstance(config, TrainingConfig)
    host = HostMemory(worker="gpu", device="cuda", devices=count, memory_bytes=gigabytes * GB)
    if isinstance(config, OnPolicyConfig):
        longest = PROMPT_TOKENS + config.max_completion_length
    else:
        longest = config.max_length  # type: ignore[attr-defined]
    # Activations are recomputed where they do not fit.
    estimate = estimate_memory(config.model_copy(update={"activation_checkpointing": True}), [host], longest)
    assert estimate is not None
    (found,) = estimate["hosts"]
    assert found["fits"], found
