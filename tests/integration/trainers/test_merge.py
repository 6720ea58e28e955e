"""Goal: merged weights give the logits of the adapter on its base, or are not published."""

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig

from tests.integration.trainers.stages import run_stage
from trainers.configs.stages.merge import MergeConfig
from trainers.merge import MergeDiffers
from trainers.merge import run as merge
from trainers.modeling.load import load_base, load_model
from trainers.runtime.errors import ConfigInvalid
from trainers.runtime.events import EventWriter

# PEFT warns of tied weights, the case that merging handles.
TIED = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")
IDS_BT = torch.tensor([[5, 9, 21, 40, 7, 300]])


def run_merge(model: Any, run_dir: Path, **more: Any) -> dict[str, Any]:
    run_dir.mkdir(parents=True, exist_ok=True)
    return merge(MergeConfig.model_validate({"model": model, **more}), run_dir, EventWriter(None))


def logits(model: Any) -> torch.Tensor:
    with torch.inference_mode():
        return model.eval()(input_ids=IDS_BT).logits


def test_merged_weights_answer_as_the_adapted_model_does(adapted: dict[str, str], tmp_path: Path) -> None:
    result = run_merge(adapted, tmp_path)
    expected = load_model(MergeConfig.model_validate({"model": adapted}).model, torch.float32)
    assert isinstance(expected, PeftModel)
    whole = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    assert torch.allclose(logits(whole), logits(expected), atol=1e-4)
    assert not torch.allclose(logits(whole), logits(AutoModelForCausalLM.from_pretrained(adapted["base"])))
    assert (result["model"]["kind"], result["checks"]["prompts"]) == ("base", 3)
    assert result["checks"]["differences"]["written"] <= result["checks"]["tolerance"] == 1e-4
    template = AutoTokenizer.from_pretrained(adapted["base"]).chat_template
    assert AutoTokenizer.from_pretrained(tmp_path / "model").chat_template == template


@pytest.mark.parametrize(
    "tuning",
    [{"dora": True}, {"rslora": True}, {"quantization": "nf4"}],
    ids=str,
)
def test_every_kind_of_adapter_merges(
    starter: Path, training_rows: str, tuning: dict[str, Any], tmp_path: Path
) -> None:
    stage = {"stage": "sft", "base": str(starter), "dataset": training_rows, "max_steps": 6, "batch_size": 8}
    run_stage(stage | {"tuning": {"rank": 4, **tuning}, "learning_rate": 5e-3}, tmp_path / "tuned")
    model = {"base": str(starter), "adapter": str(tmp_path / "tuned" / "model")}
    result = run_merge(model, tmp_path / "merged")
    assert result["checks"]["differences"]["merged"] < 1e-4


def test_the_asked_number_format_is_written(adapted: dict[str, str], tmp_path: Path) -> None:
    result = run_merge(adapted, tmp_path, dtype="bf16")
    whole = AutoModelForCausalLM.from_pretrained(tmp_path / "model", dtype="auto")
    assert whole.dtype == torch.bfloat16
    assert 0 < result["checks"]["differences"]["written"] < 0.05


@pytest.fixture
def with_head(starter: Path, tmp_path: Path) -> dict[str, str]:
    """Return an adapter on an output layer that is tied to the embeddings, as other tools write them."""
    base = AutoModelForCausalLM.from_pretrained(starter)
    lora = LoraConfig(
        r=4, target_modules=["q_proj", "lm_head"], task_type="CAUSAL_LM", init_lora_weights=False
    )
    torch.manual_seed(0)
    adapted = get_peft_model(base, lora)
    adapted.save_pretrained(tmp_path / "adapter", save_embedding_layers=False)
    return {"base": str(starter), "adapter": str(tmp_path / "adapter")}


@TIED
def test_a_trained_output_layer_is_not_lost_to_tied_embeddings(
    with_head: dict[str, str], tmp_path: Path
) -> None:
    run_merge(with_head, tmp_path / "merged")
    whole = AutoModelForCausalLM.from_pretrained(tmp_path / "merged" / "model")
    assert not torch.equal(whole.get_output_embeddings().weight, whole.get_input_embeddings().weight)


@TIED
@pytest.mark.parametrize(
    "lora",
    [
        {"modules_to_save": ["embed_tokens", "lm_head"]},
        {"modules_to_save": ["embed_tokens"]},
        {"modules_to_save": ["lm_head"]},
        {"modules_to_save": ["embed_tokens"], "ensure_weight_tying": True},
        {"trainable_token_indices": [5, 9, 300]},
        {"trainable_token_indices": {"embed_tokens": [5, 9]}},
    ],
    ids=str,
)
def test_trained_embeddings_and_tokens_of_a_tied_base_are_merged(
    starter: Path, tmp_path: Path, lora: dict[str, Any]
) -> None:
    base = AutoModelForCausalLM.from_pretrained(starter)
    config = LoraConfig(
        r=4, target_modules=["q_proj"], task_type="CAUSAL_LM", init_lora_weights=False, **lora
    )
    torch.manual_seed(0)
    adapted = get_peft_model(base, config)
    for name, weight in adapted.named_parameters():
        if "modules_to_save" in name or "trainable_tokens_delta" in name:
            weight.data += torch.randn_like(weight) * 0.3
    adapted.save_pretrained(tmp_path / "adapter")
    model = {"base": str(starter), "adapter": str(tmp_path / "adapter")}
    expected = logits(load_model(MergeConfig.model_validate({"model": model}).model, torch.float32))
    result = run_merge(model, tmp_path / "merged")
    whole = AutoModelForCausalLM.from_pretrained(tmp_path / "merged" / "model")
    assert torch.allclose(logits(whole), expected, atol=1e-4)
    assert not torch.allclose(expected, logits(AutoModelForCausalLM.from_pretrained(starter)), atol=1e-2)
    assert result["checks"]["differences"]["written"] <= 1e-4


@TIED
def test_a_written_model_with_other_logits_is_not_published(
    with_head: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # If the config still ties it, the output layer is read from the embeddings and its adapter is lost.
    monkeypatch.setattr("trainers.merge._untie_output_layer", lambda model: None)
    with pytest.raises(MergeDiffers, match="differ from the adapted model's"):
        run_merge(with_head, tmp_path / "merged")
    assert not (tmp_path / "merged" / "model").exists()


def test_a_whole_model_has_nothing_to_merge(starter: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigInvalid, match="has no adapter"):
        run_merge(str(starter), tmp_path)


def test_a_quantized_base_is_refused(adapted: dict[str, str], tmp_path: Path) -> None:
    quantized = tmp_path / "quantized"
    in_four_bits = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4")
    load_base(adapted["base"], torch.float32, quantization=in_four_bits).save_pretrained(quantized)
    with pytest.raises(ConfigInvalid, match="is quantized"):
        run_merge({"base": str(quantized), "adapter": adapted["adapter"]}, tmp_path / "merged")
