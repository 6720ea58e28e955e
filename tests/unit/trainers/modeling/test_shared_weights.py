"""Goal: the weights that ranks share are those of the model, and one copy."""

from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from tests.integration.trainers.distributed.on_cpu import is_mapped
from trainers.modeling.shared_weights import is_stored, share_weights

SIZES = {"vocab_size": 64, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2}


@pytest.fixture
def model() -> LlamaForCausalLM:
    return LlamaForCausalLM(LlamaConfig(**SIZES, num_attention_heads=2, tie_word_embeddings=True))


def test_shared_weights_are_mapped_and_otherwise_those_of_the_model(
    model: LlamaForCausalLM, tmp_path: Path
) -> None:
    expected = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    frozen = model.model.norm.weight.requires_grad_(False)
    tokens = torch.arange(8).unsqueeze(0)
    logits = model(tokens).logits
    shared = share_weights(lambda: model, lambda: model, tmp_path)
    assert all(map(is_mapped, shared.parameters())) and not list(tmp_path.iterdir())
    assert torch.equal(shared(tokens).logits, logits)
    assert shared.state_dict().keys() == expected.keys()
    assert shared.lm_head.weight is shared.model.embed_tokens.weight
    assert shared.model.norm.weight is not frozen and not shared.model.norm.weight.requires_grad


@pytest.mark.parametrize(("dtype", "expected"), [(torch.bfloat16, True), (torch.float32, False)])
def test_a_base_is_shared_without_writing_it_only_if_its_files_have_its_dtype(
    model: LlamaForCausalLM, dtype: torch.dtype, expected: bool, tmp_path: Path
) -> None:
    model.to(torch.bfloat16).save_pretrained(tmp_path)
    loaded = LlamaForCausalLM.from_pretrained(tmp_path, dtype=dtype)
    assert is_stored(tmp_path, loaded) == expected == all(map(is_mapped, loaded.parameters()))


def test_a_write_to_shared_weights_reaches_no_other_rank(model: LlamaForCausalLM, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path)
    first, second = (LlamaForCausalLM.from_pretrained(tmp_path, dtype=torch.float32) for _ in range(2))
    weight = second.model.norm.weight.clone()
    with torch.no_grad():
        first.model.norm.weight.zero_()
    assert torch.equal(second.model.norm.weight, weight)
