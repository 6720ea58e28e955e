"""Goal: a student learns from its teacher, and resumes after a kill. Method: tiny real runs."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoModelForCausalLM

from tests.integration.trainers import number_task
from tests.integration.trainers.conftest import Programs, assert_same_run, events, kill_at_step, losses
from tests.integration.trainers.stages import run_stage
from trainers.configs import parse_stage
from trainers.configs.base import AdaptedModel
from trainers.distill import plan
from trainers.modeling.load import load_tokenizer
from trainers.modeling.teacher import TeacherMismatch, check_teacher
from trainers.preflight.check import check_stage
from trainers.runtime import run_dir as files
from trainers.runtime.errors import ConfigInvalid
from trainers.training.on_policy.rollouts import load_student_prompts

STEPS = 30


@pytest.fixture(scope="module")
def prompts(write_rows: Callable[[list[dict[str, Any]]], str]) -> str:
    """Return rows with wrong completions, which are not read."""
    return write_rows(number_task.wrong_rows())


@pytest.fixture(scope="module")
def teacher(
    undecided: Path,
    write_rows: Callable[[list[dict[str, Any]]], str],
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    rows = write_rows(number_task.right_rows())
    return number_task.train_on(rows, undecided, 30, tmp_path_factory.mktemp("teacher") / "run")


@pytest.fixture(scope="module")
def lora(undecided: Path, teacher: Path, prompts: str) -> dict[str, Any]:
    return {
        "stage": "distill",
        "base": str(undecided),
        "teacher": str(teacher),
        "dataset": prompts,
        "tuning": {"method": "lora", "rank": 8, "alpha": 16, "dropout": 0.05},
        "max_steps": STEPS,
        "batch_size": 32,
        "micro_batch_size": 16,
        "max_completion_length": 6,
        "learning_rate": 5e-3,
        "log_every_steps": 1,
        "save_every_steps": 10,
        "samples_per_log": 2,
    }


@pytest.fixture(scope="module")
def lora_run(lora: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run_to_end(lora, tmp_path_factory.mktemp("lora") / "run")


def test_student_scores_almost_as_its_teacher(lora_run: Path, undecided: Path, teacher: Path) -> None:
    student = AdaptedModel(base=str(undecided), adapter=str(lora_run / "model"))
    before, after = number_task.held_out_score(str(undecided)), number_task.held_out_score(student)
    assert before <= 0.2
    assert after >= 0.6
    assert after >= number_task.held_out_score(str(teacher)) - 0.2
    result = files.read_result(lora_run)
    assert result is not None
    assert (result["stage"], result["model"]["kind"]) == ("distill", "adapter")
    assert result["metrics"]["last_divergence"] < result["metrics"]["first_divergence"]


def test_samples_hold_the_students_completions(lora_run: Path) -> None:
    samples = files.read_lines(lora_run / "samples.jsonl")
    assert [sample["step"] for sample in samples] == [step for step in range(1, STEPS + 1) for _ in range(2)]
    questions = {question for question, _ in number_task.TRAINED}
    assert {sample["prompt"][0]["content"] for sample in samples} <= questions
    assert any(sample["completion"].startswith("####") for sample in samples[-8:])


def test_killed_run_samples_the_same_completions_again(
    programs: Programs, lora: dict[str, Any], lora_run: Path, tmp_path: Path
) -> None:
    kill_at_step(programs, "trainers.distill", lora, tmp_path, at_step=14)
    run_to_end(lora, tmp_path)
    assert_same_run(tmp_path, lora_run, "adapter_model.safetensors")


def test_full_tuning_has_the_losses_of_any_micro_batch(
    lora: dict[str, Any], lora_run: Path, undecided: Path, tmp_path: Path
) -> None:
    # The teacher is an adapter on its base.
    taught = {"base": str(undecided), "adapter": str(lora_run / "model")}
    full = lora | {"tuning": {"method": "full"}, "teacher": taught, "learning_rate": 1e-4, "max_steps": 2}
    run_to_end(full, tmp_path / "large")
    run_to_end(full | {"micro_batch_size": 4}, tmp_path / "small")
    large, small = losses(tmp_path / "large"), losses(tmp_path / "small")
    assert small == pytest.approx(large, abs=1e-4)
    assert large[1] > 0.01


def test_dry_run_returns_the_resolved_plan_with_the_memory_of_the_teacher(lora: dict[str, Any]) -> None:
    planned = plan(parse_stage(lora | {"max_steps": None}))  # type: ignore[arg-type]
    assert {"stage": "distill", "rows": 24, "steps": 1, "batch_size": 32}.items() <= planned.items()
    assert [found["code"] for found in planned["findings"]] == ["few_steps"]
    [host] = planned["memory"]["hosts"]
    assert host["parts"]["teacher"] > 0
    assert host["parts"]["kv_cache"] > 0


def test_teacher_with_more_embeddings_teaches_the_same(
    lora: dict[str, Any], lora_run: Path, teacher: Path, tmp_path: Path
) -> None:
    padded = resized(teacher, tmp_path / "padded", 16)
    run_to_end(lora | {"teacher": str(padded), "max_steps": 1}, tmp_path / "run")
    assert losses(tmp_path / "run") == {1: pytest.approx(losses(lora_run)[1], abs=1e-6)}


def test_teacher_with_other_tokens_is_refused(
    undecided: Path, teacher: Path, prompts: str, lora: dict[str, Any], tmp_path: Path
) -> None:
    tokenizer = load_tokenizer(str(undecided))
    rows = load_student_prompts(prompts, tokenizer)
    other = with_swapped_tokens(teacher, tmp_path / "other")
    with pytest.raises(TeacherMismatch, match=r"another tokenizer than the student: 2 of \d+ tokens"):
        check_teacher(str(other), str(undecided), tokenizer, rows.pairs)
    smaller = resized(teacher, tmp_path / "smaller", -8)
    with pytest.raises(TeacherMismatch, match="no probability for the rest"):
        check_teacher(str(smaller), str(undecided), tokenizer, rows.pairs)
    found = check_stage(parse_stage(lora | {"teacher": str(other)}), tokenizer, rows)  # type: ignore[arg-type]
    assert "teacher_mismatch" in [one.code for one in found]
    # Without the checks before training, too.
    with pytest.raises(TeacherMismatch):
        run_stage(lora | {"teacher": str(other), "preflight": "off"}, tmp_path / "run")


def test_teacher_with_another_template_is_a_warning(
    lora: dict[str, Any], teacher: Path, tmp_path: Path
) -> None:
    shutil.copytree(teacher, tmp_path / "other")
    template = tmp_path / "other" / "chat_template.jinja"
    template.write_text(template.read_text().replace("<|im_start|>", "<|im_start|> "))
    run_to_end(lora | {"teacher": str(tmp_path / "other"), "max_steps": 1}, tmp_path / "run")
    assert "teacher_template_differs" in [event["code"] for event in events(tmp_path / "run", "warning")]


def test_a_model_is_not_its_own_teacher(lora: dict[str, Any], undecided: Path) -> None:
    with pytest.raises(ConfigInvalid, match="teacher and base are the same model"):
        plan(parse_stage(lora | {"teacher": str(undecided)}))  # type: ignore[arg-type]


def resized(model: Path, folder: Path, tokens: int) -> Path:
    """Return a copy of a model with more or fewer embeddings."""
    shutil.copytree(model, folder)
    loaded = AutoModelForCausalLM.from_pretrained(folder)
    loaded.resize_token_embeddings(loaded.config.vocab_size + tokens)
    loaded.save_pretrained(folder)
    return folder


def with_swapped_tokens(model: Path, folder: Path) -> Path:
    shutil.copytree(model, folder)
    path = folder / "tokenizer.json"
    content = json.loads(path.read_text())
    vocabulary = content["model"]["vocab"]
    first, second = list(vocabulary)[40:42]
    vocabulary[first], vocabulary[second] = vocabulary[second], vocabulary[first]
    path.write_text(json.dumps(content))
    return folder


def run_to_end(config: dict[str, Any], run_dir: Path) -> Path:
    assert run_stage(config, run_dir) is not None
    return run_dir
