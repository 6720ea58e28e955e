"""The requests of recorded rows, and what is kept of OpenAI's responses."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from trainers.configs.stages.migration.record import RecordConfig
from trainers.data.formats import Row
from trainers.openai_account.client import Reply, describe_error

RECORDED, REFUSED, FAILED = "recorded", "refused", "failed"
# With these codes, OpenAI refuses the prompt for its content.
REFUSAL_CODES = frozenset({"content_policy_violation", "content_filter", "invalid_prompt"})
UNSUPPORTED_CODES = frozenset({"unsupported_parameter", "unsupported_value"})
# What a model may lack: the response is recorded without it.
OPTIONAL_PARAMETERS = frozenset({"logprobs", "temperature", "seed"})


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
        code = reply.error.get("code")
        kind = REFUSED if code in REFUSAL_CODES else FAILED
        return {
            "status": kind,
            "response": None,
            "error": describe_error(reply),
            "request_id": reply.request_id,
        }
    choice = (reply.body.get("choices") or [{}])[0]
    message = choice.get("message") or {}
    refusal, end = message.get("refusal"), choice.get("finish_reason")
    is_refused = bool(refusal) or end == "content_filter"
    answer = {
        "status": REFUSED if is_refused else RECORDED,
        "response": message.get("content"),
        "refusal": refusal,
        "tool_calls": message.get("tool_calls"),
        "finish_reason": end,
        "logprobs": _read_logprobs(choice),
        "usage": reply.body.get("usage"),
        "model": reply.body.get("model"),
        "system_fingerprint": reply.body.get("system_fingerprint"),
        "id": reply.body.get("id"),
        "request_id": reply.request_id,
    }
    if answer["response"] is None and answer["tool_calls"]:
        answer["response"] = ""
    return {name: value for name, value in answer.items() if value is not None or name == "response"}


def _read_logprobs(choice: dict[str, Any]) -> list[float] | None:
    """Return the log-probabilities of the response's tokens."""
    content = (choice.get("logprobs") or {}).get("content")
    return [token.get("logprob") for token in content] if content else None
