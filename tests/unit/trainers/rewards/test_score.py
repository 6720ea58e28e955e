"""Combined rewards, their configs, and the functions for TRL."""

import json
from dataclasses import asdict
from typing import Any

import pytest
from pydantic import TypeAdapter, ValidationError

from trainers.configs.rewards import Reward, Rewards
from trainers.rewards.completion_texts import completion_text
from trainers.rewards.score import (
    find_references_without_answer,
    score_completion,
)
from trainers.rewards.trl_functions import reward_functions

MATHS: list[dict[str, Any]] = [
    {"kind": "correctness", "weight": 2},
    {"kind": "format", "weight": 0.5},
    {"kind": "steps"},
    {"kind": "length", "unit": "characters", "limit": 20, "span": 10},
]
RIGHT = "3 + 4 = 7\n#### 7"
WRONG = "3 + 4 = 8, I think it is\n8"


def rewards(*values: dict[str, Any]) -> list[Reward]:
    return TypeAdapter(Rewards).validate_python(list(values))


def test_total_is_the_weighted_sum_of_named_parts() -> None:
    result = score_completion(rewards(*MATHS), RIGHT, "#### 7")
    assert result.parts == {"correctness": 1, "format": 1, "steps": 1, "length": 0}
    assert (result.total, result.answer, result.reference) == (3.5, "7", "7")
    assert result.reasons["steps"] == "1 of 1 equations are true."


def test_each_part_of_a_wrong_completion_has_a_reason() -> None:
    result = score_completion(rewards(*MATHS), WRONG, "#### 7")
    assert result.parts == {"correctness": 0, "format": 0, "steps": 0, "length": pytest.approx(-0.6)}
    assert result.total == pytest.approx(-0.6)
    assert "differs from the reference 7" in result.reasons["correctness"]
    assert json.loads(json.dumps(asdict(result)))["answer"] == "8"


@pytest.mark.parametrize(("length", "value"), [(1, 0), (100, 0), (110, -0.5), (120, -1), (10_000, -1)])
def test_length_penalty_falls_in_a_line_and_stops(length: int, value: float) -> None:
    by_tokens = rewards({"kind": "length", "limit": 100, "span": 20})
    by_characters = rewards({"kind": "length", "unit": "characters", "limit": 100, "span": 20})
    assert (
        score_completion(by_tokens, "", tokens=length).total
        == score_completion(by_characters, "x" * length).total
        == value
    )


def test_tolerance_of_the_config_decides() -> None:
    assert score_completion(rewards({"kind": "correctness"}), "0.33", "1/3").total == 0
    assert (
        score_completion(rewards({"kind": "correctness", "absolute_tolerance": 0.01}), "0.33", "1/3").total
        == 1
    )
    assert (
        score_completion(rewards({"kind": "correctness", "relative_tolerance": 0.011}), "0.33", "1/3").total
        == 1
    )


def test_translation_parts_need_a_reference_and_read_it_as_a_sentence() -> None:
    both = rewards({"kind": "chrf", "word_order": 2}, {"kind": "bleu", "language": "ko", "weight": 0.5})
    assert score_completion(both, "안녕하세요.", "안녕하세요.").total == pytest.approx(1.5)
    with pytest.raises(ValueError, match="'chrf' needs a reference"):
        score_completion(both, "안녕하세요.")


def test_the_error_of_a_missing_token_count_names_the_reward() -> None:
    with pytest.raises(ValueError, match="'length' needs token counts"):
        score_completion(rewards({"kind": "length", "limit": 1, "span": 1}), "text")


def test_references_that_nothing_can_meet_are_found_by_position() -> None:
    assert find_references_without_answer(["#### 7", "none", r"\boxed{2\sqrt{3}}", "1/2"]) == [1, 2]


@pytest.mark.parametrize(
    ("value", "fault"),
    [
        ([], "at least 1 item"),
        ([{"kind": "guess"}], "guess"),
        ([{"kind": "correctness", "weight": 0}], "greater than 0"),
        ([{"kind": "correctness", "weight": float("inf")}], "weight"),
        ([{"kind": "correctness", "absolute_tolerance": -1}], "absolute_tolerance"),
        ([{"kind": "length", "limit": 5}], "span"),
        ([{"kind": "format"}, {"kind": "format", "form": "boxed"}], "several rewards have the name 'format'"),
        ([{"kind": "steps", "colour": 1}], "colour"),
    ],
)
def test_an_invalid_list_of_rewards_is_an_error_that_names_the_field(
    value: list[dict[str, Any]], fault: str
) -> None:
    with pytest.raises(ValidationError, match=fault):
        rewards(*value)


def test_two_rewards_of_one_kind_keep_their_own_names() -> None:
    both = rewards({"kind": "format"}, {"kind": "format", "form": "boxed", "name": "boxed"})
    assert score_completion(both, r"So \boxed{7}").parts == {"format": 0, "boxed": 1}


def test_functions_for_trl_carry_names_weights_and_plain_values() -> None:
    functions, weights = reward_functions(rewards(*MATHS))
    columns = {
        "prompts": ["p", "p"],
        "completion_ids": [[1], [2]],
        "answer": ["#### 7", 7],
        "trainer_state": None,
    }
    assert [function.__name__ for function in functions] == ["correctness", "format", "steps", "length"]
    assert weights == [2, 0.5, 1, 1]
    assert functions[0](completions=[RIGHT, WRONG], **columns) == [1, 0]


def test_completions_may_be_messages_whose_last_assistant_turn_counts() -> None:
    pieces = [{"type": "text", "text": "3 + 4 = 7\n"}, {"type": "image"}, {"type": "text", "text": "#### 7"}]
    assert completion_text([{"role": "assistant", "content": pieces}]) == RIGHT
    turns = [{"role": "assistant", "content": "#### 1"}, {"role": "tool", "content": "9"}]
    assert completion_text([*turns, {"role": "assistant", "content": RIGHT}]) == RIGHT
    assert completion_text([{"role": "assistant", "content": None, "tool_calls": []}]) == ""


def test_tokens_are_counted_from_the_ids_that_trl_hands_over() -> None:
    functions, _ = reward_functions(rewards({"kind": "length", "limit": 2, "span": 2}))
    assert functions[0](completions=["a", "b"], completion_ids=[[1, 2], [1, 2, 3]]) == [0, -0.5]


def test_a_missing_reference_column_is_an_error() -> None:
    functions, _ = reward_functions(rewards({"kind": "correctness"}))
    with pytest.raises(ValueError, match="add one to each row"):
        functions[0](completions=[RIGHT], question=["?"])
