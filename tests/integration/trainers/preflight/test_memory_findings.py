"""Goal: preflight warns of a host that is too small for a stage, with the settings with which it would fit.

Method: the config of Llama 3 8B, of which no weights are needed, and hosts that do not exist.
"""

import json
from pathlib import Path
from typing import Any

import pytest

from trainers.configs import TrainingConfig, parse_stage
from trainers.configs.stages.preflight import HostMemory
from trainers.preflight.memory.estimate import estimate_memory
from trainers.preflight.memory.findings import check_memory

LLAMA_8B = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "num_hidden_layers": 32,
    "vocab_size": 128256,
    "max_position_embeddings": 131072,
    "tie_word_embeddings": False,
}


@pytest.mark.parametrize(
    ("values", "gigabytes", "advice"),
    [
        ({"stage": "sft", "preset": "gpu-24gb"}, 24, "It fits with micro_batch_size 1"),
        (
            {"stage": "grpo", "preset": "gpu-24gb", "rewards": [{"kind": "correctness"}]},
            24,
            "tuning.quantization 4bit (preset gpu-24gb-nf4 for 24 GB)",
        ),
        ({"stage": "sft", "preset": "gpu-24gb-nf4"}, 24, None),
        ({"stage": "sft", "preset": "gpu-80gb"}, 80, None),
        ({"stage": "sft", "tuning": {"method": "full"}}, 80, "Use a smaller model or max_length, LoRA"),
    ],
)
def test_a_host_that_is_too_small_is_a_warning(
    values: dict[str, Any], gigabytes: int, advice: str | None, tmp_path: Path
) -> None:
    (tmp_path / "config.json").write_text(json.dumps(LLAMA_8B))
    config = parse_stage({"base": str(tmp_path), "dataset": "rows"} | values)
    assert isinstance(config, TrainingConfig)
    host = HostMemory(worker="small", device="cuda", memory_bytes=gigabytes * 10**9)
    found = list(check_memory(config, estimate_memory(config, [host], getattr(config, "max_length", 1024))))
    assert [(one.code, one.level) for one in found] == [("memory_short", "warning")] * (advice is not None)
    assert all(one.message.startswith("On small the stage needs ") for one in found)
    assert all(advice is not None and advice in one.hint for one in found)
