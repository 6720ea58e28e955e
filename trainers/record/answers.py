"""The requests of recorded rows, and what is kept of OpenAI's responses."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any

from pydantic import BaseModel, Field, StringConstraints, ValidationError

from trainers.configs.stages.migration.record import RecordConfig
from trainers.data.formats import Row
from trainers.openai_account.client import Reply, describe_error

RECORDED, REFUSED, FAILED = "recorded", "refused", "failed"
# With these codes, OpenAI refuses the prompt for its content.
REFUSAL_CODES = frozenset({"content_policy_violation", "content_filter", "invalid_prompt"})
UNSUPPORTED_CODES = frozenset({"unsupported_parameter", "unsupported_value"})
# What a model may lack: the response is recorded without it.
OPTIONAL_PARAMETERS = frozenset({"logprobs", "temperature", "seed"})
# Of a text, which becomes a part of a row.
MAX_CHARACTERS = 1 << 20
MAX_CALLS = 1000
USAGE = ("prompt_tokens", "completion_tokens")

Text = Annotated[str, StringConstraints(max_length=MAX_CHARACTERS)]


class _CalledFunction(BaseModel):
    name: Text
    arguments: Text


class _Call(BaseModel):
    function: _CalledFunction


class _Message(BaseModel):
    content: Text | None = None
    refusal: Text | None = None
    tool_calls: list[_Call] | None = Field(None, max_length=MAX_CALLS)


class _ChatChoice(BaseModel):
    message: _Message
    finish_reason: str | None = None


class _Completion(BaseModel):
    """What a response must have, in the types of OpenAI's API, to be recorded."""

    choices: list[_ChatChoice] = Field(min_length=1)


@dataclass
class RequestShape:
    """The parameters of requests, less those that the model turned out not to offer."""

    config: RecordConfig
    dropped: set[str] = field(default_factory=set)

    def build(self, row: Row) -> dict[str, Any]:
        """Return the body of the request for a row."""
        config = self.config
        optional = {
            "temperature": config.temperature,
            "seed": config.seed,
            "logprobs": config.logprobs or None,
        }
        copied = {name: row[name] for name in ("tools", "parallel_tool_calls") if row.get(name) is not None}
        return {
            "model": config.fine_tuned_model,
            "messages": row["messages"][:-1],
            "max_completion_tokens": config.max_completion_tokens,
            "store": False,
            **copied,
            **{
                name: value
                for name, value in optional.items()
                if value is not None and name not in self.dropped
            },
        }

    def drops(self, body: Mapping[str, Any], reply: Reply) -> bool:
        """Return whether the request must be repeated, without a parameter that the model does not offer."""
        name, code = str(reply.error.get("param")), reply.error.get("code")
        if (
            reply.status != 400
            or code not in UNSUPPORTED_CODES
            or name not in OPTIONAL_PARAMETERS & body.keys()
        ):
            return False
        self.dropped.add(name)
        return True


def read_answer(reply: Reply) -> dict[str, Any]:
    """Return what is kept of a reply: the response, or the reason why there is none."""
    if reply.status >= 400:
        kind = REFUSED if reply.error.get("code") in REFUSAL_CODES else FAILED
        return {**_describe_missing(kind, describe_error(reply), reply), "is_free": True}
    try:
        _Completion.model_validate(reply.body)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(map(str, first["loc"]))
        return _describe_missing(FAILED, f"The response is malformed: {place}: {first['msg']}", reply)
    choice = reply.body["choices"][0]
    message = choice["message"]
    refusal, end = message.get("refusal"), choice.get("finish_reason")
    is_refused = bool(refusal) or end == "content_filter"
    answer = {
        "status": REFUSED if is_refused else RECORDED,
        "response": message.get("content"),
        "refusal": refusal,
        "tool_calls": message.get("tool_calls"),
        "finish_reason": end,
        "logprobs": _read_logprobs(choice),
        "usage": _read_usage(reply),
        "model": reply.body.get("model"),
        "system_fingerprint": reply.body.get("system_fingerprint"),
        "id": reply.body.get("id"),
        "request_id": reply.request_id,
    }
    if answer["response"] is None and answer["tool_calls"]:
        answer["response"] = ""
    return {name: value for name, value in answer.items() if value is not None or name == "response"}


def _describe_missing(status: str, error: str, reply: Reply) -> dict[str, Any]:
    answer = {"status": status, "response": None, "error": error, "request_id": reply.request_id}
    usage = _read_usage(reply)
    return answer if usage is None else {**answer, "usage": usage}


def _read_usage(reply: Reply) -> dict[str, Any] | None:
    """Return the tokens of a response; None if OpenAI does not count them."""
    usage = reply.body.get("usage")
    is_count = isinstance(usage, dict) and all(
        type(usage.get(name)) is int and usage[name] >= 0 for name in USAGE
    )
    return usage if is_count else None


def _read_logprobs(choice: dict[str, Any]) -> list[float] | None:
    """Return the log-probabilities of the response's tokens; None without a number for each."""
    logprobs = choice.get("logprobs")
    content = logprobs.get("content") if isinstance(logprobs, dict) else None
    if not isinstance(content, list) or not content:
        return None
    values = [token.get("logprob") for token in content if isinstance(token, dict)]
    numbers = [value for value in values if isinstance(value, int | float)]
    return numbers if len(numbers) == len(content) else None
