"""Grades equal the labels of the data set, for the solutions of four models."""

import json

from tests.shared_data import MODELS, SharedData
from trainers.metrics.maths.final_answer import exact_match, final_answer


def test_judge_agrees_with_every_label(shared_data: SharedData) -> None:
    rows = [
        json.loads(line)
        for line in (shared_data.gsm8k / "model_solutions.jsonl").read_text("utf-8").splitlines()
    ]
    graded = [
        (row["ground_truth"], number, row[model]) for number, row in enumerate(rows, 1) for model in MODELS
    ]
    wrong = [n for truth, n, by in graded if exact_match(by["solution"], truth) is not by["is_correct"]]
    assert (len(graded), wrong) == (4 * shared_data.solved_count, [])


def test_every_reference_of_the_test_split_is_its_marked_number(shared_data: SharedData) -> None:
    rows = [json.loads(line) for line in (shared_data.gsm8k / "test.jsonl").read_text("utf-8").splitlines()]
    for row in rows:
        marked = row["answer"].rpartition("#### ")[2].strip()
        assert final_answer(row["answer"]) == int(marked.replace(",", ""))
    assert len(rows) == shared_data.test_count
