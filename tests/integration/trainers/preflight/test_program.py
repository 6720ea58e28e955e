"""The preflight program: its result, its log and the rows that it previews."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.integration.trainers.conftest import Programs
from tests.integration.trainers.preflight.test_findings import CLEAN, chat, pairs, run_preflight
from trainers.configs import SftConfig
from trainers.sft import plan

Write = Callable[[list[dict[str, Any]]], str]


def test_the_program_succeeds_with_the_errors_that_it_finds(
    programs: Programs, starter: Path, write_rows: Write, tmp_path: Path
) -> None:
    rows = [*CLEAN, {"question": "Two?", "answer": ""}]
    target = {
        "stage": "sft",
        "base": str(starter),
        "dataset": write_rows(rows),
        "max_length": 256,
        "max_steps": 20,
    }
    config = {"stage": "preflight", "target": target, "shown_rows": 1}
    status, out, err = programs.run("trainers.preflight", config, tmp_path)
    assert (status, "⟦" in out, "\x1b" in out) == (0, True, False), err
    result = json.loads((tmp_path / "result.json").read_text())
    assert (result["target"], result["passed"], len(result["rows"])) == ("sft", False, 1)
    assert [found["code"] for found in result["findings"]] == ["completion_empty"]
    assert "error completion_empty (2.4%): 1 of 41 completions are empty." in err
    assert "row 41: Two?" in err


def test_a_dry_run_of_training_lists_the_findings(starter: Path, write_rows: Write) -> None:
    config = {"stage": "sft", "base": str(starter), "dataset": write_rows([*CLEAN, CLEAN[7]])}
    (found,) = plan(SftConfig.model_validate(config | {"max_length": 256, "max_steps": 20}))["findings"]
    assert found["code"] == "duplicates"
    assert found["examples"] == [{"line": 41, "text": "The row has the content of line 8."}]


def test_every_turn_of_a_previewed_row_is_numbered(starter: Path, write_rows: Write, tmp_path: Path) -> None:
    turns = chat(("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d"))
    seen = run_preflight(starter, tmp_path, write_rows([turns, *CLEAN]))["rows"]
    assert [(row["row"], row["turn"]) for row in seen] == [(1, 1), (1, 2), (2, 1), (3, 1)]


def test_both_completions_of_a_pair_are_previewed(starter: Path, write_rows: Write, tmp_path: Path) -> None:
    first, second, *_ = run_preflight(starter, tmp_path, write_rows(pairs(CLEAN)), stage="dpo")["rows"]
    assert (first["side"], second["side"]) == ("chosen", "rejected")
    assert "".join(token["text"] for token in second["tokens"] if token["loss"]) == "#### 0<|im_end|>\n"


def test_a_prompt_of_grpo_is_previewed_without_loss(starter: Path, write_rows: Write, tmp_path: Path) -> None:
    grpo = {"stage": "grpo", "rewards": [{"kind": "chrf"}], "max_completion_length": 8}
    first, *_ = run_preflight(starter, tmp_path, write_rows(CLEAN), **grpo)["rows"]
    assert first["text"].endswith("<|im_start|>assistant\n")
    assert first["loss_token_count"] == 0


def test_references_are_not_checked_without_a_reward_that_uses_them(
    starter: Path, write_rows: Write, tmp_path: Path
) -> None:
    grpo = {"stage": "grpo", "rewards": [{"kind": "format"}], "max_completion_length": 8}
    rows = [{"prompt": row["question"], "completion": "-"} for row in CLEAN]
    found = run_preflight(starter, tmp_path, write_rows(rows), **grpo)["findings"]
    assert "reference_without_answer" not in [finding["code"] for finding in found]


def test_a_row_of_megabytes_is_found_before_it_is_tokenized(
    starter: Path, write_rows: Write, tmp_path: Path
) -> None:
    # Tokenizing this row takes 20 s and 3 GiB.
    rows = [*CLEAN, {"question": "word " * 3_000_000, "answer": "yes"}]
    result = run_preflight(starter, tmp_path, write_rows(rows))
    assert not result["passed"]
    found = result["findings"][0]
    assert found["code"] == "dataset_unusable"
    assert (
        "Row 41 has 15,000,016 characters; with this max_length, a row may have 1,048,576."
        in found["message"]
    )
