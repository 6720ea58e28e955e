"""Request bodies: the model name, refused fields and limits; and the model name in responses.

Other values of a body stay undecoded.
"""

import json
from dataclasses import dataclass
from functools import lru_cache

import msgspec

from serving.http.errors import InvalidRequest

# Fields that make an engine read files, import code, call other hosts or render another template.
REFUSED_FIELDS = frozenset(
    {
        "adapter",
        "adapters",
        "adapter_path",
        "bootstrap_host",
        "bootstrap_port",
        "bootstrap_room",
        "chat_template",
        "custom_logit_processor",
        "draft_model",
        "kv_transfer_params",
        "logits_processors",
        "lora",
        "lora_id",
        "lora_name",
        "lora_path",
        "lora_request",
        "model_path",
        "tokenizer",
        "tokenizer_path",
    }
)
# Fields that need stored responses. One engine's memory is not shared with the other engines of a model.
STATEFUL_FIELDS = frozenset({"background", "conversation", "previous_response_id"})
QUOTE, BRACKET = b'"['
# Endpoints whose streams contain usage only if the request asks for it.
STREAM_USAGE_PATHS = ("/v1/chat/completions", "/v1/completions")
INCLUDE_USAGE = msgspec.Raw(b'{"include_usage":true}')
TEMPLATE_OPTIONS = "chat_template_kwargs"
REFUSED_TEMPLATE_OPTIONS = frozenset({"chat_template", "template", "tokenizer", "tools_template"})

# Most requests have none of these fields, so one set operation decides.
RESTRICTED_FIELDS = REFUSED_FIELDS | STATEFUL_FIELDS | {TEMPLATE_OPTIONS}
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

    def request_stream_usage(self, path: str) -> bool:
        """Make a stream report its token counts, for the log; return False if the client decided itself."""
        fields = self.fields
        if path not in STREAM_USAGE_PATHS or "stream" not in fields or _decode(fields["stream"]) is not True:
            return False
        if "stream_options" in fields and _decode(fields["stream_options"]) is not None:
            return False
        fields["stream_options"] = INCLUDE_USAGE
        return True


def parse_request_body(body: bytes, limits: RequestLimits) -> RequestBody:
    """Parse and check a body; raises InvalidRequest."""
    try:
        if not body.isascii():
            body.decode()
        fields = _decode_fields(body)
    except msgspec.ValidationError as error:
        raise InvalidRequest("The body must be a JSON object.") from error
    except (ValueError, RecursionError) as error:
        raise InvalidRequest(f"The body is not valid JSON: {error}.") from error
    model = _decode(fields["model"]) if "model" in fields else None
    if not isinstance(model, str):
        raise InvalidRequest("'model' must be the name of a deployment.", "model")
    if not RESTRICTED_FIELDS.isdisjoint(fields):
        _check_restricted(fields)
    _check_limits(fields, limits)
    return RequestBody(model, fields)


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


def _check_restricted(fields: Fields) -> None:
    if not REFUSED_FIELDS.isdisjoint(fields):
        field = min(REFUSED_FIELDS.intersection(fields))
        raise InvalidRequest(
            f"{field!r} cannot be set by a request, only by the deployment. Remove it.", field
        )
    for field in sorted(STATEFUL_FIELDS.intersection(fields)):
        if _decode(fields[field]):
            raise InvalidRequest(
                f"{field!r} needs stored responses, and responses are not stored. "
                "Send the whole conversation in 'input', and wait for the response.",
                field,
            )
    options = _decode(fields[TEMPLATE_OPTIONS]) if TEMPLATE_OPTIONS in fields else None
    if isinstance(options, dict) and not REFUSED_TEMPLATE_OPTIONS.isdisjoint(options):
        raise InvalidRequest(
            f"{TEMPLATE_OPTIONS!r} cannot replace the chat template. A model is served with its own.",
            TEMPLATE_OPTIONS,
        )


def _check_limits(fields: Fields, limits: RequestLimits) -> None:
    for field in LIMITED_FIELDS.keys() & fields.keys():
        value, maximum = _decode(fields[field]), getattr(limits, LIMITED_FIELDS[field])
        if value is None:
            continue
        # Some engines accept a number as a string, which would bypass the limit.
        if not isinstance(value, int | float):
            raise InvalidRequest(f"{field!r} must be a number.", field)
        if value > maximum:
            raise InvalidRequest(f"{field!r} is {value}, but the limit is {maximum}.", field)
    for field in ("prompt", "input"):
        if field in fields and memoryview(fields[field])[0] == BRACKET:
            items, maximum = _decode_items(fields[field]), limits.max_prompts
            # A list of numbers is one prompt, given as token ids, and a list of objects is one conversation.
            if len(items) > maximum and memoryview(items[0])[0] in (BRACKET, QUOTE):
                raise InvalidRequest(
                    f"{field!r} has {len(items)} prompts, but the limit is {maximum}.", field
                )


@lru_cache(maxsize=1024)
def _encode_text(text: str) -> msgspec.Raw:
    return msgspec.Raw(_encode(text))
