"""Request bodies: the model name, allowed fields and limits; and the model name in responses.

Other values of a body stay undecoded.
"""

import json
from dataclasses import dataclass
from functools import lru_cache
from types import NoneType
from typing import Any

import msgspec

from serving.http.errors import InvalidRequest
from serving.http.limits import MAX_EMBEDDING_INPUTS
from serving.http.media_urls import check_media, decode_messages
from serving.http.message_roles import check_roles

# The fields that reach an engine, for each path; all others are refused. An engine accepts more: fields that
# make it read files, import code, call other hosts or compile patterns. A new field of OpenAI's API or of an
# engine is added here after it has been checked for that.
OPENAI_FIELDS = {
    "/v1/chat/completions": "audio frequency_penalty function_call functions logit_bias logprobs "
    "max_completion_tokens max_tokens messages metadata modalities model n parallel_tool_calls prediction "
    "presence_penalty prompt_cache_key prompt_cache_retention reasoning_effort response_format "
    "safety_identifier seed service_tier stop store stream stream_options temperature tool_choice tools "
    "top_logprobs top_p user verbosity web_search_options",
    "/v1/completions": "best_of echo frequency_penalty logit_bias logprobs max_tokens model n "
    "presence_penalty prompt seed stop stream stream_options suffix temperature top_p user",
    "/v1/responses": "background conversation include input instructions max_output_tokens max_tool_calls "
    "metadata model parallel_tool_calls previous_response_id prompt prompt_cache_key "
    "prompt_cache_retention reasoning safety_identifier service_tier store stream stream_options "
    "temperature text tool_choice tools top_logprobs top_p truncation user",
    "/v1/embeddings": "dimensions encoding_format input model user",
}
# Extensions of vLLM's API. Our engines have the first two rows; vLLM has all, and SGLang most of them.
SAMPLING_EXTENSIONS = (
    "ignore_eos min_p min_tokens repetition_penalty skip_special_tokens stop_token_ids top_k "
    "add_special_tokens "
    "allowed_token_ids bad_words include_stop_str_in_output length_penalty prompt_logprobs return_token_ids "
    "return_tokens_as_token_ids spaces_between_special_tokens truncate_prompt_tokens"
)
TEMPLATE_EXTENSIONS = "add_generation_prompt chat_template_kwargs continue_final_message"
EXTENSIONS = {
    "/v1/chat/completions": f"{SAMPLING_EXTENSIONS} {TEMPLATE_EXTENSIONS} include_reasoning",
    "/v1/completions": SAMPLING_EXTENSIONS,
    # Our engines sample a response with all the parameters of a chat.
    "/v1/responses": f"{SAMPLING_EXTENSIONS} {TEMPLATE_EXTENSIONS} "
    "frequency_penalty logit_bias max_tokens n presence_penalty seed stop",
    "/v1/embeddings": "truncate_prompt_tokens",
}
ALLOWED_FIELDS = {
    path: frozenset(f"{names} {EXTENSIONS[path]}".split()) for path, names in OPENAI_FIELDS.items()
}
# Values without effect that clients for llama.cpp, Ollama and OpenRouter send; `...` stands for any value.
NEUTRAL_VALUES: dict[str, Any] = {
    "best_of": (1,),
    "cache_prompt": ...,
    "keep_alive": ...,
    "mirostat": (0,),
    "reasoning": ({"effort": None},),
    "repeat_penalty": (1,),
    "tfs_z": (1,),
    "thinking": ({"type": "disabled"},),
    "typical_p": (1,),
    "usage": ({"include": True}, {"include": False}),
}
# Values that mean "not set" in any field.
EMPTY_VALUES: tuple[Any, ...] = (None, "", [], {})

# Fields of responses that outlive their request, which no gateway offers.
STATEFUL_FIELDS = frozenset({"background", "conversation"})
QUOTE, BRACKET = b'"['
# Endpoints whose streams contain usage only if the request asks for it.
STREAM_USAGE_PATHS = ("/v1/chat/completions", "/v1/completions")
BOOLEANS = (b"true", b"false", b"null")
INCLUDE_USAGE = msgspec.Raw(b'{"include_usage":true}')
TEMPLATE_OPTIONS = "chat_template_kwargs"
REFUSED_TEMPLATE_OPTIONS = frozenset({"chat_template", "template", "tokenizer", "tools_template"})

UNRESTRICTED_FIELDS = {
    path: fields - STATEFUL_FIELDS - {TEMPLATE_OPTIONS} for path, fields in ALLOWED_FIELDS.items()
}
# Numeric fields, and the attribute of RequestLimits that bounds each.
LIMITED_FIELDS = {
    "n": "max_choices",
    "best_of": "max_choices",
    "max_tokens": "max_tokens",
    "max_completion_tokens": "max_tokens",
    "max_output_tokens": "max_tokens",
}

Fields = dict[str, msgspec.Raw]
Replacements = tuple[tuple[bytes, bytes], ...]
_decode_fields = msgspec.json.Decoder(Fields).decode
_decode_items = msgspec.json.Decoder(list[msgspec.Raw]).decode
_decode = msgspec.json.Decoder().decode
_encode = msgspec.json.Encoder().encode


@dataclass(frozen=True)
class RequestLimits:
    """Limits of one request."""

    max_choices: int = 128
    max_prompts: int = 1024
    max_inputs: int = MAX_EMBEDDING_INPUTS
    max_tokens: int = 1_000_000


@dataclass(frozen=True, slots=True)
class RequestBody:
    """The model name of a request and the raw JSON of each of its fields."""

    model: str
    fields: Fields

    def encode(self, upstream_model: str) -> bytes:
        """Return the body with the engine's name of the model; other values are copied unchanged.

        If a key was repeated, only its last value is kept. So the engine reads exactly the model and the
        fields that were checked here.
        """
        self.fields["model"] = _encode_text(upstream_model)
        return _encode(self.fields)

    @property
    def previous_response_id(self) -> str | None:
        """The id of the response that this request continues; raises InvalidRequest for another value."""
        value = read_field(self.fields, "previous_response_id")
        if value is not None and not isinstance(value, str):
            raise InvalidRequest("'previous_response_id' must be a string.", "previous_response_id")
        return value or None

    def request_stream_usage(self, path: str) -> bool:
        """Make a stream report its token counts, which are logged and charged.

        Return whether the client does not ask for them, so that they are removed from the stream.
        """
        fields = self.fields
        if path not in STREAM_USAGE_PATHS or read_field(fields, "stream") is not True:
            return False
        options = read_field(fields, "stream_options")
        if options is None:
            fields["stream_options"] = INCLUDE_USAGE
            return True
        # Anything else is the engine's to refuse.
        if not isinstance(options, dict) or options.get("include_usage"):
            return False
        # Counts in every event are part of the usage that the client does not ask for.
        options = {name: value for name, value in options.items() if name != "continuous_usage_stats"}
        fields["stream_options"] = msgspec.Raw(msgspec.json.encode({**options, "include_usage": True}))
        return True


def parse_request_body(path: str, body: bytes, limits: RequestLimits) -> RequestBody:
    """Parse and check a body; raises InvalidRequest."""
    try:
        if not body.isascii():
            body.decode()
        fields = _decode_fields(body)
    except msgspec.ValidationError as error:
        raise InvalidRequest("The body must be a JSON object.") from error
    except (ValueError, RecursionError) as error:
        raise InvalidRequest(f"The body is not valid JSON: {error}.") from error
    model = read_field(fields, "model")
    if not isinstance(model, str):
        raise InvalidRequest("'model' must be the name of a deployment.", "model")
    try:
        # Most requests have no other fields, so one set operation decides.
        if not fields.keys() <= UNRESTRICTED_FIELDS[path]:
            _check_restricted(fields)
            _remove_neutral_fields(path, fields)
        messages = decode_messages(path, fields)
        check_media(path, messages)
        check_roles(path, messages)
        _check_limits(fields, limits)
        _check_stream(fields)
    except RecursionError as error:
        raise InvalidRequest("The body has too many levels of lists and objects.") from error
    return RequestBody(model, fields)


def read_field(fields: Fields, name: str) -> Any:
    """Return the value of a field, None without it; raises InvalidRequest for one that cannot be read."""
    if name not in fields:
        return None
    try:
        return _decode(fields[name])
    except msgspec.ValidationError as error:
        # What is valid JSON, but no value: a number such as 1e999.
        raise InvalidRequest(f"{name!r} contains a number that is out of range.", name) from error


def replace_model_name(chunk: bytes, replacements: Replacements) -> bytes:
    """Replace the engine's name of the model; an engine formats its JSON in one way throughout."""
    for upstream, requested in replacements:
        if upstream in chunk:
            return chunk.replace(upstream, requested)
    return chunk


@lru_cache(maxsize=1024)
def model_name_replacements(upstream: str, requested: str) -> Replacements:
    """Return pairs of old and new bytes that replace the engine's model name by the requested one.

    A quote inside a JSON string is escaped, so generated text cannot match.
    """
    if upstream == requested:
        return ()
    old, new = json.dumps(upstream, ensure_ascii=False), json.dumps(requested, ensure_ascii=False)
    return tuple((f'"model":{gap}{old}'.encode(), f'"model":{gap}{new}'.encode()) for gap in ("", " "))


def _remove_neutral_fields(path: str, fields: Fields) -> None:
    """Remove unknown fields whose value has no effect. Raise InvalidRequest for another unknown field."""
    for name in sorted(fields.keys() - ALLOWED_FIELDS[path]):
        value, neutral = read_field(fields, name), NEUTRAL_VALUES.get(name, ())
        if neutral is not ... and value not in EMPTY_VALUES and value not in neutral:
            raise InvalidRequest(
                f"{name!r} is not a parameter of {path} here. Remove it; the guide to serving lists the "
                "parameters beyond OpenAI's.",
                name,
            )
        del fields[name]


def _check_restricted(fields: Fields) -> None:
    for field in sorted(STATEFUL_FIELDS.intersection(fields)):
        if read_field(fields, field):
            raise InvalidRequest(
                f"{field!r} is not offered here. Send the conversation in 'input', or its last response as "
                "'previous_response_id', and wait for the response or request a stream.",
                field,
            )
    options = read_field(fields, TEMPLATE_OPTIONS)
    if isinstance(options, dict) and not REFUSED_TEMPLATE_OPTIONS.isdisjoint(options):
        raise InvalidRequest(
            f"{TEMPLATE_OPTIONS!r} cannot replace the chat template. A model is served with its own.",
            TEMPLATE_OPTIONS,
        )


def _check_limits(fields: Fields, limits: RequestLimits) -> None:
    for field in LIMITED_FIELDS.keys() & fields.keys():
        value, maximum = read_field(fields, field), getattr(limits, LIMITED_FIELDS[field])
        if value is None:
            continue
        # Some engines accept a number as a string, which would bypass the limit.
        if not isinstance(value, int | float):
            raise InvalidRequest(f"{field!r} must be a number.", field)
        if value > maximum:
            raise InvalidRequest(f"{field!r} is {value}, but the limit is {maximum}.", field)
    for field, maximum in (("prompt", limits.max_prompts), ("input", limits.max_inputs)):
        if field in fields and memoryview(fields[field])[0] == BRACKET:
            items = _decode_items(fields[field])
            # A list of numbers is one prompt, given as token ids, and a list of objects is one conversation.
            if len(items) > maximum and memoryview(items[0])[0] in (BRACKET, QUOTE):
                raise InvalidRequest(f"{field!r} has {len(items)} texts, but the limit is {maximum}.", field)


def _check_stream(fields: Fields) -> None:
    """Raise InvalidRequest for what some engines read as true: the stream would have no usage to charge."""
    if "stream" in fields and bytes(fields["stream"]) not in BOOLEANS:
        raise InvalidRequest("'stream' must be true or false.", "stream")
    options = read_field(fields, "stream_options")
    if isinstance(options, dict) and not isinstance(options.get("include_usage"), bool | NoneType):
        raise InvalidRequest("'include_usage' of 'stream_options' must be true or false.", "stream_options")


@lru_cache(maxsize=1024)
def _encode_text(text: str) -> msgspec.Raw:
    return msgspec.Raw(_encode(text))
