"""Grades equal those of the data set's authors, for four models' solutions of 660 problems."""

import json
import os
from pathlib import Path

import pytest

from trainers.metrics.maths import exact_match, final_answer

REPOSITORY = Path(__file__).parents[4]
SHARED = Path(os.environ.get("TUNESMITH_SHARED_DATA", REPOSITORY.parent / "shared" / "data"))
SOLUTIONS = SHARED / "gsm8k" / "model_solutions.jsonl"
MODELS = ("6b_finetuning", "6b_verification", "175b_finetuning", "175b_verification")

pytestmark = pytest.mark.skipif(
    not SOLUTIONS.exists(), reason="the shared data is not next to the repository"
)


def test_judge_agrees_with_every_label() -> None:
    rows = [json.loads(line) for line in SOLUTIONS.read_text(encoding="utf-8").splitlines()]
    graded = [
        (row["ground_truth"], number, row[model]) for number, row in enumerate(rows, 1) for model in MODELS
    ]
    wrong = [n for truth, n, by in graded if exact_match(by["solution"], truth) is not by["is_correct"]]
    assert (len(graded), wrong) == (2640, [])


def test_every_reference_of_the_test_split_is_its_marked_number() -> None:
    rows = [json.loads(line) for line in (SHARED / "gsm8k" / "test.jsonl").read_text("utf-8").splitlines()]
    for row in rows:
        marked = row["answer"].rpartition("#### ")[2].strip()
        assert final_answer(row["answer"]) == int(marked.replace(",", ""))
    assert len(rows) == 660
