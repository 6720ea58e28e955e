"""Goal: the presets for Macs fit the models that they name. Method: estimates for configs of such sizes."""

import shutil
from pathlib import Path
from typing import Any

import pytest
from transformers import LlamaConfig, PreTrainedConfig, Qwen2Config

from trainers.configs import HostMemory, TrainingConfig, parse_stage
from trainers.preflight.memory.estimate import estimate_memory

# The largest model that the summary of each preset names: layers, width, inner width, heads, and the sizes of
# Qwen2.5-3B, Llama-3.1-8B, Qwen2.5-32B and Llama-3.1-70B.
MODELS: dict[int, tuple[type[PreTrainedConfig], tuple[int, int, int, int, int, int], bool]] = {
    16: (Qwen2Config, (36, 2048, 11008, 16, 2, 151_936), True),
    24: (LlamaConfig, (32, 4096, 14336, 32, 8, 128_256), False),
    64: (Qwen2Config, (64, 5120, 27648, 40, 8, 152_064), False),
    128: (LlamaConfig, (80, 8192, 28672, 64, 8, 128_256), False),
}


@pytest.fixture
def write_base(starter: Path, tmp_path: Path) -> Any:
    def write(gigabytes: int) -> str:
        kind, (layers, width, inner, heads, key_heads, vocabulary), is_tied = MODELS[gigabytes]
        folder = tmp_path / f"base-{gigabytes}"
        shutil.copytree(starter, folder)
        kind(
            num_hidden_layers=layers,
            hidden_size=width,
            intermediate_size=inner,
            num_attention_heads=heads,
            num_key_value_heads=key_heads,
            vocab_size=vocabulary,
            tie_word_embeddings=is_tied,
        ).save_pretrained(folder)
        return str(folder)

    return write


def estimate(gigabytes: int, **stage: Any) -> dict[str, Any]:
    config = parse_stage({"dataset": "rows", "queue": "mlx", **stage})
    assert isinstance(config, TrainingConfig)
    host = HostMemory(worker="mac", device="mlx", memory_bytes=gigabytes << 30)
    found = estimate_memory(config, [host], config.max_length)  # type: ignore[attr-defined]
    assert found is not None
    [on_host] = found["hosts"]
    assert isinstance(on_host, dict)
    return on_host


@pytest.mark.parametrize("gigabytes", MODELS)
@pytest.mark.parametrize("stage", ["sft", "dpo"])
def test_a_preset_fits_the_largest_model_that_it_names(gigabytes: int, stage: str, write_base: Any) -> None:
    found = estimate(gigabytes, stage=stage, preset=f"mac-{gigabytes}gb", base=write_base(gigabytes))
    assert found["fits"], found


def test_what_does_not_fit_is_said_with_what_is_missing(write_base: Any) -> None:
    base = write_base(24)
    found = estimate(24, stage="sft", base=base, tuning={"method": "full"})
    # 8 billion parameters of 16 bytes are 120 GiB, of which the GPU may use 16.
    assert found["missing_bytes"] > 100 << 30
    assert "a host with a GPU" in found["advice"]
    assert found["usable_bytes"] == pytest.approx(16 << 30, rel=1e-6)
    adapter = estimate(24, stage="sft", base=base, max_length=1024, micro_batch_size=1)
    assert (adapter["fits"], adapter["plan"]["quantization"]) == (False, "4bit")
