"""Scores and labels that another model gives.

As in OpenAI's graders, the model is asked for a JSON object with `steps` of reasoning and a `result`. The
form is stated in the prompt, and sent as `response_format` to endpoints that support it.
"""

import json
import math
from collections.abc import Mapping
from typing import Any

from trainers.configs.graders import LabelModelGrader, ModelGraderConfig, ScoreModelGrader, parse_template
from trainers.graders.result import GradeFailed, GraderErrors, GradeResult, Usage
from trainers.metrics.general.patterns import parse_json
from trainers.metrics.judge.requests import (
    AnswerRefused,
    AnswerTruncated,
    EndpointClient,
    JudgeAnswer,
    JudgementMissing,
    NoResponse,
    RequestRejected,
)
from trainers.metrics.signatures import short_hash

DEFAULT_MAX_TOKENS = 4096
MAX_REASON_CHARACTERS = 2000
_SCORE_FORM = """\
Reply with one JSON object and nothing else: {{"steps": [{{"description": "<what you check>", "conclusion": \
"<what you find>"}}], "result": <number>}}. The result is a number from {lowest:g} to {highest:g}."""
_LABEL_FORM = """\
Reply with one JSON object and nothing else: {{"steps": [{{"description": "<what you check>", "conclusion": \
"<what you find>"}}], "result": "<label>"}}. The result is exactly one of these labels: {labels}."""


class ModelGraderClient:
    """A model that grades, for use by several threads."""

    def __init__(self, grader: ModelGraderConfig, client: EndpointClient) -> None:
        self._grader = grader
        self._client = client
        self._messages = [
            (message.role, [parse_template(text) for text in message.templates]) for message in grader.input
        ]
        # Set to False for good by an endpoint that rejects the field.
        self._sends_schema = True

    def grade(self, values: Mapping[str, Any]) -> GradeResult:
        """Return the score or label of a completion.

        Raises:
            GradeFailed: The model gave no score or label.
            VariableMissing, SampleUnsuitable: A template has no value.
            JudgeFailed: The endpoint would reject any request.
        """
        messages: list[tuple[str, str]] = [
            (role, "".join(template.render(values) for template in templates))
            for role, templates in self._messages
        ]
        answer = self._ask(_add_form(messages, _describe_form(self._grader)))
        usage = {answer.model or str(self._grader.model): Usage(**answer.usage)}
        try:
            score, label, reason = _read_answer(self._grader, answer)
        except ValueError as error:
            errors = GraderErrors(
                model_grader_parse_error=True, truncated_observation_error=answer.is_truncated
            )
            raise GradeFailed(f"the answer of {self._grader.model} {error}", errors, usage) from None
        return GradeResult(
            self._grader.name, self._grader.type, score, reason=reason, label=label, usage=usage
        )

    def _ask(self, messages: list[dict[str, str]]) -> JudgeAnswer:
        body = {"messages": messages, **_sampling(self._grader)}
        try:
            if self._sends_schema:
                try:
                    return self._client.chat(body | {"response_format": _response_format(self._grader)})
                except RequestRejected as error:
                    if "response_format" not in str(error) and "json_schema" not in str(error):
                        raise
                    self._sends_schema = False
            return self._client.chat(body)
        except JudgementMissing as error:
            raise GradeFailed(f"{self._grader.model} gave no answer: {error}", _describe(error)) from None


def model_grader_signature(grader: ModelGraderConfig) -> str:
    """Return everything on which the scores of a model grader depend besides the texts."""
    sent = [message.model_dump(mode="json") for message in grader.input]
    if isinstance(grader, ScoreModelGrader):
        scale = f"range:{grader.range[0]:g}-{grader.range[1]:g}"
    else:
        assert isinstance(grader, LabelModelGrader)
        scale = f"labels:{short_hash(json.dumps([grader.labels, grader.passing_labels]))}"
    return "|".join(
        [
            f"model:{grader.model}",
            f"input:{short_hash(json.dumps(sent))}",
            f"form:{short_hash(_SCORE_FORM + _LABEL_FORM)}",
            scale,
            *(f"{name}:{value}" for name, value in _sampling(grader).items()),
        ]
    )


def _add_form(messages: list[tuple[str, str]], form: str) -> list[dict[str, str]]:
    """Return the messages with the required form of the answer, in the first message if that is the system's.

    The templates of some models accept a system message at the start only.
    """
    # A model outside OpenAI knows no developer.
    messages = [("system" if role == "developer" else role, text) for role, text in messages]
    if messages[0][0] == "system":
        messages[0] = ("system", f"{messages[0][1]}\n\n{form}")
    else:
        messages.insert(0, ("system", form))
    return [{"role": role, "content": text} for role, text in messages]


def _describe_form(grader: ModelGraderConfig) -> str:
    if isinstance(grader, ScoreModelGrader):
        lowest, highest = grader.range
        return _SCORE_FORM.format(lowest=lowest, highest=highest)
    assert isinstance(grader, LabelModelGrader)
    return _LABEL_FORM.format(labels=json.dumps(grader.labels, ensure_ascii=False))


def _response_format(grader: ModelGraderConfig) -> dict[str, Any]:
    text = {"type": "string"}
    step = {
        "type": "object",
        "properties": {"description": text, "conclusion": text},
        "required": ["description", "conclusion"],
        "additionalProperties": False,
    }
    labels = {"type": "string", "enum": grader.labels} if isinstance(grader, LabelModelGrader) else None
    schema = {
        "type": "object",
        "properties": {"steps": {"type": "array", "items": step}, "result": labels or {"type": "number"}},
        "required": ["steps", "result"],
        "additionalProperties": False,
    }
    return {"type": "json_schema", "json_schema": {"name": "grade", "strict": True, "schema": schema}}


def _sampling(grader: ModelGraderConfig) -> dict[str, Any]:
    """Return the sampling fields of a request."""
    given = {} if grader.sampling_params is None else grader.sampling_params.model_dump(mode="json")
    max_tokens = given.pop("max_completions_tokens", None) or DEFAULT_MAX_TOKENS
    return {
        "max_completion_tokens": max_tokens,
        **{name: value for name, value in given.items() if value is not None},
    }


def _read_answer(grader: ModelGraderConfig, answer: JudgeAnswer) -> tuple[float, str | None, str]:
    """Return the score, the label and the reasoning; raises ValueError with the end of a sentence."""
    try:
        value = parse_json(answer.text, allow_code_fence=True)
    except ValueError as error:
        cut = ", cut off by the limit of its tokens" if answer.is_truncated else ""
        raise ValueError(f"is not JSON{cut}: {error}") from None
    if not isinstance(value, dict) or "result" not in value:
        raise ValueError("is not an object with a `result`")
    result, reason = value["result"], _describe_steps(value.get("steps"))
    shown = json.dumps(result, ensure_ascii=False)[:100]
    if isinstance(grader, LabelModelGrader):
        if result not in grader.labels:
            raise ValueError(f"has the result {shown}, which is not one of the labels")
        return float(result in grader.passing_labels), result, reason
    assert isinstance(grader, ScoreModelGrader)
    # `true` is an int in Python.
    if type(result) not in (int, float) or not math.isfinite(result):
        raise ValueError(f"has the result {shown}, which is not a number")
    lowest, highest = grader.range
    return float(min(highest, max(lowest, result))), None, reason


def _describe_steps(steps: Any) -> str:
    steps = [step for step in steps if isinstance(step, dict)] if isinstance(steps, list) else []
    texts = (" → ".join(str(step.get(name, "")) for name in ("description", "conclusion")) for step in steps)
    return "\n".join(texts)[:MAX_REASON_CHARACTERS]


def _describe(error: JudgementMissing) -> GraderErrors:
    if isinstance(error, AnswerRefused):
        return GraderErrors(model_grader_refusal_error=True)
    if isinstance(error, AnswerTruncated):
        return GraderErrors(model_grader_parse_error=True, truncated_observation_error=True)
    return GraderErrors(
        model_grader_server_error=True,
        model_grader_server_error_details=str(error),
        unresponsive_reward_error=isinstance(error, NoResponse),
    )
