"""Goal: each preset for GPUs fits its hardware, with the largest model that its summary names.

Method: the estimate of memory, for models of which only the config exists.
"""

from typing import Any

import pytest
from transformers import AutoConfig, LlamaConfig, PreTrainedConfig, Qwen3Config

from trainers.configs import StageKind, TrainingConfig, parse_stage
from trainers.configs.on_policy import OnPolicyConfig
from trainers.configs.stages.grpo import GrpoConfig
from trainers.configs.stages.preflight import HostMemory
from trainers.configs.training import Precision
from trainers.grpo import check_engine_share
from trainers.preflight.memory.estimate import estimate_memory
from trainers.runtime.errors import ConfigInvalid

GB = 10**9


def published(kind: str, text: dict[str, Any], **whole: Any) -> PreTrainedConfig:
    """Return the config of a multimodal model as it is published."""
    return AutoConfig.for_model(kind, text_config=text, **whole)


def qwen_3_5(
    hidden: int, intermediate: int, layers: int, encoder: tuple[int, int], **text: Any
) -> PreTrainedConfig:
    width, depth = encoder
    sizes = {"hidden_size": hidden, "intermediate_size": intermediate, "num_hidden_layers": layers, **text}
    vision = {"hidden_size": width, "intermediate_size": 4 * width, "out_hidden_size": hidden, "depth": depth}
    tie = text.get("tie_word_embeddings", False)
    return published("qwen3_5", sizes, vision_config=vision, tie_word_embeddings=tie)


def gemma_4(hidden: int, intermediate: int, layers: int, shared: int, **text: Any) -> PreTrainedConfig:
    sizes = {"hidden_size": hidden, "intermediate_size": intermediate, "num_hidden_layers": layers}
    return published(
        "gemma4", sizes | {"num_kv_shared_layers": shared, **text}, vision_config={}, audio_config={}
    )


def mistral_3(hidden: int, intermediate: int, layers: int, *, tied: bool = False) -> PreTrainedConfig:
    sizes = {"hidden_size": hidden, "intermediate_size": intermediate, "num_hidden_layers": layers}
    return published("mistral3", {"model_type": "ministral3", **sizes}, tie_word_embeddings=tied)


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
    "Qwen3.5-4B": qwen_3_5(2560, 9216, 32, (1024, 24), tie_word_embeddings=True),
    "Qwen3.5-9B": qwen_3_5(4096, 12288, 32, (1152, 27)),
    "Qwen3.5-27B": qwen_3_5(5120, 17408, 64, (1152, 27), num_attention_heads=24, linear_num_value_heads=48),
    "gemma-4-E2B": gemma_4(1536, 6144, 35, 20, num_key_value_heads=1, use_double_wide_mlp=True),
    "gemma-4-E4B": gemma_4(2560, 10240, 42, 18, num_key_value_heads=2),
    "Ministral-3-3B": mistral_3(3072, 9216, 26, tied=True),
    "Ministral-3-8B": mistral_3(4096, 14336, 34),
    "Ministral-3-14B": mistral_3(5120, 16384, 40),
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
# Of each family, the largest dense model for a kind of hardware, and its parameters in billions.
LARGEST_OF_FAMILY = {
    ("gpu-24gb", "qwen3.5"): ("Qwen3.5-4B", 4.5),
    ("gpu-24gb", "gemma4"): ("gemma-4-E2B", 5.1),
    ("gpu-24gb", "mistral3"): ("Ministral-3-3B", 3.8),
    ("gpu-24gb-nf4", "qwen3.5"): ("Qwen3.5-9B", 9.4),
    ("gpu-24gb-nf4", "gemma4"): ("gemma-4-E4B", 7.9),
    ("gpu-24gb-nf4", "mistral3"): ("Ministral-3-8B", 8.9),
    ("gpu-80gb", "qwen3.5"): ("Qwen3.5-9B", 9.4),
    ("gpu-80gb", "gemma4"): ("gemma-4-E4B", 7.9),
    ("gpu-80gb", "mistral3"): ("Ministral-3-14B", 13.9),
    ("gpus-8x80gb-lora", "qwen3.5"): ("Qwen3.5-9B", 9.4),
    ("gpus-8x80gb-lora", "gemma4"): ("gemma-4-E4B", 7.9),
    ("gpus-8x80gb-lora", "mistral3"): ("Ministral-3-14B", 13.9),
    ("gpus-8x80gb", "qwen3.5"): ("Qwen3.5-9B", 9.4),
    ("gpus-8x80gb", "gemma4"): ("gemma-4-E4B", 7.9),
    ("gpus-8x80gb", "mistral3"): ("Ministral-3-8B", 8.9),
    ("gpus-8x80gb-70b", "qwen3.5"): ("Qwen3.5-27B", 27.4),
}
# The others take the same way, and seconds.
QUICK = {("sft", "gpu-24gb", "qwen3.5"), ("sft", "gpu-24gb", "mistral3"), ("sft", "gpu-24gb-nf4", "gemma4")}
TRAINING = [kind for kind in StageKind if kind.trains and kind != "distill"]
FAMILY_CASES = [
    pytest.param(stage, *pair, marks=() if (stage, *pair) in QUICK else pytest.mark.slow)
    for stage in TRAINING
    for pair in LARGEST_OF_FAMILY
]


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("bases")
    for name, config in MODELS.items():
        config.save_pretrained(folder / name)
    return {name: str(folder / name) for name in MODELS}


@pytest.mark.parametrize("stage", TRAINING)
@pytest.mark.parametrize("preset", LARGEST)
def test_a_preset_fits_its_gpus_with_its_largest_model(
    preset: str, stage: str, bases: dict[str, str]
) -> None:
    model, _, _ = LARGEST[preset]
    estimate = estimate_stage(stage, preset, [preset], bases[model])
    (found,) = estimate["hosts"]
    assert found["fits"], found


@pytest.mark.parametrize(("stage", "preset", "family"), FAMILY_CASES)
def test_a_preset_fits_its_gpus_with_the_largest_model_of_a_family(
    stage: str, preset: str, family: str, bases: dict[str, str]
) -> None:
    model, billions = LARGEST_OF_FAMILY[preset, family]
    estimate = estimate_stage(stage, preset, [preset, family], bases[model])
    assert estimate["parameters"] / 1e9 == pytest.approx(billions, abs=0.06)
    (found,) = estimate["hosts"]
    assert found["fits"], found


def estimate_stage(stage: str, hardware: str, presets: list[str], base: str) -> dict[str, Any]:
    """Return the estimate of a stage with these presets, for a host with the hardware of one of them."""
    _, gigabytes, count = LARGEST[hardware]
    required: dict[str, Any] = {"grpo": {"rewards": [{"kind": "correctness"}]}}
    values = {"stage": stage, "preset": presets, "base": base, "dataset": "rows"}
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
    return estimate


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
