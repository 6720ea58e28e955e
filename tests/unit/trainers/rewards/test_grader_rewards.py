"""Graders as rewards: the row is `item`, and a completion without a score is counted."""

from typing import Any

import pytest

from trainers.configs.rewards import GraderReward
from trainers.configs.stages.grpo import GrpoConfig
from trainers.metrics.judge.requests import JudgeFailed
from trainers.rewards import grader_function
from trainers.rewards.score import score_completion
from trainers.rewards.trl_functions import reward_functions

CHECK = {
    "type": "string_check",
    "name": "exact",
    "input": "{{sample.output_json.answer}}",
    "reference": "{{item.answer}}",
    "operation": "eq",
}
MULTI = {"type": "multi", "graders": {"exact": CHECK}, "calculate_output": "1 / exact"}
PYTHON = {"type": "python", "source": "def grade(sample, item): return 1"}


def reward(grader: dict[str, Any], **options: Any) -> GraderReward:
    return GraderReward.model_validate({"kind": "grader", "grader": grader, **options})


def answer(text: str) -> list[dict[str, Any]]:
    return [{"role": "assistant", "content": f'{{"answer": "{text}"}}'}]


def test_a_completion_is_graded_with_its_row() -> None:
    result = score_completion([reward(CHECK, weight=2)], '{"answer": "4"}', item={"answer": "4"})
    assert result.parts == {"grader": 1} and result.total == 2
    assert result.reasons["grader"] == "The score of exact is 1."
    missing = score_completion([reward(CHECK)], '{"answer": "4"}', item={})
    assert missing.total == 0 and "no `item.answer`" in missing.reasons["grader"]


def test_the_function_for_trl_grades_each_completion_with_its_own_row() -> None:
    [function], weights = reward_functions([reward(CHECK, name="right", weight=3)])
    assert function.__name__ == "right" and weights == [3]
    completions = [answer("4"), answer("5"), [{"role": "assistant", "content": "four"}]]
    rows = [{"answer": "4"}, {"answer": "4"}, {"answer": "4"}]
    assert function(completions, item=rows, prompts=[], reference=["", "", ""]) == [1, 0, 0]
    assert isinstance(function, grader_function.GraderFunction)
    counts = function.counts
    assert (counts.graded, counts.unsuitable, counts.errors) == (3, 1, 0)


def test_failures_have_the_lowest_score_up_to_a_share_and_then_end_the_run() -> None:
    function = grader_function.GraderFunction(reward(MULTI))
    rows = [{"answer": "4"}] * 5
    assert function([answer("5")] * 5, item=rows) == [0] * 5
    assert function.counts.errors == 5 and "division by zero" in function.counts.last_error
    with pytest.raises(JudgeFailed, match="6 of 6 completions have no score by the reward 'grader'"):
        function([answer("5")], item=rows[:1])
    function = grader_function.GraderFunction(reward(MULTI, max_error_share=1))
    assert function([answer("5")] * 200, item=rows * 40) == [0] * 200


def test_a_stage_with_a_grader_in_python_needs_a_worker_with_a_sandbox() -> None:
    stage = {"stage": "grpo", "base": "org/model", "dataset": "rows"}
    for grader, capability in ((CHECK, None), (PYTHON, "python_grader")):
        config = GrpoConfig.model_validate(stage | {"rewards": [{"kind": "grader", "grader": grader}]})
        assert config.capability == capability
