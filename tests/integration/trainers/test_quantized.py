"""Goal: evaluation and checkpoints between two steps do not change a base in 4 bits.

Only on a CPU with AVX512-BF16 does bitsandbytes try to change it.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict
from transformers import BitsAndBytesConfig

from tests.integration.trainers.conftest import losses
from tests.integration.trainers.stages import at_checkpoint, run_stage
from trainers.modeling.load import load_base

pytest.importorskip("bitsandbytes")
# PEFT and bitsandbytes call functions that transformers and torch deprecate.
pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
Stage = dict[str, Any]
Write = Callable[[list[dict[str, Any]]], str]
IDS = torch.arange(20, 60)[None]
ADAPTER = "model/adapter_model.safetensors"


def four_bits(starter: Path, double: bool) -> Any:
    quantization = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=double
    )
    return load_base(str(starter), torch.float32, quantization=quantization)


@pytest.fixture(params=[False, True], ids=["nf4", "nf4-double"])
def model(starter: Path, request: pytest.FixtureRequest) -> Any:
    torch.manual_seed(1)
    adapter = LoraConfig(target_modules="all-linear", init_lora_weights=False, task_type="CAUSAL_LM")
    return get_peft_model(four_bits(starter, request.param), adapter)


def compute_eval_logits(model: PeftModel) -> torch.Tensor:
    with torch.no_grad():
        logits: torch.Tensor = model.eval()(IDS).logits
    return logits


def gradients(model: PeftModel) -> list[torch.Tensor]:
    model.train().zero_grad()
    model(IDS, labels=IDS).loss.backward()
    return [
        parameter.grad.clone()
        for parameter in model.parameters()
        if parameter.requires_grad and parameter.grad is not None
    ]


def test_judging_reads_the_weights_that_training_reads(model: PeftModel) -> None:
    with torch.no_grad():
        trained = model.train()(IDS).logits
    assert torch.equal(compute_eval_logits(model), trained)


def test_judging_leaves_the_gradients_as_they_were(model: PeftModel) -> None:
    before = gradients(model)
    compute_eval_logits(model)
    assert all(map(torch.equal, gradients(model), before))


def test_saving_leaves_answers_and_gradients_as_they_were(model: PeftModel) -> None:
    answers, before = compute_eval_logits(model), gradients(model)
    compute_eval_logits(model)
    get_peft_model_state_dict(model)
    assert torch.equal(compute_eval_logits(model), answers)
    assert all(map(torch.equal, gradients(model), before))


def test_a_quantized_folder_has_the_same_logits_after_state_dict(starter: Path, tmp_path: Path) -> None:
    four_bits(starter, double=False).save_pretrained(tmp_path / "base")
    model: Any = load_base(str(tmp_path / "base"), torch.float32)
    before = compute_eval_logits(model)
    model.state_dict()
    assert torch.equal(compute_eval_logits(model), before)


@pytest.fixture
def stage(short_sft: Stage) -> Stage:
    tuning = {"quantization": "nf4", "rank": 4, "alpha": 8}
    return short_sft | {"tuning": tuning, "max_steps": 6, "keep_checkpoints": 100}


def test_neither_validation_nor_a_resume_changes_the_losses(
    stage: Stage, held_out_rows: str, tmp_path: Path
) -> None:
    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    run_stage(stage, tmp_path / "alone")
    stage |= {"validation_dataset": held_out_rows, "max_validation_rows": 4, "save_every_steps": 2}
    run_stage(stage, whole)
    assert losses(whole) == losses(tmp_path / "alone")
    at_checkpoint(whole, resumed, 4)
    run_stage(stage, resumed)
    assert losses(resumed) == {step: loss for step, loss in losses(whole).items() if step > 4}
    assert (resumed / ADAPTER).read_bytes() == (whole / ADAPTER).read_bytes()


def test_a_reference_judged_before_training_leaves_dpo_its_gradients(
    stage: Stage, write_rows: Write, tmp_path: Path
) -> None:
    rows = [{"prompt": f"{n} + 1?", "chosen": f"#### {n + 1}", "rejected": f"#### {n}"} for n in range(16)]
    stage |= {"stage": "dpo", "dataset": write_rows(rows), "max_length": 64, "max_steps": 2}
    run_stage(stage, tmp_path / "computed")
    run_stage(stage | {"precompute_reference": True}, tmp_path / "precomputed")
    assert losses(tmp_path / "precomputed") == pytest.approx(losses(tmp_path / "computed"), rel=1e-5)
