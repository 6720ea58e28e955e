"""Goal: the text model of a multimodal model is trained, merged and scored, and its encoders do not change.

Method: tiny random models of the published shapes, with an encoder of images. The benchmark
tests/benchmarks/trainers/architectures.py serves them too; vLLM was run by hand (decision 0086).
"""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoConfig

from tests.architectures import MULTIMODAL, build_model, find_architecture, write_model
from tests.benchmarks.trainers.architectures import try_architecture
from tests.integration.trainers.conftest import losses
from tests.integration.trainers.stages import run_stage
from trainers import sft
from trainers.configs import TrainingConfig, parse_stage
from trainers.configs.training import Attention, FullTuning, LoraTuning
from trainers.modeling.architecture import list_attention
from trainers.modeling.load import ModelUnsupported
from trainers.modeling.multimodal.architectures import MULTIMODAL_ARCHITECTURES
from trainers.modeling.multimodal.encoders import list_encoders
from trainers.preflight.memory.estimate import measure_shape
from trainers.training.model_proof import prove_model
from trainers.training.policy import build_empty_policy

PROCESSOR = "preprocessor_config.json"
FAMILIES = ["Qwen 3.5 with vision", "Gemma 4 with vision", "Mistral 3 with vision"]
OTHERS = [known.name for known in MULTIMODAL if known.name not in FAMILIES]


def write_base(name: str, starter: Path, folder: Path) -> Path:
    base = write_model(find_architecture(name), starter, folder)
    (base / PROCESSOR).write_text("{}")
    return base


def read_weights(folder: Path) -> dict[str, torch.Tensor]:
    (file,) = folder.glob("*.safetensors")
    weights: dict[str, torch.Tensor] = load_file(file)
    return weights


def encoder_weights(folder: Path) -> dict[str, torch.Tensor]:
    """Return the weights of all parts but the text model and its head."""
    return {
        name: weight
        for name, weight in read_weights(folder).items()
        if not name.startswith(("model.language_model", "language_model", "lm_head"))
    }


def stage(base: Path, rows: str, **settings: Any) -> dict[str, Any]:
    values = {"stage": "sft", "base": str(base), "dataset": rows, "queue": "cpu", "log_every_steps": 1}
    return values | {"batch_size": 8, "learning_rate": 3e-3, "preflight": "off"} | settings


@pytest.mark.parametrize(
    "name", [*FAMILIES[:2], *(pytest.param(name, marks=pytest.mark.slow) for name in [FAMILIES[2], *OTHERS])]
)
def test_an_adapter_changes_the_text_model_alone_and_is_merged_into_the_whole(
    name: str, starter: Path, tmp_path: Path
) -> None:
    row = try_architecture(find_architecture(name), starter, tmp_path, serve=False)
    assert (row.dry_run, row.train, row.merge) == ("accepted", "ok", "ok")
    assert (row.adapter_score or 0) >= 0.5
    assert row.merged_score == row.adapter_score
    adapter = read_weights(tmp_path / "sft/model")
    assert adapter and all(".language_model.layers." in key or "per_layer" in key for key in adapter)
    merged = encoder_weights(tmp_path / "merge/model")
    assert merged
    torch.testing.assert_close(merged, encoder_weights(tmp_path / "base"), rtol=0, atol=0)


@pytest.mark.parametrize(
    "name", [*(pytest.param(name, marks=pytest.mark.slow) for name in FAMILIES[:2]), FAMILIES[2]]
)
def test_full_tuning_leaves_the_encoders_and_their_settings_as_they_are(
    name: str, starter: Path, training_rows: str, tmp_path: Path
) -> None:
    base = write_base(name, starter, tmp_path / "base")
    run_stage(stage(base, training_rows, max_steps=6, tuning={"method": "full"}), tmp_path / "run")
    values = list(losses(tmp_path / "run").values())
    assert values[-1] < values[0] - 0.5
    model = tmp_path / "run/model"
    torch.testing.assert_close(encoder_weights(model), encoder_weights(base), rtol=0, atol=0)
    assert (model / PROCESSOR).is_file()
    assert json.loads((model / "config.json").read_text())["vision_config"]


def test_the_loss_of_a_step_does_not_depend_on_its_micro_batches(
    starter: Path, training_rows: str, tmp_path: Path
) -> None:
    base = write_base(FAMILIES[0], starter, tmp_path / "base")
    for size in (2, 8):
        run_stage(stage(base, training_rows, max_steps=2, micro_batch_size=size), tmp_path / str(size))
    assert losses(tmp_path / "2") == pytest.approx(losses(tmp_path / "8"), rel=1e-4)


def test_a_dry_run_names_what_is_not_trained(starter: Path, training_rows: str, tmp_path: Path) -> None:
    base = write_base(FAMILIES[2], starter, tmp_path / "base")
    plan = sft.plan(parse_stage(stage(base, training_rows, max_steps=2, preflight="check")))  # type: ignore[arg-type]
    (found,) = [one for one in plan["findings"] if one["code"] == "encoders_not_trained"]
    assert "model.vision_tower, model.multi_modal_projector" in found["message"]
    assert found["level"] == "info"


@pytest.mark.parametrize("known", MULTIMODAL, ids=lambda known: known.name)
def test_the_estimate_counts_encoders_as_weights_that_are_not_trained(known: Any) -> None:
    model = build_model(known.config(64, 0, 1))
    shape = measure_shape(model, FullTuning(method="full"))
    assert shape is not None
    assert shape.parameters == sum(weight.numel() for weight in model.parameters())
    frozen = [weight for name in list_encoders(model) for weight in model.get_submodule(name).parameters()]
    assert shape.frozen_parameters == sum(weight.numel() for weight in frozen) > 0


def test_the_estimate_counts_the_parameters_of_the_adapter_that_is_trained(
    starter: Path, training_rows: str, tmp_path: Path
) -> None:
    base = write_base(FAMILIES[1], starter, tmp_path / "base")
    config = parse_stage(stage(base, training_rows, tuning={"rank": 4, "target_modules": ["q_proj"]}))
    assert isinstance(config, TrainingConfig) and isinstance(config.tuning, LoraTuning)
    policy = build_empty_policy(config)
    trained = sum(weight.numel() for weight in policy.parameters() if weight.requires_grad)
    shape = measure_shape(build_model(AutoConfig.from_pretrained(base)), config.tuning)
    assert shape is not None and shape.adapter_parameters == trained > 0


def test_routers_of_experts_are_not_adapted(starter: Path, training_rows: str, tmp_path: Path) -> None:
    base = write_base("Gemma 4 MoE", starter, tmp_path / "base")
    config = parse_stage(stage(base, training_rows))
    assert isinstance(config, TrainingConfig)
    adapted = [name for name, _ in build_empty_policy(config).named_parameters() if "lora_A" in name]
    assert adapted and not any("router" in name for name in adapted)


def test_a_multimodal_model_without_a_proof_is_refused(
    starter: Path, training_rows: str, tmp_path: Path
) -> None:
    base = write_base(FAMILIES[2], starter, tmp_path / "base")
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps(config | {"model_type": "llava"}))
    with pytest.raises(ModelUnsupported, match="llava has other parts than its text model") as error:
        prove_model(parse_stage(stage(base, training_rows)))  # type: ignore[arg-type]
    assert all(known in error.value.message for known in MULTIMODAL_ARCHITECTURES)


def test_flash_attention_is_not_offered_for_heads_that_it_cannot_compute() -> None:
    offered = list_attention(AutoConfig.for_model("gemma4_text"))
    assert Attention.flash_attention_2 not in offered and Attention.sdpa in offered
    assert Attention.flash_attention_2 in list_attention(AutoConfig.for_model("gemma3_text"))
