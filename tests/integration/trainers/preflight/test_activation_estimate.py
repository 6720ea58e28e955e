"""Goal: the estimate of activations counts the tensors that autograd keeps, whatever the architecture.

Method: a model of three layers runs forward with `saved_tensors_hooks`, and one of a single layer; the
difference is that of two layers. Weights and their copies have no dimension of the number of tokens.
"""

from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoConfig, AutoModelForCausalLM

from trainers.configs import TrainingConfig, parse_stage
from trainers.preflight.memory.activations import PassFormat, count_layer_bytes
from trainers.preflight.memory.estimate import measure_shape
from trainers.training.policy import skip_casts_under_autocast

# PEFT calls a method of transformers that is deprecated.
pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")

TOKENS = 73
SIZES = {
    "vocab_size": 64,
    "hidden_size": 128,
    "intermediate_size": 448,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
}
LORA, FULL = {"method": "lora", "rank": 4}, {"method": "full"}
CASES: list[tuple[str, dict[str, Any], bool, str]] = [
    *((name, LORA, True, "sdpa") for name in ("llama", "qwen2", "qwen3", "mistral", "phi3", "gemma3_text")),
    *((name, FULL, True, "sdpa") for name in ("llama", "qwen3", "gemma3_text")),
    ("llama", LORA, False, "sdpa"),
    ("llama", FULL, False, "sdpa"),
    ("llama", LORA | {"dropout": 0.1}, True, "sdpa"),
    ("llama", LORA | {"dora": True}, True, "sdpa"),
    ("llama", LORA, True, "eager"),
    ("qwen3", FULL, False, "eager"),
]


def kept_bytes(name: str, layers: int, config: TrainingConfig, bf16: bool, attention: str) -> tuple[int, Any]:
    """Return the bytes that autograd keeps of a forward pass, and the model."""
    torch.manual_seed(0)
    kinds = {"layer_types": ["full_attention"] * layers} if name == "gemma3_text" else {}
    sizes = AutoConfig.for_model(name, num_hidden_layers=layers, **SIZES, **kinds)
    tuning: Any = config.tuning
    dtype = torch.bfloat16 if bf16 and tuning.method == "lora" else torch.float32
    model = whole = AutoModelForCausalLM.from_config(sizes, attn_implementation=attention, dtype=dtype)
    if tuning.method == "lora":
        options = {"lora_dropout": tuning.dropout, "use_dora": tuning.dora, "target_modules": "all-linear"}
        whole = get_peft_model(model, LoraConfig(r=tuning.rank, **options)).train()
        skip_casts_under_autocast(whole)
        for parameter in whole.parameters():
            parameter.data = parameter.data.float() if parameter.requires_grad else parameter.data
    kept: dict[int, torch.Tensor] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        if TOKENS in tensor.shape:
            kept.setdefault(tensor.untyped_storage().data_ptr(), tensor)
        return tensor

    with (
        torch.autocast("cpu", torch.bfloat16, enabled=bf16),
        torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
    ):
        model.model(input_ids=torch.ones(1, TOKENS, dtype=torch.long), use_cache=False)
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values()), model


@pytest.mark.parametrize(("name", "tuning", "bf16", "attention"), CASES)
def test_the_activations_of_a_layer_are_estimated_within_a_tenth(
    name: str, tuning: dict[str, Any], bf16: bool, attention: str
) -> None:
    config = parse_stage({"stage": "sft", "base": "a/b", "dataset": "d", "tuning": tuning})
    assert isinstance(config, TrainingConfig)
    one, _ = kept_bytes(name, 1, config, bf16, attention)
    three, model = kept_bytes(name, 3, config, bf16, attention)
    shape = measure_shape(model, config.tuning)
    assert shape is not None
    passes = PassFormat(bf16, is_eager=attention == "eager", is_masked=False)
    assert count_layer_bytes(config, shape, TOKENS, passes) == pytest.approx((three - one) / 2, rel=0.1)
