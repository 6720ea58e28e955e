"""Goal: padding-free training gives the losses of padded training, and is used where it is cheap."""

from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.testing import assert_close
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling
from trl.trainer.utils import add_fused_lm_head

from tests.architectures import ARCHITECTURES, MULTIMODAL, Architecture, build_model, find_architecture
from tests.integration.trainers.conftest import events, losses
from tests.integration.trainers.stages import run_stage
from trainers.configs.stages.sft import SftConfig
from trainers.configs.training import Attention
from trainers.modeling.attention.choice import pick_attention
from trainers.modeling.fused import small_model
from trainers.modeling.load import load_tokenizer
from trainers.rendering.examples.sft import load_examples
from trainers.rendering.render import IGNORE_INDEX
from trainers.training import packing_proof
from trainers.training.padding_free import (
    PACKABLE_ARCHITECTURES,
    ROW_BY_ROW,
    VERIFIED_ARCHITECTURES,
    project_loss_tokens_only,
    uses_padding_free,
)

Stage = dict[str, Any]
ROWS = [{"input_ids": list(range(first, first + length))} for first, length in ((3, 9), (20, 4), (31, 17))]
# Longer than the sliding windows of these models.
LONG_ROWS = [
    {"input_ids": [3 + (7 * first + 5 * n) % 60 for n in range(length)]}
    for first, length in ((3, 9), (20, 40), (31, 23))
]
PACKABLE = [
    known for known in [*ARCHITECTURES, *MULTIMODAL] if known.text_architecture in PACKABLE_ARCHITECTURES
]


@pytest.fixture
def stage(short_sft: Stage) -> Stage:
    """Return a stage without any setting of attention or padding."""
    return short_sft | {"max_steps": 6}


def small(architecture: Architecture) -> PreTrainedModel:
    config = architecture.config(64, 0, 1)
    attention = pick_attention(Attention.auto, torch.device("cpu"), config)
    return build_model(config, attn_implementation=attention).eval()


def tiny(architecture: str) -> PreTrainedModel:
    config = AutoConfig.for_model(
        architecture,
        vocab_size=64,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        pad_token_id=0,
    )
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config, attn_implementation="sdpa").eval()


@pytest.mark.parametrize("architecture", sorted(VERIFIED_ARCHITECTURES))
def test_concatenated_rows_have_the_logits_of_each_alone(architecture: str) -> None:
    model = tiny(architecture)
    apart = [model(torch.tensor([row["input_ids"]])).logits[0] for row in ROWS]
    model.set_attn_implementation(ROW_BY_ROW)
    inputs = DataCollatorForLanguageModeling(pad_token_id=0, padding_free=True)(ROWS)
    assert_close(model(**inputs, use_cache=False).logits[0], torch.cat(apart))


@pytest.mark.parametrize("architecture", PACKABLE, ids=lambda architecture: architecture.name)
def test_packed_rows_have_the_logits_of_each_alone(architecture: Architecture) -> None:
    model = small(architecture)
    inputs = DataCollatorForLanguageModeling(pad_token_id=0, padding_free=True)(LONG_ROWS)
    with torch.inference_mode():
        apart = [model(torch.tensor([row["input_ids"]])).logits[0] for row in LONG_ROWS]
        assert_close(model(**inputs, use_cache=False).logits[0], torch.cat(apart), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    "architecture", [*ARCHITECTURES, *MULTIMODAL], ids=lambda architecture: architecture.name
)
def test_the_trial_at_the_start_agrees_with_the_list(
    architecture: Architecture, monkeypatch: pytest.MonkeyPatch
) -> None:
    is_packable = architecture.text_architecture in PACKABLE_ARCHITECTURES
    monkeypatch.setattr(packing_proof, "PACKABLE_ARCHITECTURES", frozenset({"another"}))
    config = SftConfig(base="org/base", dataset="rows", packing=True)
    with nullcontext() if is_packable else pytest.raises(packing_proof.PackingUnproven):
        packing_proof.prove_packing(config, architecture.config(64, 0, 1))


def test_a_model_that_is_too_large_for_the_trial_is_not_packed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packing_proof, "PACKABLE_ARCHITECTURES", frozenset({"another"}))
    monkeypatch.setattr(small_model, "MAX_PARAMETERS", 1000)
    config = SftConfig(base="org/base", dataset="rows", packing=True)
    with pytest.raises(packing_proof.PackingUnproven, match="too large to be tried"):
        packing_proof.prove_packing(config, find_architecture("Llama").config(64, 0, 1))


def test_every_packable_architecture_is_proved() -> None:
    assert {architecture.text_architecture for architecture in PACKABLE} == PACKABLE_ARCHITECTURES


@pytest.mark.parametrize("name", ["gpt-oss", "OPT"])
def test_rows_that_a_model_mixes_are_noticed(name: str) -> None:
    mixing = find_architecture(name)
    with pytest.raises(AssertionError, match="Tensor-likes are not close"):
        test_packed_rows_have_the_logits_of_each_alone(mixing)


def test_padded_rows_are_still_answered_as_each_alone() -> None:
    model = tiny("llama")
    apart = [model(torch.tensor([row["input_ids"]])).logits[0] for row in ROWS]
    model.set_attn_implementation(ROW_BY_ROW)
    inputs = DataCollatorForLanguageModeling(pad_token_id=0)(ROWS)
    kept = inputs["attention_mask"].bool()
    assert_close(model(**inputs, use_cache=False).logits[kept], torch.cat(apart))


@pytest.mark.parametrize("tuning", [{"rank": 4, "alpha": 8}, {"method": "full"}], ids=["lora", "full"])
def test_padding_free_training_equals_padded_training(
    stage: Stage, tuning: dict[str, Any], held_out_rows: str, tmp_path: Path
) -> None:
    stage |= {"tuning": tuning, "validation_dataset": held_out_rows, "validate_every_steps": 3}
    run_stage(stage, tmp_path / "flat")
    run_stage(stage | {"attention": "sdpa"}, tmp_path / "padded")
    flat, padded = (events(tmp_path / name, "metrics") for name in ("flat", "padded"))
    assert len(flat) == len(padded) == 8
    for one, other in zip(flat, padded, strict=True):
        assert _without_times(one["values"]) == pytest.approx(_without_times(other["values"]), rel=1e-4)


def _without_times(values: dict[str, float]) -> dict[str, float]:
    return {name: value for name, value in values.items() if not name.endswith(("_runtime", "_per_second"))}


def test_packed_training_equals_training_under_a_mask(stage: Stage, tmp_path: Path) -> None:
    stage |= {"packing": True, "max_length": 128, "batch_size": 2}
    run_stage(stage, tmp_path / "row-by-row")
    run_stage(stage | {"attention": "sdpa"}, tmp_path / "masked")
    assert losses(tmp_path / "row-by-row") == pytest.approx(losses(tmp_path / "masked"), rel=1e-4)


def test_tokens_that_end_turns_are_counted_where_they_are_also_the_padding(
    stage: Stage, tmp_path: Path
) -> None:
    base = tmp_path / "base"
    AutoModelForCausalLM.from_pretrained(stage["base"]).save_pretrained(base)
    tokenizer = AutoTokenizer.from_pretrained(stage["base"])
    tokenizer.pad_token = tokenizer.eos_token
    tokenizer.save_pretrained(base)
    examples = load_examples(stage["dataset"], load_tokenizer(str(base)), 1024)
    result = run_stage(stage | {"base": str(base), "max_steps": None}, tmp_path / "run")
    assert result is not None
    assert result["metrics"]["tokens"] == examples.tokens


def test_the_head_is_used_only_where_a_token_carries_loss() -> None:
    model = tiny("llama")
    add_fused_lm_head(model)
    labels = [
        [IGNORE_INDEX, *row["input_ids"][1:4], *[IGNORE_INDEX] * (len(row["input_ids"]) - 4)] for row in ROWS
    ]
    rows = [{"input_ids": row["input_ids"], "labels": each} for row, each in zip(ROWS, labels, strict=True)]
    inputs = DataCollatorForLanguageModeling(pad_token_id=0)(rows)
    everywhere = model(**inputs, fused_lm_head=True)
    with project_loss_tokens_only(model, inputs) as less:
        there = model(**less, fused_lm_head=True)
    assert everywhere.log_probs.numel() == 3 * 16
    assert there.log_probs.numel() == 3 * 3
    assert_close(there.loss, everywhere.loss)
    assert_close(
        torch.autograd.grad(there.loss, model.model.embed_tokens.weight),
        torch.autograd.grad(everywhere.loss, model.model.embed_tokens.weight),
    )


@pytest.mark.parametrize(
    ("changed", "architecture", "window", "expected"),
    [
        ({}, "llama", None, True),
        ({"batch_size": 1}, "llama", None, False),
        ({"batch_size": 1, "packing": True}, "llama", None, True),
        ({"neftune_alpha": 5}, "llama", None, False),
        ({"neftune_alpha": 5, "packing": True}, "llama", None, True),
        ({"attention": "sdpa"}, "llama", None, False),
        ({"attention": "eager"}, "llama", None, False),
        ({}, "mistral", 4096, True),
        ({}, "mistral", 512, False),
        ({}, "lfm2", None, False),
    ],
    ids=str,
)
def test_padding_free_is_used_where_attention_separates_rows_cheaply(
    changed: dict[str, Any], architecture: str, window: int | None, expected: bool
) -> None:
    config = SftConfig.model_validate({"base": "b", "dataset": "d", "queue": "cpu", **changed})
    model = AutoConfig.for_model(architecture)
    model.sliding_window = window
    assert uses_padding_free(config, model) is expected


def test_a_dry_run_contains_whether_rows_are_padded(
    stage: Stage, write_rows: Callable[[list[dict[str, Any]]], str]
) -> None:
    from trainers.sft import plan

    assert plan(SftConfig.model_validate(stage))["padding_free"] is True
    assert plan(SftConfig.model_validate(stage | {"attention": "sdpa"}))["padding_free"] is False
