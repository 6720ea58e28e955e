"""Generated word problems are repeatable, correct, and split without overlap."""

import re

from trainers.data.recipes.arithmetic import ProblemSplit, generate_problems, list_equations
from trainers.metrics.maths.final_answer import final_answer


def numbers(row: dict[str, str]) -> tuple[str, ...]:
    return tuple(re.findall(r"\d+", row["question"]))


def test_same_seed_gives_the_same_rows_and_another_seed_others() -> None:
    assert generate_problems(50, ProblemSplit.train, seed=3) == generate_problems(
        50, ProblemSplit.train, seed=3
    )
    assert generate_problems(50, ProblemSplit.train, seed=3) != generate_problems(
        50, ProblemSplit.train, seed=4
    )


def test_held_out_number_combinations_never_occur_in_training() -> None:
    train = {numbers(row) for row in generate_problems(5000, ProblemSplit.train, seed=0)}
    held_out = {numbers(row) for row in generate_problems(1000, ProblemSplit.held_out, seed=0)}
    assert train.isdisjoint(held_out)
    assert len({row["question"] for row in generate_problems(240, ProblemSplit.held_out, seed=0)}) == 240


def test_every_equation_is_true_and_leads_to_the_answer() -> None:
    for row in generate_problems(2000, ProblemSplit.train, seed=0, wrong_share=0.5):
        steps = re.findall(r"(\d+) ([-+*]) (\d+) = (\d+)", row["answer"])
        assert all(_result(*step[:3]) == int(step[3]) for step in steps)
        assert final_answer(row["answer"]) == int(steps[-1][3])
        assert [step[0] for step in steps[1:]] == [step[3] for step in steps[:-1]]


def test_wrong_share_of_the_answers_is_wrong() -> None:
    right = generate_problems(700, ProblemSplit.train, seed=0)
    mixed = generate_problems(700, ProblemSplit.train, seed=0, wrong_share=0.5)
    assert [numbers(row) for row in right] == [numbers(row) for row in mixed]
    wrong = sum(a["answer"] != b["answer"] for a, b in zip(right, mixed, strict=True))
    assert 0.4 < wrong / 700 < 0.6


def test_equations_cover_every_answer() -> None:
    facts = set(list_equations())
    for split in ProblemSplit:
        for row in generate_problems(500, split, seed=0, wrong_share=0.5):
            assert set(re.findall(r"\d+ [-+*] \d+ = \d+", row["answer"])) <= facts


def _result(left: str, operator: str, right: str) -> int:
    return {"+": int(left) + int(right), "-": int(left) - int(right), "*": int(left) * int(right)}[operator]
