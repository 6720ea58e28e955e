import random
from collections.abc import Iterable

import pytest

from tests.shared_data import SharedData
from trainers.data.checks import validate_row
from trainers.data.files.jsonl import iter_rows
from trainers.data.formats import Row, RowFormat
from trainers.data.recipes.gsm8k import (
    Annotations,
    PairReport,
    Problem,
    Solution,
    grpo_rows,
    parse_problems,
    preference_rows,
    sft_rows,
    split_solution,
)
from trainers.metrics.maths.final_answer import exact_match

ROW = (4, {"question": "How many?", "answer": "Half of 48 is <<48/2=24>>24.\n#### 24"})


def problem(line: int, correct: Iterable[str], wrong: Iterable[str]) -> Problem:
    solutions = [Solution(f"So {text}.\nA: {text}", True) for text in correct]
    return Problem(line, f"Question {line}?", (*solutions, *(Solution(text, False) for text in wrong)))


def test_a_solution_is_reasoning_and_a_final_answer() -> None:
    (row,) = sft_rows([ROW])
    assert [message["content"] for message in row["messages"]] == ["How many?", "Half of 48 is 24.\n#### 24"]
    (kept,) = sft_rows([ROW], annotations=Annotations.kept, system="Reason.")
    assert kept["messages"][0] == {"role": "system", "content": "Reason."}
    assert kept["messages"][2]["content"] == ROW[1]["answer"]


def test_prompts_for_exploration_hold_the_bare_answer() -> None:
    (row,) = grpo_rows([ROW], system="Reason.")
    assert row == {"system": "Reason.", "question": "How many?", "answer": "24"}
    assert validate_row(row, RowFormat.question_answer) == []


@pytest.mark.parametrize(
    ("text", "split"),
    [
        ("a\n#### 1,000", ("a", "1,000")),
        ("a\nA: 18\n", ("a", "18")),
        ("a\n#### 110\nThe answer is: 110", ("a", "110")),
        ("a. The answer is: 1/2.", ("a.", "1/2")),
        (r"So $\boxed{\frac{1}{2}}$.", (r"So $\boxed{\frac{1}{2}}$.", r"\frac{1}{2}")),
        ("#### 3", ("", "3")),
        ("It is 18.", None),
        (r"So \boxed{1", None),
        ("A: 5\nand so on", None),
        ("", None),
    ],
)
def test_the_final_answer_is_found_in_every_common_notation(text: str, split: tuple[str, str] | None) -> None:
    assert split_solution(text) == split


def test_data_sets_with_other_field_names_are_read() -> None:
    maths = (1, {"problem": "1/2+0?", "solution": "It stays the same.", "answer": "1/2"})
    meta = (2, {"query": "1+1?", "response": "One more.\n#### 2\nThe answer is: 2"})
    assert list(grpo_rows([maths, meta])) == [
        {"question": "1/2+0?", "answer": "1/2"},
        {"question": "1+1?", "answer": "2"},
    ]
    assert next(sft_rows([maths]))["messages"][1]["content"] == "It stays the same.\n#### 1/2"


@pytest.mark.parametrize(
    ("row", "missing"),
    [
        ({"question": "q", "answer": "Eighteen."}, "contains no final answer"),
        ({"question": "q"}, "needs a solution"),
        ({"question": " ", "answer": "#### 1"}, "needs a question"),
    ],
)
def test_the_error_of_a_row_without_question_or_final_answer_names_its_line(row: Row, missing: str) -> None:
    with pytest.raises(ValueError, match=f"Line 9: .*{missing}"):
        list(sft_rows([(9, row)]))


def test_pairs_are_a_correct_and_a_wrong_solution_of_one_problem() -> None:
    report = PairReport()
    (row,) = preference_rows([problem(7, ["18"], ["<<1+1=2>>2, cut off"])], report, system="s")
    assert row["prompt"][1] == {"role": "user", "content": "Question 7?"}
    assert row["chosen"] == [{"role": "assistant", "content": "So 18.\n#### 18"}]
    assert row["rejected"] == [{"role": "assistant", "content": "2, cut off"}]
    assert row["line"] == 7
    assert validate_row(row, RowFormat.preference) == []


def test_problems_with_one_kind_of_solution_are_dropped_and_counted() -> None:
    problems = [
        problem(1, "12", "34"),
        problem(2, "1", ""),
        problem(3, "", "1"),
        problem(4, "", ""),
        problem(5, "", " "),
    ]
    report = PairReport()
    assert len(list(preference_rows(problems, report, pairs_per_problem=3))) == 3
    assert report.model_dump() == {
        "problems": 5,
        "pairs": 3,
        "possible_pairs": 4,
        "only_correct": 1,
        "only_wrong": 1,
        "unsolved": 2,
        "contradictory": 0,
    }


def test_a_text_graded_both_ways_is_used_for_neither() -> None:
    solutions = (Solution("x\n#### 1", True), Solution("x\nA: 1", False), Solution("y\nA: 2", False))
    report = PairReport()
    assert list(preference_rows([Problem(1, "q", solutions)], report)) == []
    assert (report.contradictory, report.only_wrong) == (1, 1)


def test_the_pairs_of_a_problem_depend_on_the_seed_and_not_on_its_position() -> None:
    problems = [problem(line, "12345", "6789") for line in range(30)]
    first = {row["line"]: row for row in preference_rows(problems, PairReport(), pairs_per_problem=1)}
    moved = random.Random(1).sample(problems, 10)
    assert all(first[row["line"]] == row for row in preference_rows(moved, PairReport(), pairs_per_problem=1))
    assert list(first.values()) != list(preference_rows(problems, PairReport(), pairs_per_problem=1, seed=1))


@pytest.mark.parametrize(
    "row",
    [
        {"question": "q", "ground_truth": "A: 1"},
        {"question": "q", "solutions": ["a"]},
        {
            "question": "q",
            "a": {"solution": "x", "is_correct": True},
            "b": {"solution": "y", "is_correct": None},
        },
    ],
)
def test_the_error_of_a_row_without_graded_solutions_names_its_line(row: Row) -> None:
    with pytest.raises(ValueError, match="Line 3: a solution must be"):
        list(parse_problems([(3, row)]))


def test_graded_solutions_may_stand_in_a_list() -> None:
    row = {"question": "q", "solutions": [{"solution": "x", "is_correct": True}]}
    assert list(parse_problems([(1, row)])) == [Problem(1, "q", (Solution("x", True),))]


def test_all_of_gsm8k_becomes_rows_for_imitation_and_exploration(shared_data: SharedData) -> None:
    solved, asked = [
        list(make(iter_rows(shared_data.gsm8k / "train.jsonl"))) for make in (sft_rows, grpo_rows)
    ]
    assert len(solved) == len(asked) == shared_data.train_count
    for row, prompt in zip(solved, asked, strict=True):
        assert validate_row(row, RowFormat.messages) == []
        solution = row["messages"][1]["content"]
        assert "<<" not in solution
        assert solution.count("\n#### ") == 1
        assert exact_match(solution, prompt["answer"])


def test_graded_solutions_of_gsm8k_become_pairs_with_the_right_one_chosen(shared_data: SharedData) -> None:
    report = PairReport()
    problems = list(parse_problems(iter_rows(shared_data.gsm8k / "model_solutions.jsonl")))
    rows = list(preference_rows(problems, report, pairs_per_problem=2))
    assert sum(len(problem.solutions) for problem in problems) == 4 * shared_data.solved_count
    assert (report.problems, report.pairs) == (shared_data.solved_count, len(rows))
    with_both = shared_data.solved_count - report.only_correct - report.only_wrong - report.unsolved
    assert with_both <= len(rows) <= 2 * with_both
    truth = {
        number: row["ground_truth"] for number, row in iter_rows(shared_data.gsm8k / "model_solutions.jsonl")
    }
    for row in rows:
        assert validate_row(row, RowFormat.preference) == []
        assert exact_match(row["chosen"][0]["content"], truth[row["line"]])
