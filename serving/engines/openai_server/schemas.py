"""The requests that our engines understand; an unknown parameter is refused unless it asks for nothing."""

from typing import Annotated, Any, ClassVar, Literal, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from serving.http.errors import InvalidRequest

# They describe the caller, not the answer.
HARMLESS = {
    "user",
    "metadata",
    "store",
    "service_tier",
    "safety_identifier",
    "prompt_cache_key",
    "prompt_cache_retention",
    "parallel_tool_calls",
}
# Values with which a parameter asks for nothing.
NEUTRAL: tuple[Any, ...] = (None, False, 0, "", [], {}, "none", "auto", {"type": "text"}, ["text"])
# Values with which some parameters alone ask for nothing.
NEUTRAL_BY_NAME: dict[str, Any] = {
    "best_of": 1,
    "length_penalty": 1,
    "spaces_between_special_tokens": True,
}
MOST_LOGIT_BIASES = 1024
MOST_CHOICES = 8
MOST_PROMPTS = 128
MAX_LOGPROBS = 20
DEFAULT_COMPLETION_TOKENS = 16

Stop = Annotated[str, Field(min_length=1, max_length=1024)]
# JSON's keys are texts; OpenAI's SDK sends them so too.
TokenKey = Annotated[str, Field(pattern=r"^[0-9]{1,9}$")]
Bias = Annotated[float, Field(ge=-100, le=100)]


class StreamOptions(BaseModel):
    """What a stream carries besides the text."""

    include_usage: bool = False


class GenerationRequest(BaseModel):
    """What all requests for an answer share."""

    model_config = ConfigDict(extra="allow", strict=True)

    # The parameters that errors name when the context is too small.
    prompt_param: ClassVar[str] = "prompt"
    length_param: ClassVar[str] = "max_tokens"
    # What to do instead of asking for what the engine does not have.
    instead: ClassVar[dict[str, str]] = {}

    model: str
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    temperature: float | None = Field(None, ge=0, le=100)
    top_p: float | None = Field(None, gt=0, le=1)
    top_k: int | None = Field(
        None, ge=-1, description="Vocabulary entries to choose from; 0 and -1 mean all."
    )
    min_p: float | None = Field(None, ge=0, le=1, description="Least chance, as a share of the likeliest's.")
    presence_penalty: float | None = Field(None, ge=-2, le=2)
    frequency_penalty: float | None = Field(None, ge=-2, le=2)
    repetition_penalty: float | None = Field(None, gt=0, le=10, description="Above 1 repeats less.")
    logit_bias: dict[TokenKey, Bias] | None = Field(None, max_length=MOST_LOGIT_BIASES)
    max_tokens: int | None = Field(None, ge=0)
    min_tokens: int | None = Field(None, ge=0)
    n: int | None = Field(None, ge=1, le=MOST_CHOICES)
    seed: int | None = Field(None, ge=-(2**63), lt=2**63)
    stop: Stop | Annotated[list[Stop], Field(max_length=16)] | None = None
    stop_token_ids: list[int] | None = Field(None, max_length=128)
    ignore_eos: bool | None = None
    skip_special_tokens: bool | None = None

    @property
    def stops(self) -> tuple[str, ...]:
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())

    @property
    def most_tokens(self) -> int | None:
        """Tokens that an answer may have; None for as many as fit."""
        return self.max_tokens

    @property
    def include_usage(self) -> bool:
        return self.stream_options is not None and self.stream_options.include_usage

    @model_validator(mode="after")
    def refuse_unknown(self) -> Self:
        """A parameter that would change the answer must not be ignored."""
        for name, value in (self.model_extra or {}).items():
            neutral = value in NEUTRAL or NEUTRAL_BY_NAME.get(name) == value
            if name not in HARMLESS and not neutral:
                advice = self.instead.get(name, "leave it out")
                raise InvalidRequest(
                    f"The parameter {name!r} is not supported by this engine; {advice}.", name
                )
        return self

    @model_validator(mode="after")
    def check_lengths(self) -> Self:
        if self.min_tokens and self.most_tokens is not None and self.min_tokens > self.most_tokens:
            raise InvalidRequest(
                f"'min_tokens' is more than {self.length_param!r}, which is {self.most_tokens}.", "min_tokens"
            )
        return self


class TextPart(BaseModel):
    """A part of a message; only text can be read."""

    type: Literal["text"]
    text: str


class ChatMessage(BaseModel):
    """One message of a chat; further keys, such as `name` or `tool_calls`, reach the template as they are."""

    model_config = ConfigDict(extra="allow", strict=True)

    role: str = Field(min_length=1)
    content: str | list[TextPart] | None = None

    def for_template(self) -> dict[str, Any]:
        """The message as chat templates expect it."""
        parts = self.content
        text = "".join(part.text for part in parts) if isinstance(parts, list) else parts
        return {**(self.model_extra or {}), "role": self.role, "content": text or ""}


class TemplateOptions(BaseModel):
    """How the chat template ends a prompt, and what else it is told."""

    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    chat_template_kwargs: dict[str, bool | int | float | str | None] | None = None


class ChatRequest(GenerationRequest, TemplateOptions):
    """POST /v1/chat/completions."""

    prompt_param = "messages"

    messages: list[ChatMessage] = Field(min_length=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0, le=MAX_LOGPROBS)

    @property
    def most_tokens(self) -> int | None:
        return self.max_completion_tokens or self.max_tokens

    @property
    def alternatives(self) -> int | None:
        """Likeliest tokens to report beside each token; None for no log probabilities at all."""
        return (self.top_logprobs or 0) if self.logprobs else None

    @model_validator(mode="after")
    def check_chat(self) -> Self:
        if self.top_logprobs and not self.logprobs:
            raise InvalidRequest("'top_logprobs' needs 'logprobs': true.", "top_logprobs")
        if self.max_tokens == 0:
            raise InvalidRequest("'max_tokens' must be at least 1 in a chat.", "max_tokens")
        return self


class CompletionRequest(GenerationRequest):
    """POST /v1/completions; a prompt is text or token ids, alone or in a list."""

    prompt: (
        str
        | Annotated[list[int], Field(min_length=1)]
        | Annotated[list[str], Field(min_length=1, max_length=MOST_PROMPTS)]
        | Annotated[list[list[int]], Field(min_length=1, max_length=MOST_PROMPTS)]
    )
    logprobs: int | None = Field(None, ge=0, le=MAX_LOGPROBS)
    echo: bool | None = None
    add_special_tokens: bool | None = None

    @property
    def most_tokens(self) -> int | None:
        return DEFAULT_COMPLETION_TOKENS if self.max_tokens is None else self.max_tokens

    @property
    def prompts(self) -> list[str | list[int]]:
        """One entry for each prompt."""
        if isinstance(self.prompt, str):
            return [self.prompt]
        if isinstance(self.prompt[0], int):
            return [[token for token in self.prompt if isinstance(token, int)]]
        return [prompt for prompt in self.prompt if not isinstance(prompt, int)]

    @model_validator(mode="after")
    def check_completion(self) -> Self:
        if self.max_tokens == 0 and not self.echo:
            raise InvalidRequest("'max_tokens' may be 0 only with 'echo': true.", "max_tokens")
        return self


class TokenizeRequest(TemplateOptions):
    """POST /tokenize, in vLLM's shape: a text or a chat."""

    model_config = ConfigDict(extra="forbid", strict=True)

    model: str
    prompt: str | None = None
    messages: list[ChatMessage] | None = Field(None, min_length=1)
    add_special_tokens: bool | None = None
    return_token_strs: bool | None = None

    @model_validator(mode="after")
    def check_one(self) -> Self:
        if (self.prompt is None) == (self.messages is None):
            raise InvalidRequest("Either 'prompt' or 'messages' must be given.", "prompt")
        return self


class DetokenizeRequest(BaseModel):
    """POST /detokenize, in vLLM's shape."""

    model_config = ConfigDict(extra="forbid", strict=True)

    model: str
    tokens: list[int]


class LoadAdapterRequest(BaseModel):
    """POST /v1/load_lora_adapter."""

    lora_name: str = Field(min_length=1)
    lora_path: str = Field(min_length=1)


class UnloadAdapterRequest(BaseModel):
    """POST /v1/unload_lora_adapter."""

    lora_name: str = Field(min_length=1)


Request = TypeVar("Request", bound=BaseModel)


def parse_request(kind: type[Request], body: bytes) -> Request:
    """Read a request's body; raises InvalidRequest that names the parameter at fault."""
    try:
        return kind.model_validate_json(body)
    except ValidationError as fault:
        # Of a union every member complains; the one of the right type is the one that was meant.
        faults = fault.errors(include_url=False)
        first = next((one for one in faults if not one["type"].endswith("_type")), faults[0])
        param = str(first["loc"][0]) if first["loc"] else None
        where = ".".join(str(part) for part in first["loc"] if _is_of_the_body(part))
        raise InvalidRequest(f"{where or 'The body'}: {first['msg']}.", param) from fault


def _is_of_the_body(part: int | str) -> bool:
    """Whether a part of an error's path is a field or a position, and not pydantic's name of a type."""
    return isinstance(part, int) or (part.isidentifier() and part != "str")
