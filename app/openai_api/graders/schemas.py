"""Requests and responses of OpenAI's graders, in its SDK's shapes."""

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BaseModel, Field

from app.openai_api.parameters import OpenAIBody
from trainers.configs.graders import Grader

GraderObject = Annotated[
    dict[str, Any],
    Field(
        description="A grader with OpenAI's fields: `string_check`, `text_similarity`, `score_model`, "
        "`label_model`, `python` or `multi`.",
        examples=[
            {
                "type": "string_check",
                "name": "exact",
                "input": "{{ sample.output_text }}",
                "reference": "{{ item.answer }}",
                "operation": "eq",
            }
        ],
    ),
]


class GraderRunRequest(OpenAIBody):
    """A grader and a completion."""

    grader: GraderObject
    model_sample: str = Field(description="The completion, which templates read as `sample.output_text`.")
    item: dict[str, Any] | None = Field(
        None, description="The row, which templates read as `item`; null is an empty one."
    )
    reference_answer: Any = Field(
        None,
        description="The field `item.reference_answer`, which the client's first versions send alone.",
    )

    @property
    def row(self) -> dict[str, Any]:
        """The row that the grader reads."""
        answer = {} if self.reference_answer is None else {"reference_answer": self.reference_answer}
        return answer | (self.item or {})


class GraderValidateRequest(OpenAIBody):
    """A grader."""

    grader: GraderObject


class GraderValidateResult(BaseModel):
    """A grader that can be used."""

    grader: dict[str, Any] = Field(description="The grader, with its name.")


class GraderRunErrors(BaseModel):
    """Why a completion has no score."""

    formula_parse_error: bool = Field(description="The formula has no value for the scores.")
    invalid_variable_error: bool = Field(description="The row lacks a field of a template.")
    model_grader_parse_error: bool = Field(description="The model's answer contains no score or label.")
    model_grader_refusal_error: bool = Field(description="The model refused to answer.")
    model_grader_server_error: bool = Field(description="The model's endpoint failed.")
    model_grader_server_error_details: str | None = Field(description="What the endpoint responded.")
    other_error: bool = Field(description="Another error.")
    python_grader_runtime_error: bool = Field(description="The code failed, or returned no number.")
    python_grader_runtime_error_details: str | None = Field(description="The exception with its line.")
    python_grader_server_error: bool = Field(description="The sandbox failed.")
    python_grader_server_error_type: str | None = Field(description="Kind of the sandbox's failure.")
    sample_parse_error: bool = Field(
        description="The completion lacks what a template reads of it, such as JSON."
    )
    truncated_observation_error: bool = Field(description="The model's answer was cut off by its limit.")
    unresponsive_reward_error: bool = Field(description="The model or the code did not end in time.")


class GraderRunMetadata(BaseModel):
    """How the score came about."""

    errors: GraderRunErrors = Field(description="Why there is no score.")
    execution_time: float = Field(description="Seconds that grading took.")
    name: str = Field(description="Name of the grader.")
    sampled_model_name: str | None = Field(description="The model that graded, as its endpoint reports it.")
    scores: dict[str, float | None] = Field(
        description="The scores of the graders that a formula combines; null for one without a score."
    )
    token_usage: int | None = Field(description="Tokens that the models took, prompts included.")
    type: str = Field(description="Kind of the grader.")
    passed: bool | None = Field(
        description="Whether the score reaches the threshold; null without a score. Not in OpenAI's API."
    )
    label: str | None = Field(description="The label that a model assigned. Not in OpenAI's API.")
    reason: str = Field(description="Why there is no score, or the model's reasoning. Not in OpenAI's API.")


class GraderRunResult(BaseModel):
    """The score of a completion."""

    reward: float = Field(
        description="The score. Without one it is the grader's lowest, and `metadata.errors` says why."
    )
    sub_rewards: dict[str, float | None] = Field(description="As `metadata.scores`.")
    metadata: GraderRunMetadata = Field(description="How the score came about.")
    model_grader_token_usage_per_model: dict[str, dict[str, int]] = Field(
        description="Tokens by the model that graded."
    )


def view_grade(grader: Grader, grade: Mapping[str, Any]) -> GraderRunResult:
    """Build the result from a grade, as `app.graders.run` returns it."""
    usage = {
        model: {**tokens, "total_tokens": sum(tokens.values())} for model, tokens in grade["usage"].items()
    }
    return GraderRunResult(
        reward=grader.worst_score if grade["score"] is None else grade["score"],
        sub_rewards=grade["sub_scores"],
        metadata=GraderRunMetadata(
            errors=GraderRunErrors(**grade["errors"]),
            execution_time=grade["seconds"],
            name=grade["name"],
            sampled_model_name=next(iter(usage), None),
            scores=grade["sub_scores"],
            token_usage=sum(tokens["total_tokens"] for tokens in usage.values()) if usage else None,
            type=grade["type"],
            passed=grade["passed"],
            label=grade["label"],
            reason=grade["reason"],
        ),
        model_grader_token_usage_per_model=usage,
    )
