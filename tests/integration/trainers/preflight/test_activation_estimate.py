"""Goal: the estimate of activations counts the tensors that autograd keeps, whatever the architecture.

Method: a model of three layers runs forward with `saved_tensors_hooks`, and one of a single layer; the
difference is that of two layers. Weights and their copies have no dimension of the number of tokens.
"""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoConfig, AutoModelForCausalLM

from trainers.configs import TrainingConfig, parse_stage
from trainers.preflight.memory.activations import PassFormat, count_gated_delta_bytes, count_layer_bytes
from trainers.preflight.memory.estimate import measure_shape
from trainers.training.policy import skip_casts_under_autocast

# PEFT calls a method of transformers that is deprecated.
pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")

TOKENS = 73
CHUNKED_TOKENS = 128
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
# Layers of the same kind only.
HYBRID = {"gemma3_text", "gemma4_text", "qwen3_5_text"}
MORE_SIZES: dict[str, dict[str, int]] = {
    "gemma4_text": {
        "hidden_size_per_layer_input": 16,
        "vocab_size_per_layer_input": 64,
        "global_head_dim": 64,
    }
}
GATED_DELTA = {
    "linear_num_key_heads": 4,
    "linear_num_value_heads": 8,
    "linear_key_head_dim": 32,
    "linear_value_head_dim": 32,
}
LORA, FULL = {"method": "lora", "rank": 4}, {"method": "full"}
CASES: list[tuple[str, dict[str, Any], bool, str]] = [
    *((name, LORA, True, "sdpa") for name in ("llama", "qwen2", "qwen3", "mistral", "phi3", "gemma3_text")),
    *((name, LORA, True, "sdpa") for name in ("gemma4_text", "ministral3", "qwen3_5_text")),
    *(
        (name, FULL, True, "sdpa")
        for name in ("llama", "qwen3", "gemma3_text", "gemma4_text", "qwen3_5_text")
    ),
    ("llama", LORA, False, "sdpa"),
    ("llama", FULL, False, "sdpa"),
    ("llama", LORA | {"dropout": 0.1}, True, "sdpa"),
    ("llama", LORA | {"dora": True}, True, "sdpa"),
    ("llama", LORA, True, "eager"),
    ("qwen3", FULL, False, "eager"),
]


def kept_bytes(name: str, layers: int, config: TrainingConfig, bf16: bool, attention: str) -> tuple[int, Any]:
    """Return the bytes that autograd keeps of a forward pass, and the model."""
    kinds = {"layer_types": ["full_attention"] * layers} if name in HYBRID else {}
    sizes = AutoConfig.for_model(name, num_hidden_layers=layers, **SIZES, **kinds, **MORE_SIZES.get(name, {}))
    model, _ = build(sizes, config, bf16, attention)
    kept: dict[int, torch.Tensor] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        if TOKENS in tensor.shape:
            kept.setdefault(tensor.untyped_storage().data_ptr(), tensor)
        return tensor

    run_forward(model, TOKENS, bf16, keep)
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values()), model


def kept_chunk_bytes(layers: int, config: TrainingConfig) -> tuple[int, Any]:
    """Return the same of layers with the gated delta rule, whose chunks have no dimension of all tokens."""
    kinds = {"layer_types": ["linear_attention"] * layers}
    sizes = AutoConfig.for_model("qwen3_5_text", num_hidden_layers=layers, **SIZES, **kinds, **GATED_DELTA)
    model, whole = build(sizes, config, True, "sdpa")
    weights = {tuple(weight.shape) for weight in whole.parameters()}
    weights |= {tuple(reversed(shape)) for shape in weights}
    kept: dict[int, torch.Tensor] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.numel() >= CHUNKED_TOKENS and tuple(tensor.shape) not in weights:
            kept.setdefault(tensor.untyped_storage().data_ptr(), tensor)
        return tensor

    run_forward(model, CHUNKED_TOKENS, True, keep)
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values()), model


def build(sizes: Any, config: TrainingConfig, bf16: bool, attention: str) -> tuple[Any, Any]:
    """Return the model, and the model with its adapter."""
    torch.manual_seed(0)
    tuning: Any = config.tuning
    dtype = torch.bfloat16 if bf16 and tuning.method == "lora" else torch.float32
    model = whole = AutoModelForCausalLM.from_config(sizes, attn_implementation=attention, dtype=dtype)
    if tuning.method == "lora":
        options = {"lora_dropout": tuning.dropout, "use_dora": tuning.dora, "target_modules": "all-linear"}
        whole = get_peft_model(model, LoraConfig(r=tuning.rank, **options)).train()
        skip_casts_under_autocast(whole)
        for parameter in whole.parameters():
            parameter.data = parameter.data.float() if parameter.requires_grad else parameter.data
    return model, whole


def run_forward(model: Any, tokens: int, bf16: bool, keep: Callable[[torch.Tensor], torch.Tensor]) -> None:
    with (
        torch.autocast("cpu", torch.bfloat16, enabled=bf16),
        torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
    ):
        model.model(input_ids=torch.ones(1, tokens, dtype=torch.long), use_cache=False)


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


@pytest.mark.parametrize("tuning", [LORA, FULL], ids=["lora", "full"])
def test_the_activations_of_linear_attention_are_estimated_within_a_seventh(tuning: dict[str, Any]) -> None:
    config = parse_stage({"stage": "sft", "base": "a/b", "dataset": "d", "tuning": tuning})
    assert isinstance(config, TrainingConfig)
    one, _ = kept_chunk_bytes(1, config)
    three, model = kept_chunk_bytes(3, config)
    shape = measure_shape(model, config.tuning)
    assert shape is not None and shape.gated_delta is not None
    passes = PassFormat(True, is_eager=False, is_masked=False)
    found = count_gated_delta_bytes(config, shape, shape.gated_delta, CHUNKED_TOKENS, passes)
    assert found == pytest.approx((three - one) / 2, rel=0.15)
