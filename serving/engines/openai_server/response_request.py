"""The body of POST /v1/responses: a conversation that the client stores, with text as the response."""

from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from serving.engines.openai_server.schemas import (
    MAX_LOGPROBS,
    MAX_MESSAGES,
    MAX_PARTS,
    ChatMessage,
    GenerationRequest,
    TemplateOptions,
)
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


class TextFormat(BaseModel):
    """The format of the response's text; only plain text is supported."""

    model_config = ConfigDict(extra="forbid")

    type: Literal["text"]

    @field_validator("type", mode="before")
    @classmethod
    def reject_other_formats(cls, value: Any) -> Any:
        """Reject JSON formats with a hint."""
        if value != "text":
            raise InvalidRequest(
                f"'text.format' is {value!r}, but this engine supports only 'text'; "
                "leave it out, or serve the model with vllm.",
                "text",
            )
        return value


class TextOptions(BaseModel):
    """Options of the response's text, with OpenAI's defaults."""

    model_config = ConfigDict(extra="forbid")

    format: TextFormat | None = None
    verbosity: Literal["medium"] | None = None


class ResponseRequest(GenerationRequest, TemplateOptions):
    """POST /v1/responses."""

    prompt_param = "input"
    length_param = "max_output_tokens"
    hints: ClassVar[dict[str, str]] = {
        "previous_response_id": NOT_STORED,
        "conversation": NOT_STORED,
        "background": "responses are not stored here, so wait for the response or request a stream",
        "prompt": "prompts are not stored here, so write the prompt in 'instructions' and 'input'",
        "tools": "it does not call tools, so leave it out",
    }

    input: str | Annotated[list[InputMessage], Field(min_length=1, max_length=MAX_MESSAGES)]
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
    tool_choice: Literal["auto", "none"] | None = None

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
    def n_logprobs(self) -> int | None:
        """The number of most likely tokens to report with each token; None for no log-probabilities."""
        return (self.top_logprobs or 0) if LOGPROBS in (self.include or ()) else None

    @property
    def messages(self) -> list[ChatMessage]:
        """The conversation as a chat that begins with the instructions."""
        conversation = (
            [InputMessage(role="user", content=self.input)] if isinstance(self.input, str) else self.input
        )
        instructions = (
            [] if self.instructions is None else [InputMessage(role="system", content=self.instructions)]
        )
        return [message.for_chat() for message in (*instructions, *conversation)]

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
