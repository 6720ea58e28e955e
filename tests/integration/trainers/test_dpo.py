"""Goal: DPO compares with the untrained model, and resumes after a kill. Method: tiny real runs."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError
from safetensors.torch import load_file

from tests.integration.trainers.conftest import Programs, assert_same_run, events, kill_at_step, losses
from tests.integration.trainers.stages import run_stage
from trainers.configs import DpoConfig, DpoLoss, parse_stage
from trainers.data.recipes.arithmetic import ProblemSplit, generate_problems
from trainers.dpo import plan
from trainers.modeling.load import load_tokenizer
from trainers.rendering.examples.preferences import load_preferences
from trainers.runtime import run_dir as files
from trainers.runtime.errors import DatasetInvalid

STEPS = 40  # 30 pairs in batches of 4: an epoch of 8 steps ends in a batch that is not full.


@pytest.fixture(scope="module")
def preference_rows(write_rows: Callable[[list[dict[str, Any]]], str]) -> str:
    return write_rows(
        [
            {"prompt": row["question"], "chosen": row["answer"], "rejected": _one_more(row["answer"])}
            for row in generate_problems(30, ProblemSplit.train, seed=2)
        ]
    )


def _one_more(answer: str) -> str:
    return re.sub(r"#### (\d+)", lambda match: f"#### {int(match[1]) + 1}", answer)


@pytest.fixture(scope="module")
def lora(adapted: dict[str, str], preference_rows: str) -> dict[str, Any]:
    return {
        "stage": "dpo",
        "base": adapted,
        "dataset": preference_rows,
        "tuning": {"method": "lora", "rank": 8, "alpha": 16},
        "losses": {"sigmoid": 1, "sft": 0.5},
        "max_steps": STEPS,
        "batch_size": 4,
        "micro_batch_size": 2,
        "learning_rate": 5e-3,
        "log_every_steps": 1,
        "save_every_steps": 10,
    }


@pytest.fixture(scope="module")
def full(lora: dict[str, Any]) -> dict[str, Any]:
    more = {"losses": {"sigmoid": 1}, "learning_rate": 1e-3, "precompute_reference": True}
    return lora | {"tuning": {"method": "full"}} | more


@pytest.fixture(scope="module")
def lora_run(lora: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run_to_end(lora, tmp_path_factory.mktemp("lora") / "run")


@pytest.fixture(scope="module")
def full_run(full: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run_to_end(full, tmp_path_factory.mktemp("full") / "run")


def test_adapter_continues_the_sft_adapter_and_is_compared_with_it(
    lora_run: Path, adapted: dict[str, str]
) -> None:
    assert_starts_at_the_reference(lora_run)
    before = load_file(Path(adapted["adapter"]) / "adapter_model.safetensors")
    after = load_file(lora_run / "model" / "adapter_model.safetensors")
    assert before.keys() == after.keys()
    assert all(0 < (after[name] - before[name]).abs().max() < 0.2 for name in before)
    assert sorted(path.name for path in (lora_run / "model").iterdir() if path.is_dir()) == []


def test_margins_grow_and_are_in_the_result(lora_run: Path) -> None:
    result = files.read_result(lora_run)
    assert result is not None
    assert (result["stage"], result["model"]["kind"]) == ("dpo", "adapter")
    curve = margins(lora_run)
    assert result["metrics"]["margin"] == curve[STEPS]
    assert sum(curve[step] for step in range(STEPS - 9, STEPS + 1)) / 10 > 0.005


def test_killed_lora_run_repeats_every_loss_across_epochs(
    programs: Programs, lora: dict[str, Any], lora_run: Path, tmp_path: Path
) -> None:
    kill_at_step(programs, "trainers.dpo", lora, tmp_path, at_step=24)
    run_to_end(lora, tmp_path)
    assert_same_run(tmp_path, lora_run, "adapter_model.safetensors")


def test_full_tuning_is_compared_with_the_merged_adapter(full_run: Path, lora_run: Path) -> None:
    assert_starts_at_the_reference(full_run)
    logps = [events(run, "metrics")[0]["values"]["logps/chosen"] for run in (full_run, lora_run)]
    assert logps[0] == pytest.approx(logps[1], rel=1e-5)
    result = files.read_result(full_run)
    assert result is not None
    assert result["model"]["kind"] == "base"
    assert not (full_run / "pairs").exists()


def test_reference_kept_in_memory_gives_the_losses_of_the_precomputed_one(
    full: dict[str, Any], full_run: Path, tmp_path: Path
) -> None:
    run_to_end(full | {"precompute_reference": False}, tmp_path)
    assert_starts_at_the_reference(tmp_path)
    assert losses(tmp_path) == pytest.approx(losses(full_run), abs=1e-3)


def test_killed_full_run_repeats_every_loss_with_the_first_reference(
    programs: Programs, full: dict[str, Any], full_run: Path, tmp_path: Path
) -> None:
    kill_at_step(programs, "trainers.dpo", full, tmp_path, at_step=24)
    [computed] = (tmp_path / "pairs").glob("cache-*.arrow")
    assert computed.stat().st_size > 0
    run_to_end(full, tmp_path)
    assert_same_run(tmp_path, full_run, "model.safetensors")


def test_warning_when_chosen_answers_become_less_likely(full_run: Path, lora_run: Path) -> None:
    assert [event["code"] for event in events(full_run, "warning")] == ["chosen_logp_falls"]
    assert events(lora_run, "warning") == []


def test_all_losses_train_together_on_a_new_adapter(
    lora: dict[str, Any], starter: Path, tmp_path: Path
) -> None:
    every = {loss.value: 0.5 for loss in DpoLoss}
    config = lora | {"base": str(starter), "losses": every, "label_smoothing": 0.1, "max_steps": 2}
    run_to_end(config, tmp_path)
    assert_starts_at_the_reference(tmp_path)
    weights = load_file(tmp_path / "model" / "adapter_model.safetensors")
    assert all(tensor.abs().max() > 0 for tensor in weights.values())


def test_dry_run_returns_the_resolved_plan(lora: dict[str, Any]) -> None:
    planned = plan(parse_stage(lora | {"max_steps": None}))  # type: ignore[arg-type]
    expected = {"stage": "dpo", "rows": 30, "pairs": 30, "identical": 0, "steps": 8, "device": "cpu"}
    assert expected.items() <= planned.items()


def test_rows_that_are_not_pairs_are_named(
    starter: Path, write_rows: Callable[[list[dict[str, Any]]], str]
) -> None:
    tokenizer = load_tokenizer(str(starter))
    pair = {"prompt": "2 + 2?", "chosen": "4", "rejected": "5"}
    with pytest.raises(DatasetInvalid, match=r"Row 2 .* not a preference pair.* question, answer"):
        load_preferences(write_rows([pair, {"question": "2 + 2?", "answer": "4"}]), tokenizer, 64)
    with pytest.raises(DatasetInvalid, match="every prompt fills max_length 8"):
        load_preferences(write_rows([pair]), tokenizer, 8)
    kept = load_preferences(write_rows([pair, pair | {"rejected": "4"}]), tokenizer, 64)
    assert (kept.rows, len(kept.triples), kept.identical_rows, kept.truncated) == (2, 2, [2], 0)


def test_preferences_are_the_tokens_of_the_whole_conversations(starter: Path, preference_rows: str) -> None:
    tokenizer = load_tokenizer(str(starter))
    row = json.loads(Path(preference_rows).read_text().splitlines()[0])
    triple = load_preferences(preference_rows, tokenizer, 256).triples[0]
    for answer in ("chosen", "rejected"):
        turns = [{"role": "user", "content": row["prompt"]}, {"role": "assistant", "content": row[answer]}]
        whole = tokenizer.apply_chat_template(turns, tokenize=True, return_dict=True)["input_ids"]
        assert triple["prompt_ids"] + triple[f"{answer}_ids"] == whole


@pytest.mark.parametrize(
    ("values", "why"),
    [
        ({"losses": {"exo_pair": 1}}, "exo_pair needs a label_smoothing above 0"),
        ({"label_smoothing": 0.1}, "has no effect on the losses sigmoid"),
        ({"tuning": {"dropout": 0.1}}, "tuning.dropout 0.1 has no effect: dpo disables dropout"),
        ({"losses": {}}, "at least 1"),
        ({"tuning": {"method": "lora", "target_modules": ["lm_head"]}}, "contains lm_head"),
    ],
)
def test_settings_that_do_nothing_are_refused(values: dict[str, Any], why: str) -> None:
    with pytest.raises(ValidationError, match=why):
        parse_stage({"stage": "dpo", "base": "a/b", "dataset": "rows.jsonl"} | values)


def test_learning_rate_follows_the_kind_of_tuning() -> None:
    config = {"stage": "dpo", "base": "a/b", "dataset": "rows.jsonl"}
    rates = [parse_stage(config | {"tuning": {"method": method}}) for method in ("lora", "full")]
    assert [rate.learning_rate for rate in rates if isinstance(rate, DpoConfig)] == [1e-5, 1e-6]


def run_to_end(config: dict[str, Any], run_dir: Path) -> Path:
    assert run_stage(config, run_dir) is not None
    return run_dir


def margins(run_dir: Path) -> dict[int, float]:
    return {event["step"]: event["values"]["rewards/margins"] for event in events(run_dir, "metrics")}


def assert_starts_at_the_reference(run_dir: Path) -> None:
    first = events(run_dir, "metrics")[0]["values"]
    assert [first[f"rewards/{name}"] for name in ("chosen", "rejected", "margins")] == pytest.approx(
        [0, 0, 0], abs=1e-5
    )
