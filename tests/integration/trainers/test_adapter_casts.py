"""Goal: without PEFT's casts under autocast, nothing that is computed changes, and less is kept."""

from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

from trainers.training.policy import skip_casts_under_autocast

# PEFT calls a method of transformers that is deprecated.
pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")

SIZES = {"vocab_size": 64, "hidden_size": 64, "intermediate_size": 160, "num_hidden_layers": 2}
IDS = torch.arange(48).reshape(2, 24)


def make_model(**options: Any) -> Any:
    torch.manual_seed(0)
    base = LlamaForCausalLM(LlamaConfig(**SIZES, num_attention_heads=4, num_key_value_heads=2)).bfloat16()
    adapter = LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False, **options)
    model = get_peft_model(base, adapter).train()
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    return model


def train_once(model: Any) -> tuple[torch.Tensor, list[torch.Tensor], int]:
    """Return the loss, the gradients, and the bytes that autograd kept."""
    kept: dict[int, torch.Tensor] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept.setdefault(tensor.untyped_storage().data_ptr(), tensor)
        return tensor

    torch.manual_seed(1)
    with (
        torch.autocast("cpu", torch.bfloat16),
        torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
    ):
        loss = model(input_ids=IDS, labels=IDS).loss
    loss.backward()
    gradients = [parameter.grad for parameter in model.parameters() if parameter.requires_grad]
    return loss.detach(), gradients, sum(tensor.untyped_storage().nbytes() for tensor in kept.values())


@pytest.mark.parametrize(
    ("options", "share"), [({}, 0.9), ({"use_dora": True}, 1), ({"lora_dropout": 0.1}, 1)]
)
def test_loss_and_gradients_are_equal_bit_for_bit_and_less_is_kept(
    options: dict[str, Any], share: float
) -> None:
    loss, gradients, kept = train_once(make_model(**options))
    without = make_model(**options)
    skip_casts_under_autocast(without)
    loss_without, gradients_without, kept_without = train_once(without)
    assert torch.equal(loss, loss_without)
    assert all(torch.equal(one, other) for one, other in zip(gradients, gradients_without, strict=True))
    assert kept_without <= share * kept


def test_outside_autocast_inputs_are_still_cast() -> None:
    model = make_model()
    expected = model(input_ids=IDS).logits
    skip_casts_under_autocast(model)
    assert torch.equal(model(input_ids=IDS).logits, expected)
