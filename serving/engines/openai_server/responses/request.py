"""The body of POST /v1/responses: a conversation that the client stores."""

from collections.abc import Sequence
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from serving.engines.decoding.sampling import SamplingParams
from serving.engines.openai_server.responses.tools import (
    ResponseToolChoice,
    ResponseTools,
    TextOptions,
    response_output,
)
from serving.engines.openai_server.schemas import (
    MAX_LOGPROBS,
    MAX_MESSAGES,
    MAX_PARTS,
    ChatMessage,
    GenerationRequest,
    TemplateOptions,
)
from serving.engines.structured.output import OutputRequest
from serving.http.errors import InvalidRequest

LOGPROBS = "message.output_text.logprobs"
NOT_STORED = "responses are not stored here, so send the whole conversation in 'input'"


class InputPart(BaseModel):
    """A part of an input or output message; only text is supported."""

    type: Literal["input_text", "output_text"]
    text: str


class InputMessage(BaseModel):
    """A message of the client, or one of an earlier response, whose id and status are ignored."""

    model_config = ConfigDict(strict=True)

    type: Literal["message"] | None = None
    role: Literal["user", "assistant", "system", "developer"]
    content: str | Annotated[list[InputPart], Field(max_length=MAX_PARTS)]

    def for_chat(self) -> ChatMessage:
        """Return the message in the format of a chat."""
        parts = self.content
        text = parts if isinstance(parts, str) else "".join(part.text for part in parts)
        return ChatMessage(role=self.role, content=text)


class FunctionCall(BaseModel):
    """A call in an earlier response, whose id and status are ignored."""

    type: Literal["function_call"]
    call_id: str
    name: str
    arguments: str

    def for_chat(self) -> dict[str, Any]:
        """Return the call in the format of a chat."""
        function = {"name": self.name, "arguments": self.arguments}
        return {"id": self.call_id, "type": "function", "function": function}


class FunctionCallOutput(BaseModel):
    """The result of a call."""

    type: Literal["function_call_output"]
    call_id: str
    output: str | Annotated[list[InputPart], Field(max_length=MAX_PARTS)]

    def for_chat(self, name: str | None) -> ChatMessage:
        """Return the result as a message; some templates render the name of the function."""
        parts = self.output
        text = parts if isinstance(parts, str) else "".join(part.text for part in parts)
        extra = {"tool_call_id": self.call_id} | ({} if name is None else {"name": name})
        return ChatMessage(role="tool", content=text, **extra)


InputItem = InputMessage | FunctionCall | FunctionCallOutput


def conversation(items: Sequence[InputItem]) -> list[ChatMessage]:
    """Return items as a chat; calls that follow each other or a text of the assistant are one message."""
    messages: list[ChatMessage] = []
    names: dict[str, str] = {}
    for item in items:
        if isinstance(item, InputMessage):
            messages.append(item.for_chat())
        elif isinstance(item, FunctionCallOutput):
            messages.append(item.for_chat(names.get(item.call_id)))
        else:
            names[item.call_id] = item.name
            if not messages or messages[-1].role != "assistant":
                messages.append(ChatMessage(role="assistant", content=None))
            extra = messages[-1].model_extra
            assert extra is not None
            extra.setdefault("tool_calls", []).append(item.for_chat())
    return messages


class ResponseRequest(GenerationRequest, TemplateOptions):
    """POST /v1/responses."""

    prompt_param = "input"
    hints: ClassVar[dict[str, str]] = {
        "previous_response_id": NOT_STORED,
        "conversation": NOT_STORED,
        "background": "responses are not stored here, so wait for the response or request a stream",
        "prompt": "prompts are not stored here, so write the prompt in 'instructions' and 'input'",
    }

    input: str | Annotated[list[InputItem], Field(min_length=1, max_length=MAX_MESSAGES)]
    instructions: str | None = None
    max_output_tokens: int | None = Field(None, ge=1)
    # These models do not reason, so that there is no encrypted content to include.
    include: list[Literal["message.output_text.logprobs", "reasoning.encrypted_content"]] | None = None
    top_logprobs: int | None = Field(None, ge=0, le=MAX_LOGPROBS)
    text: TextOptions | None = None
    # A conversation that is too long is an error with `auto` too: its start is never dropped silently.
    truncation: Literal["disabled", "auto"] | None = None
    metadata: dict[str, str] | None = None
    parallel_tool_calls: bool | None = None
    tools: ResponseTools | None = None
    tool_choice: ResponseToolChoice | None = None

    @field_validator("input", mode="before")
    @classmethod
    def drop_reasoning(cls, value: Any) -> Any:
        """Drop the reasoning items of another engine's response; they are not part of the conversation."""
        if not isinstance(value, list):
            return value
        return [item for item in value if not (isinstance(item, dict) and item.get("type") == "reasoning")]

    @property
    def max_new_tokens(self) -> int | None:
        """The maximum number of tokens; None for as many as fit."""
        return self.max_output_tokens

    @property
    def length_param(self) -> str:
        """The parameter with the maximum number of tokens."""
        return "max_output_tokens"

    @property
    def n_logprobs(self) -> int | None:
        """The number of most likely tokens to report with each token; None for no log-probabilities."""
        return (self.top_logprobs or 0) if LOGPROBS in (self.include or ()) else None

    @property
    def messages(self) -> list[ChatMessage]:
        """The conversation as a chat that begins with the instructions."""
        items = [InputMessage(role="user", content=self.input)] if isinstance(self.input, str) else self.input
        instructions = (
            [] if self.instructions is None else [InputMessage(role="system", content=self.instructions)]
        )
        return conversation([*instructions, *items])

    @property
    def output(self) -> OutputRequest:
        """What a response may be. Raises InvalidRequest."""
        return response_output(
            self.tools or [], self.tool_choice, self.parallel_tool_calls is not False, self.text
        )

    def parameters_in_effect(self, sampling: SamplingParams) -> dict[str, Any]:
        """Return the parameters of the response, with the values in effect where the request has none."""
        extra, text_format = self.model_extra or {}, self.text and self.text.format
        choice = self.tool_choice
        return {
            "model": self.model,
            "instructions": self.instructions,
            "max_output_tokens": self.max_output_tokens,
            "max_tool_calls": None,
            "metadata": self.metadata or {},
            "parallel_tool_calls": self.parallel_tool_calls is not False,
            "previous_response_id": None,
            "prompt_cache_key": extra.get("prompt_cache_key"),
            "reasoning": {"effort": None, "summary": None},
            "safety_identifier": extra.get("safety_identifier"),
            # False whatever the request says: responses are not stored.
            "store": False,
            "temperature": sampling.temperature,
            "text": {"format": _as_json(text_format) if text_format else {"type": "text"}},
            "tool_choice": _as_json(choice) if isinstance(choice, BaseModel) else choice or "auto",
            "tools": [_as_json(tool) | {"strict": bool(tool.strict)} for tool in self.tools or ()],
            "top_logprobs": self.top_logprobs or 0,
            "top_p": sampling.top_p,
            "truncation": "disabled",
            "user": extra.get("user"),
        }

    @model_validator(mode="after")
    def check_response(self) -> Self:
        """Reject parameters of other endpoints, and combinations that make no sense."""
        if self.max_tokens is not None:
            raise InvalidRequest(
                "The parameter 'max_tokens' is called 'max_output_tokens' here.", "max_tokens"
            )
        if self.n is not None and self.n > 1:
            raise InvalidRequest(
                f"'n' is {self.n}, but a response has one output; send one request for each.", "n"
            )
        if self.top_logprobs and self.n_logprobs is None:
            raise InvalidRequest(
                "'top_logprobs' needs 'include': [\"message.output_text.logprobs\"].", "top_logprobs"
            )
        return self


def _as_json(value: BaseModel) -> dict[str, Any]:
    return value.model_dump(by_alias=True, exclude_none=True)
