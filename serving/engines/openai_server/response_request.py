"""What POST /v1/responses may ask for: a conversation that the client carries, and text in answer."""

from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from serving.engines.openai_server.schemas import (
    MAX_LOGPROBS,
    ChatMessage,
    GenerationRequest,
    TemplateOptions,
)
from serving.http.errors import InvalidRequest

NOTHING_KEPT = "no answers are kept here, so send the whole conversation in 'input'"


class InputPart(BaseModel):
    """A part of a message that comes in or came out; only text can be read."""

    type: Literal["input_text", "output_text"]
    text: str


class InputMessage(BaseModel):
    """A message in either form, or one of an earlier answer; its id and status say nothing to the model."""

    model_config = ConfigDict(strict=True)

    type: Literal["message"] | None = None
    role: Literal["user", "assistant", "system", "developer"]
    content: str | list[InputPart]

    def for_chat(self) -> ChatMessage:
        """The same message in a chat's form."""
        parts = self.content
        text = parts if isinstance(parts, str) else "".join(part.text for part in parts)
        return ChatMessage(role=self.role, content=text)


class TextFormat(BaseModel):
    """The form of the answer's text; only plain text is generated."""

    model_config = ConfigDict(extra="forbid")

    type: Literal["text"]

    @field_validator("type", mode="before")
    @classmethod
    def refuse_forms(cls, value: Any) -> Any:
        if value != "text":
            raise InvalidRequest(
                f"'text.format' may only be 'text' on this engine, not {value!r}; "
                "leave it out, or have the model served by vllm.",
                "text",
            )
        return value


class TextOptions(BaseModel):
    """How the answer's text is to be; these are OpenAI's defaults."""

    model_config = ConfigDict(extra="forbid")

    format: TextFormat | None = None
    verbosity: Literal["medium"] | None = None


class ResponseRequest(GenerationRequest, TemplateOptions):
    """POST /v1/responses."""

    prompt_param = "input"
    length_param = "max_output_tokens"
    instead: ClassVar[dict[str, str]] = {
        "previous_response_id": NOTHING_KEPT,
        "conversation": NOTHING_KEPT,
        "background": "no answers are kept here to be fetched later, so wait for it or ask for a stream",
        "prompt": "no prompts are kept here, so write it out in 'instructions' and 'input'",
        "tools": "it calls no tools, so leave it out",
    }

    input: str | Annotated[list[InputMessage], Field(min_length=1)]
    instructions: str | None = None
    max_output_tokens: int | None = Field(None, ge=1)
    include: list[Literal["message.output_text.logprobs"]] | None = None
    top_logprobs: int | None = Field(None, ge=0, le=MAX_LOGPROBS)
    text: TextOptions | None = None
    truncation: Literal["disabled"] | None = None
    metadata: dict[str, str] | None = None
    parallel_tool_calls: bool | None = None
    tool_choice: Literal["auto", "none"] | None = None

    @field_validator("input", mode="before")
    @classmethod
    def leave_thoughts_out(cls, value: Any) -> Any:
        """What another engine thought came back with its answer, and is no part of the conversation."""
        if not isinstance(value, list):
            return value
        return [item for item in value if not (isinstance(item, dict) and item.get("type") == "reasoning")]

    @property
    def most_tokens(self) -> int | None:
        return self.max_output_tokens

    @property
    def alternatives(self) -> int | None:
        """Likeliest tokens to report beside each token; None for no log probabilities at all."""
        return (self.top_logprobs or 0) if self.include else None

    @property
    def messages(self) -> list[ChatMessage]:
        """The conversation as a chat has it, with the instructions before it."""
        said = [InputMessage(role="user", content=self.input)] if isinstance(self.input, str) else self.input
        told = [] if self.instructions is None else [InputMessage(role="system", content=self.instructions)]
        return [message.for_chat() for message in (*told, *said)]

    @model_validator(mode="after")
    def check_response(self) -> Self:
        if self.max_tokens is not None:
            raise InvalidRequest("'max_tokens' is called 'max_output_tokens' here.", "max_tokens")
        if self.n is not None and self.n > 1:
            raise InvalidRequest("A response has one answer; leave 'n' out and ask again for another.", "n")
        if self.top_logprobs and not self.include:
            raise InvalidRequest(
                "'top_logprobs' needs 'include': [\"message.output_text.logprobs\"].", "top_logprobs"
            )
        return self
