"""The request bodies of our engines; an unknown parameter is rejected unless its value has no effect."""

from typing import Annotated, Any, ClassVar, Literal, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from serving.engines.openai_server.tools import (
    ResponseFormat,
    ToolChoice,
    Tools,
    chat_output,
)
from serving.engines.structured.output import OutputRequest
from serving.http.errors import InvalidRequest

# These parameters describe the client, not the completion.
IGNORED_PARAMETERS = {
    "user",
    "metadata",
    "store",
    "service_tier",
    "safety_identifier",
    "prompt_cache_key",
    "prompt_cache_retention",
    # How long other servers keep a model or the cache of a prompt.
    "cache_prompt",
    "keep_alive",
    # Whether a response contains its costs; ours always contains the token counts.
    "usage",
}
# Values that have no effect, whatever the parameter.
NEUTRAL: tuple[Any, ...] = (None, False, 0, "", [], {}, "none", "auto", {"type": "text"}, ["text"])
# Values that have no effect for one parameter.
NEUTRAL_BY_NAME: dict[str, Any] = {
    "best_of": 1,
    "length_penalty": 1,
    "mirostat": 0,
    "reasoning": {"effort": None},
    "repeat_penalty": 1,
    "spaces_between_special_tokens": True,
    "tfs_z": 1,
    "thinking": {"type": "disabled"},
    "typical_p": 1,
    "verbosity": "medium",
}
MAX_LOGIT_BIASES = 1024
MAX_CHOICES = 8
MAX_PROMPTS = 128
# These bound the memory of a parsed body, whose objects are many times larger than its JSON.
MAX_MESSAGES = 4096
MAX_PARTS = 1024
MAX_TOKEN_IDS = 2**20
MAX_TEMPLATE_VARIABLES = 64
MAX_LOGPROBS = 20
DEFAULT_COMPLETION_TOKENS = 16

Stop = Annotated[str, Field(min_length=1, max_length=1024)]
# JSON's keys are strings, and OpenAI's SDK sends token ids that way.
TokenKey = Annotated[str, Field(pattern=r"^[0-9]{1,9}$")]
TokenIds = Annotated[list[int], Field(fail_fast=True, max_length=MAX_TOKEN_IDS)]
Bias = Annotated[float, Field(ge=-100, le=100)]


class StreamOptions(BaseModel):
    """Contents of a stream in addition to the text."""

    model_config = ConfigDict(strict=True)

    include_usage: bool = False


class GenerationRequest(BaseModel):
    """The parameters that all requests for a completion share."""

    model_config = ConfigDict(extra="allow", strict=True)

    # The parameter that errors name when the prompt is too long.
    prompt_param: ClassVar[str] = "prompt"
    # Hints for parameters that our engines do not support.
    hints: ClassVar[dict[str, str]] = {}

    model: str
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    temperature: float | None = Field(None, ge=0, le=100)
    top_p: float | None = Field(None, gt=0, le=1)
    top_k: int | None = Field(
        None, ge=-1, description="The number of most likely tokens to sample from; 0 and -1 mean all."
    )
    min_p: float | None = Field(
        None, ge=0, le=1, description="Minimum probability, relative to that of the most likely token."
    )
    presence_penalty: float | None = Field(None, ge=-2, le=2)
    frequency_penalty: float | None = Field(None, ge=-2, le=2)
    repetition_penalty: float | None = Field(
        None, gt=0, le=10, description="A value above 1 reduces repetition."
    )
    logit_bias: dict[TokenKey, Bias] | None = Field(None, max_length=MAX_LOGIT_BIASES)
    max_tokens: int | None = Field(None, ge=0)
    min_tokens: int | None = Field(None, ge=0)
    n: int | None = Field(None, ge=1, le=MAX_CHOICES)
    seed: int | None = Field(None, ge=-(2**63), lt=2**63)
    stop: Stop | Annotated[list[Stop], Field(max_length=16)] | None = None
    stop_token_ids: list[int] | None = Field(None, max_length=128)
    ignore_eos: bool | None = None
    skip_special_tokens: bool | None = None

    @property
    def stops(self) -> tuple[str, ...]:
        """The stop strings."""
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())

    @property
    def max_new_tokens(self) -> int | None:
        """The maximum number of tokens of a completion; None for as many as fit."""
        return self.max_tokens

    @property
    def length_param(self) -> str:
        """The parameter with the maximum number of tokens."""
        return "max_tokens"

    @property
    def include_usage(self) -> bool:
        """Whether a stream ends with the token counts."""
        return self.stream_options is not None and self.stream_options.include_usage

    @model_validator(mode="after")
    def reject_unknown(self) -> Self:
        """Reject a parameter that would change the completion but is not supported."""
        for name, value in (self.model_extra or {}).items():
            if not is_without_effect(name, value):
                hint = self.hints.get(name, "leave it out")
                raise InvalidRequest(f"The parameter {name!r} is not supported by this engine; {hint}.", name)
        return self

    @model_validator(mode="after")
    def check_lengths(self) -> Self:
        """Reject a minimum length above the maximum."""
        if self.min_tokens and self.max_new_tokens is not None and self.min_tokens > self.max_new_tokens:
            raise InvalidRequest(
                f"'min_tokens' is {self.min_tokens}, which is more than {self.length_param!r}, "
                f"{self.max_new_tokens}.",
                "min_tokens",
            )
        return self


class TextPart(BaseModel):
    """A part of a message; only text is supported."""

    type: Literal["text"]
    text: str


class ChatMessage(BaseModel):
    """A message of a chat; other keys, such as `name` or `tool_calls`, are passed to the template."""

    model_config = ConfigDict(extra="allow", strict=True)

    # Those of rows of training data: a template renders any other, and the model has never seen it.
    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | Annotated[list[TextPart], Field(max_length=MAX_PARTS)] | None = None

    @model_validator(mode="after")
    def check_content(self) -> Self:
        """Reject a message without content, unless it is the assistant's, whose content may be calls."""
        if self.content is None and self.role != "assistant":
            raise InvalidRequest(
                f"A message with the role {self.role!r} has no 'content', which must be a text or a list of "
                "parts.",
                "messages",
            )
        return self

    def for_template(self) -> dict[str, Any]:
        """Return the message in the form that chat templates expect."""
        parts = self.content
        text = "".join(part.text for part in parts) if isinstance(parts, list) else parts
        return {**(self.model_extra or {}), "role": self.role, "content": text or ""}


class TemplateOptions(BaseModel):
    """Options of the chat template: how the prompt ends, and further variables."""

    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    chat_template_kwargs: dict[str, bool | int | float | str | None] | None = Field(
        None, max_length=MAX_TEMPLATE_VARIABLES
    )


class ChatRequest(GenerationRequest, TemplateOptions):
    """POST /v1/chat/completions."""

    prompt_param = "messages"
    hints: ClassVar[dict[str, str]] = {
        "functions": "use 'tools' with the type 'function'",
        "function_call": "use 'tool_choice'",
    }

    messages: list[ChatMessage] = Field(min_length=1, max_length=MAX_MESSAGES)
    max_completion_tokens: int | None = Field(None, ge=1)
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0, le=MAX_LOGPROBS)
    tools: Tools | None = None
    tool_choice: ToolChoice | None = None
    parallel_tool_calls: bool | None = None
    response_format: ResponseFormat | None = None

    @property
    def output(self) -> OutputRequest:
        """What a completion may be. Raises InvalidRequest."""
        return chat_output(
            self.tools or (), self.tool_choice, self.parallel_tool_calls is not False, self.response_format
        )

    @property
    def max_new_tokens(self) -> int | None:
        """The maximum number of tokens; OpenAI replaced `max_tokens` by `max_completion_tokens`."""
        return self.max_completion_tokens or self.max_tokens

    @property
    def length_param(self) -> str:
        """The parameter with the maximum number of tokens."""
        return "max_completion_tokens" if self.max_completion_tokens else "max_tokens"

    @property
    def n_logprobs(self) -> int | None:
        """The number of most likely tokens to report with each token; None for no log-probabilities."""
        return (self.top_logprobs or 0) if self.logprobs else None

    @model_validator(mode="after")
    def check_chat(self) -> Self:
        """Reject combinations that make no sense in a chat."""
        if self.top_logprobs and not self.logprobs:
            raise InvalidRequest("'top_logprobs' needs 'logprobs': true.", "top_logprobs")
        if self.max_tokens == 0:
            raise InvalidRequest("'max_tokens' is 0, but must be at least 1 in a chat.", "max_tokens")
        return self


class CompletionRequest(GenerationRequest):
    """POST /v1/completions; the prompt is text or token ids, or a list of either."""

    prompt: (
        str
        | Annotated[list[int], Field(fail_fast=True, min_length=1, max_length=MAX_TOKEN_IDS)]
        | Annotated[list[str], Field(fail_fast=True, min_length=1, max_length=MAX_PROMPTS)]
        | Annotated[list[TokenIds], Field(fail_fast=True, min_length=1, max_length=MAX_PROMPTS)]
    )
    logprobs: int | None = Field(None, ge=0, le=MAX_LOGPROBS)
    echo: bool | None = None
    add_special_tokens: bool | None = None
    return_token_ids: bool | None = Field(
        None, description="Whether each choice contains the token ids of prompt and completion, as in vLLM."
    )

    @property
    def max_new_tokens(self) -> int | None:
        """The maximum number of tokens, which is 16 by default as in OpenAI's API."""
        return DEFAULT_COMPLETION_TOKENS if self.max_tokens is None else self.max_tokens

    @property
    def prompts(self) -> list[str | list[int]]:
        """The prompts as a list, also of one."""
        if isinstance(self.prompt, str):
            return [self.prompt]
        if isinstance(self.prompt[0], int):
            return [[token for token in self.prompt if isinstance(token, int)]]
        return [prompt for prompt in self.prompt if not isinstance(prompt, int)]

    @model_validator(mode="after")
    def check_completion(self) -> Self:
        """Reject a request that asks for nothing."""
        if self.max_tokens == 0 and not self.echo:
            raise InvalidRequest("'max_tokens' may be 0 only with 'echo': true.", "max_tokens")
        if self.return_token_ids and self.stream:
            raise InvalidRequest("'return_token_ids' needs 'stream': false.", "return_token_ids")
        return self


class TokenizeRequest(TemplateOptions):
    """POST /tokenize of a text or a chat, as in vLLM."""

    model_config = ConfigDict(extra="forbid", strict=True)

    model: str
    prompt: str | None = None
    messages: list[ChatMessage] | None = Field(None, min_length=1, max_length=MAX_MESSAGES)
    add_special_tokens: bool | None = None
    return_token_strs: bool | None = None

    @model_validator(mode="after")
    def check_input(self) -> Self:
        """Reject both inputs, or none."""
        if (self.prompt is None) == (self.messages is None):
            raise InvalidRequest("Exactly one of 'prompt' and 'messages' is required.", "prompt")
        return self


class DetokenizeRequest(BaseModel):
    """POST /detokenize, as in vLLM."""

    model_config = ConfigDict(extra="forbid", strict=True)

    model: str
    tokens: TokenIds


class LoadAdapterRequest(BaseModel):
    """POST /v1/load_lora_adapter."""

    lora_name: str = Field(min_length=1)
    lora_path: str = Field(min_length=1)


class UnloadAdapterRequest(BaseModel):
    """POST /v1/unload_lora_adapter."""

    lora_name: str = Field(min_length=1)


Request = TypeVar("Request", bound=BaseModel)


def is_without_effect(name: str, value: Any) -> bool:
    """Return whether a parameter that the engine does not have leaves the response as it is."""
    return name in IGNORED_PARAMETERS or value in NEUTRAL or NEUTRAL_BY_NAME.get(name) == value


def parse_request(kind: type[Request], body: bytes) -> Request:
    """Parse a request body. Raises InvalidRequest with the name of the invalid parameter."""
    try:
        return kind.model_validate_json(body)
    except ValidationError as error:
        # Every member of a union reports an error; the member of the right type is the one that was meant.
        details = error.errors(include_url=False)
        first = next((detail for detail in details if not detail["type"].endswith("_type")), details[0])
        param = str(first["loc"][0]) if first["loc"] else None
        path = ".".join(str(part) for part in first["loc"] if _is_field_or_index(part))
        raise InvalidRequest(f"{path or 'The body'}: {first['msg']}.", param) from error


def _is_field_or_index(part: int | str) -> bool:
    """Return False for the parts of an error's path that are pydantic's names of types."""
    return isinstance(part, int) or (part.isidentifier() and part != "str")
