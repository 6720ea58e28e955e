"""Options of training stages: tuning, batches, attention, and the diagnosis of a loss that is not finite."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, TrainerState
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

from tests.integration.trainers.conftest import events, losses
from tests.integration.trainers.stages import Recorder, run_stage
from trainers import sft
from trainers.configs import TrainingConfig, parse_stage
from trainers.modeling.load import load_tokenizer
from trainers.rendering.examples.sft import load_examples
from trainers.runtime.errors import DeviceUnavailable
from trainers.training.diagnosis.non_finite import LossNotFinite, diagnose_non_finite
from trainers.training.loop import run_training_loop
from trainers.training.samplers import StepSampler

Write = Callable[[list[dict[str, Any]]], str]

ADAPTER = "adapter_model.safetensors"


@pytest.fixture
def stage(short_lora: dict[str, Any]) -> dict[str, Any]:
    return short_lora


def has_learned(run_dir: Path) -> bool:
    """Return whether the last steps have a lower loss than the first; single batches vary."""
    values = list(losses(run_dir).values())
    return sum(values[-4:]) < sum(values[:4])


@pytest.mark.parametrize(
    "tuning",
    [
        {"dora": True},
        {"rslora": True},
        {"quantization": "nf4"},
        {"quantization": "nf4", "double_quantization": False, "dora": True},
        {"target_modules": ["q_proj", "v_proj"], "dropout": 0.1},
    ],
    ids=str,
)
def test_each_kind_of_lora_learns_and_saves_what_it_learned(
    stage: dict[str, Any], tuning: dict[str, Any], tmp_path: Path
) -> None:
    run_stage(stage | {"max_steps": 24, "tuning": stage["tuning"] | tuning}, tmp_path)
    assert has_learned(tmp_path)
    weights = load_file(tmp_path / "model" / ADAPTER)
    assert all(weight.dtype == torch.float32 for weight in weights.values())
    moved = [weight.abs().max() > 0 for name, weight in weights.items() if "lora_B" in name]
    assert moved and all(moved)
    has_magnitudes = any("magnitude" in name for name in weights)
    assert has_magnitudes == bool(tuning.get("dora"))


def test_a_quantized_base_is_kept_in_four_bits(
    stage: dict[str, Any], monkeypatch: Any, tmp_path: Path
) -> None:

    kinds: set[str] = set()

    def record_modules(trainer: Any, *more: Any) -> None:
        kinds.update(type(module).__name__ for module in trainer.model.modules())
        run_training_loop(trainer, *more)

    monkeypatch.setattr(sft, "run_training_loop", record_modules)
    run_stage(stage | {"tuning": stage["tuning"] | {"quantization": "nf4"}}, tmp_path)
    assert "Linear4bit" in kinds


def test_the_rows_of_a_step_are_the_same_whatever_the_micro_batch(
    stage: dict[str, Any], tmp_path: Path
) -> None:
    by_micro_batch = {}
    for micro in (1, 8):
        run_stage(stage | {"micro_batch_size": micro}, tmp_path / str(micro))
        by_micro_batch[micro] = losses(tmp_path / str(micro))
    assert by_micro_batch[1] == pytest.approx(by_micro_batch[8], rel=1e-4)


def test_step_order_covers_every_row_once_and_differs_by_epoch() -> None:
    order = StepSampler([row % 7 for row in range(30)], rows_per_step=8, seed=1)
    first = list(order)
    order.set_epoch(1)
    second = list(order)
    assert sorted(first) == sorted(second) == list(range(30))
    assert first != second
    order.set_epoch(0)
    assert list(order) == first
    lengths = [row % 7 for row in first[:8]]
    assert lengths == sorted(lengths, reverse=True)


@pytest.mark.parametrize("packing", [False, True])
def test_what_the_model_is_trained_on_is_what_prepare_shows(
    stage: dict[str, Any], packing: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    examples = load_examples(stage["dataset"], load_tokenizer(stage["base"]), 64)
    recorder = Recorder(monkeypatch)
    epoch = {"epochs": 1, "max_steps": None, "batch_size": 4, "micro_batch_size": 2, "max_length": 64}
    run_stage(stage | epoch | {"packing": packing}, tmp_path)
    trained = [row for inputs in recorder.inputs for row in _rows(inputs)]
    expected = [(tuple(example.input_ids), tuple(example.labels)) for example in examples.examples]
    assert sorted(trained) == sorted(expected)


def _rows(inputs: dict[str, Any]) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    """Return the rows of a micro-batch without padding; positions separate packed rows."""
    if "attention_mask" in inputs:
        keep = inputs["attention_mask"].bool()
        pairs = zip(inputs["input_ids"], inputs["labels"], keep, strict=True)
        return [(tuple(ids[mask].tolist()), tuple(labels[mask].tolist())) for ids, labels, mask in pairs]
    starts = (inputs["position_ids"][0] == 0).nonzero().flatten().tolist()
    ends = [*starts[1:], inputs["input_ids"].shape[1]]
    ids, labels = inputs["input_ids"][0].tolist(), inputs["labels"][0].tolist()
    return [(tuple(ids[a:b]), tuple(labels[a:b])) for a, b in zip(starts, ends, strict=True)]


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_packed_rows_do_not_see_each_other(stage: dict[str, Any], attention: str) -> None:
    examples = load_examples(stage["dataset"], load_tokenizer(stage["base"]), 64).examples[:5]
    model = AutoModelForCausalLM.from_pretrained(stage["base"], attn_implementation=attention).eval()
    rows = [{"input_ids": e.input_ids, "labels": e.labels} for e in examples]
    collator = DataCollatorForLanguageModeling(pad_token_id=0, padding_free=True)
    inputs = {name: value for name, value in collator(rows).items() if name in ("input_ids", "position_ids")}
    with torch.inference_mode():
        together = model(**inputs, use_cache=False).logits[0]
        apart = [model(input_ids=torch.tensor([row["input_ids"]])).logits[0] for row in rows]
    assert torch.allclose(together, torch.cat(apart), atol=1e-4)


def test_packing_fills_sequences_and_lowers_the_loss(stage: dict[str, Any], tmp_path: Path) -> None:
    run_stage(stage | {"packing": True, "max_length": 128, "batch_size": 2, "micro_batch_size": 1}, tmp_path)
    assert has_learned(tmp_path)
    tokens = [event["values"]["tokens"] for event in events(tmp_path, "metrics")]
    assert tokens[-1] > 8 * 2 * 128 * 0.8


def test_noise_on_embeddings_changes_the_training_loss_alone(stage: dict[str, Any], tmp_path: Path) -> None:
    run_stage(stage, tmp_path / "plain")
    run_stage(stage | {"neftune_alpha": 15}, tmp_path / "noisy")
    assert losses(tmp_path / "noisy")[1] != losses(tmp_path / "plain")[1]
    assert has_learned(tmp_path / "noisy")


def test_checkpointed_activations_give_the_same_losses(stage: dict[str, Any], tmp_path: Path) -> None:
    run_stage(stage, tmp_path / "kept")
    run_stage(stage | {"activation_checkpointing": True}, tmp_path / "again")
    assert losses(tmp_path / "again") == pytest.approx(losses(tmp_path / "kept"), rel=1e-5)


def test_missing_attention_is_named(stage: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(DeviceUnavailable, match="flash_attention_2"):
        run_stage(stage | {"attention": "flash_attention_2"}, tmp_path)


def test_a_learning_rate_far_above_the_default_is_diagnosed(stage: dict[str, Any]) -> None:
    config = parse_stage(stage | {"learning_rate": 0.5, "tuning": {"method": "full"}})
    assert isinstance(config, TrainingConfig)
    state = TrainerState(global_step=30, log_history=[{"step": 20, "loss": 9.5, "grad_norm": 300.0}])
    error = diagnose_non_finite(config, None, state, {"loss": float("nan")})
    assert "learning_rate 0.5 is 2.5e+04 times the default of full tuning" in error.message
    assert "step 20 loss 9.5 gradient norm 300" in error.message
    assert "to 2e-05 at first" in str(error.hint)


def test_growing_gradients_are_diagnosed(stage: dict[str, Any]) -> None:
    config = parse_stage(stage | {"learning_rate": 1e-4})
    assert isinstance(config, TrainingConfig)
    logs = [{"step": step, "loss": 2.0, "grad_norm": 2.0**step} for step in range(1, 9)]
    state = TrainerState(global_step=9, log_history=logs)
    error = diagnose_non_finite(config, None, state, {"grad_norm": float("inf")})
    assert "The grad_norm is inf at step 9" in error.message
    assert "gradient norm had been growing" in error.message


def test_a_base_with_a_broken_weight_is_named(stage: dict[str, Any], tmp_path: Path) -> None:
    base = tmp_path / "broken"
    shutil.copytree(stage["base"], base)
    weights = load_file(base / "model.safetensors")
    name = "model.layers.1.mlp.up_proj.weight"
    weights[name][0, 0] = float("inf")
    save_file(weights, base / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(LossNotFinite, match=r"up_proj.*contains values that are not finite"):
        run_stage(stage | {"base": str(base)}, tmp_path / "run")
