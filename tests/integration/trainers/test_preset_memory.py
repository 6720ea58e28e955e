"""Goal: each preset for GPUs fits its hardware, with the largest model that its summary names.

Method: the estimate of memory, for models of which only the config exists.
"""

from typing import Any

import pytest
from transformers import LlamaConfig, Qwen3Config

from trainers.configs import StageKind, TrainingConfig, parse_stage
from trainers.configs.on_policy import OnPolicyConfig
from trainers.configs.stages.grpo import GrpoConfig
from trainers.configs.stages.preflight import HostMemory
from trainers.configs.training import Precision
from trainers.grpo import check_engine_share
from trainers.preflight.memory.estimate import estimate_memory
from trainers.runtime.errors import ConfigInvalid

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


def test_a_share_of_vllm_that_does_not_hold_the_base_does_not_fit(bases: dict[str, str]) -> None:
    rewards = [{"kind": "correctness"}]
    values = {
        "stage": "grpo",
        "preset": "gpu-24gb",
        "base": bases["4b"],
        "dataset": "rows",
        "rewards": rewards,
    }
    config = parse_stage(
        values | {"generation": "vllm", "micro_batch_size": 1, "activation_checkpointing": True}
    )
    assert isinstance(config, TrainingConfig)
    host = HostMemory(worker="gpu", device="cuda", devices=1, memory_bytes=24 * GB)
    found = [
        estimate_memory(config.model_copy(update={"vllm_memory_share": share}), [host], 1024)["hosts"][0]  # type: ignore[index]
        for share in (0.3, 0.45)
    ]
    assert (found[0]["fits"], found[0]["plan"], found[1]["fits"]) == (False, None, True)
    assert "share 0.3 of a GPU with 24.0 GB is 7.2 GB; the weights of the base need 8.0" in found[0]["advice"]
    assert isinstance(config, GrpoConfig)
    with pytest.raises(ConfigInvalid, match=r"share 0.3 of a GPU with 24.0 GB") as refusal:
        check_engine_share(config, Precision.bf16, host)
    assert "Set vllm_memory_share to 0.45 or more" in str(refusal.value.hint)
