"""What graders read and return."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from functools import cached_property
from typing import Any

from trainers.metrics.general.patterns import parse_json


@dataclass(frozen=True)
class Sample:
    """A completion, as graders read it."""

    output_text: str
    output_tools: Sequence[Mapping[str, Any]] = ()
    """The tool calls, in OpenAI's form."""
    finish_reason: str = "stop"

    @cached_property
    def values(self) -> dict[str, Any]:
        """The namespace `sample` of templates; without `output_json` if the text is not JSON."""
        tools = list(self.output_tools)
        message: dict[str, Any] = {"role": "assistant", "content": self.output_text}
        if tools:
            message["tool_calls"] = tools
        values = {
            "output_text": self.output_text,
            "output_tools": tools,
            "choices": [{"index": 0, "message": message, "finish_reason": self.finish_reason}],
        }
        try:
            return values | {"output_json": parse_json(self.output_text)}
        except ValueError:
            return values


@dataclass(frozen=True)
class GraderErrors:
    """Why a completion has no score, with the names of OpenAI's API."""

    formula_parse_error: bool = False
    invalid_variable_error: bool = False
    model_grader_parse_error: bool = False
    model_grader_refusal_error: bool = False
    model_grader_server_error: bool = False
    model_grader_server_error_details: str | None = None
    other_error: bool = False
    python_grader_runtime_error: bool = False
    python_grader_runtime_error_details: str | None = None
    python_grader_server_error: bool = False
    python_grader_server_error_type: str | None = None
    sample_parse_error: bool = False
    truncated_observation_error: bool = False
    unresponsive_reward_error: bool = False

    @property
    def names(self) -> list[str]:
        """The errors that occurred."""
        return [one.name for one in fields(self) if getattr(self, one.name) is True]

    def join(self, other: "GraderErrors") -> "GraderErrors":
        """Return the errors of both."""
        return GraderErrors(
            **{one.name: getattr(self, one.name) or getattr(other, one.name) for one in fields(self)}
        )


class GradeFailed(Exception):
    """A grader has no score for one completion; the message is the reason."""

    def __init__(self, reason: str, errors: GraderErrors, usage: Mapping[str, "Usage"] | None = None) -> None:
        super().__init__(reason)
        self.errors = errors
        self.usage = usage or {}


@dataclass(frozen=True)
class Usage:
    """Tokens that grading took on one model."""

    prompt_tokens: int = 0
    completion_tokens: int = 0

    @property
    def total(self) -> int:
        """All tokens."""
        return self.prompt_tokens + self.completion_tokens

    def add(self, other: "Usage") -> "Usage":
        """Return the sums."""
        return Usage(
            self.prompt_tokens + other.prompt_tokens, self.completion_tokens + other.completion_tokens
        )


@dataclass(frozen=True)
class GradeResult:
    """The score of one completion, or the errors because of which it has none."""

    name: str
    type: str
    score: float | None
    passed: bool | None = None
    """Whether the score reaches the grader's threshold; None without a score."""
    reason: str = ""
    """Why there is no score, or what the grading model wrote about it."""
    label: str | None = None
    """The label that a model assigned."""
    errors: GraderErrors = field(default_factory=GraderErrors)
    sub_scores: Mapping[str, float | None] = field(default_factory=dict)
    """The scores of the graders that a formula combines."""
    usage: Mapping[str, Usage] = field(default_factory=dict)
    """The tokens by the model that the endpoint reports."""
    seconds: float = 0.0

    @property
    def is_completion_fault(self) -> bool:
        """Whether there is no score only because the completion lacks what the grader reads of it."""
        return self.errors.names == ["sample_parse_error"]

    @staticmethod
    def read_usage(values: Mapping[str, Any]) -> dict[str, Usage]:
        """Return the tokens of a result that `as_dict` wrote."""
        return {model: Usage(**tokens) for model, tokens in values["usage"].items()}

    def as_dict(self) -> dict[str, Any]:
        """Return the result as JSON values."""
        return asdict(self)


def join_usage(usages: Sequence[Mapping[str, Usage]]) -> dict[str, Usage]:
    """Return the tokens of several results by model."""
    joined: dict[str, Usage] = {}
    for usage in usages:
        for model, tokens in usage.items():
            joined[model] = joined.get(model, Usage()).add(tokens)
    return joined
