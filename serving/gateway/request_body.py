"""What a request asks for, read from its body without decoding what the gateway has no use for."""

from dataclasses import dataclass
from functools import lru_cache

import msgspec

from serving.http.errors import InvalidRequest

# Files, code, peers and templates: what an engine may read, import, call or render because a request says so.
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
# What would need answers that are kept; an engine's own memory is not every engine's.
KEPT_FIELDS = frozenset({"background", "conversation", "previous_response_id"})
QUOTE, BRACKET = b'"['
# Where a stream tells its tokens only if it is asked to.
CHOICES_PATHS = ("/v1/chat/completions", "/v1/completions")
INCLUDE_USAGE = msgspec.Raw(b'{"include_usage":true}')
TEMPLATE_OPTIONS = "chat_template_kwargs"
REFUSED_TEMPLATE_OPTIONS = frozenset({"chat_template", "template", "tokenizer", "tools_template"})

# Most requests have none of these, which one look tells.
LOOKED_INTO = REFUSED_FIELDS | KEPT_FIELDS | {TEMPLATE_OPTIONS}
# Numbers with a limit, and the limit's name.
CAPPED = {
    "n": "most_choices",
    "best_of": "most_choices",
    "max_tokens": "most_tokens",
    "max_completion_tokens": "most_tokens",
    "max_output_tokens": "most_tokens",
}

Fields = dict[str, msgspec.Raw]
_fields = msgspec.json.Decoder(Fields).decode
_items = msgspec.json.Decoder(list[msgspec.Raw]).decode
_any = msgspec.json.Decoder().decode
_encode = msgspec.json.Encoder().encode


@dataclass(frozen=True)
class RequestLimits:
    """What one request may ask for."""

    most_choices: int = 128
    most_prompts: int = 1024
    most_tokens: int = 1_000_000


@dataclass(frozen=True, slots=True)
class RequestBody:
    """A request for the model of this name, with the raw JSON of each of its fields."""

    model: str
    fields: Fields

    def body(self, upstream_model: str) -> bytes:
        """The request under the engine's name for the model.

        Values are copied as they came. Of a key that stood twice the last is left, so that no engine reads
        another model, or another field, than was looked at here.
        """
        self.fields["model"] = _raw(upstream_model)
        return _encode(self.fields)

    def ask_for_usage(self, path: str) -> bool:
        """Have a stream tell its tokens, for the log; whether nobody else has asked for them."""
        fields = self.fields
        if path not in CHOICES_PATHS or "stream" not in fields or _any(fields["stream"]) is not True:
            return False
        if "stream_options" in fields and _any(fields["stream_options"]) is not None:
            return False
        fields["stream_options"] = INCLUDE_USAGE
        return True


def read(body: bytes, caps: RequestLimits) -> RequestBody:
    """The body as a request for a model; raises InvalidRequest."""
    try:
        if not body.isascii():
            body.decode()
        fields = _fields(body)
    except msgspec.ValidationError as fault:
        raise InvalidRequest("The body must be a JSON object.") from fault
    except (ValueError, RecursionError) as fault:
        raise InvalidRequest(f"The body is not valid JSON: {fault}.") from fault
    model = _any(fields["model"]) if "model" in fields else None
    if not isinstance(model, str):
        raise InvalidRequest("'model' must be the name of a deployment.", "model")
    if not LOOKED_INTO.isdisjoint(fields):
        _look_into(fields)
    _check(fields, caps)
    return RequestBody(model, fields)


def _look_into(fields: Fields) -> None:
    """Raises InvalidRequest for fields that are refused, and for values that are."""
    if not REFUSED_FIELDS.isdisjoint(fields):
        field = min(REFUSED_FIELDS.intersection(fields))
        raise InvalidRequest(f"{field!r} is set by whoever deploys a model; leave it out.", field)
    for field in sorted(KEPT_FIELDS.intersection(fields)):
        if _any(fields[field]):
            raise InvalidRequest(
                f"{field!r} needs answers that are kept, and none are kept here; "
                "send the whole conversation in 'input', and wait for the answer.",
                field,
            )
    options = _any(fields[TEMPLATE_OPTIONS]) if TEMPLATE_OPTIONS in fields else None
    if isinstance(options, dict) and not REFUSED_TEMPLATE_OPTIONS.isdisjoint(options):
        raise InvalidRequest(
            f"{TEMPLATE_OPTIONS!r} may not bring a template: a model is served with its own.",
            TEMPLATE_OPTIONS,
        )


def _check(fields: Fields, caps: RequestLimits) -> None:
    """Raises InvalidRequest for more than the caps allow."""
    for field in CAPPED.keys() & fields.keys():
        asked, most = _any(fields[field]), getattr(caps, CAPPED[field])
        if asked is None:
            continue
        # Some engines take the text of a number for the number.
        if not isinstance(asked, int | float):
            raise InvalidRequest(f"{field!r} must be a number.", field)
        if asked > most:
            raise InvalidRequest(f"{field!r} is {asked}; at most {most} is served here.", field)
    for field in ("prompt", "input"):
        if field in fields and memoryview(fields[field])[0] == BRACKET:
            _check_count(field, _items(fields[field]), caps.most_prompts)


def _check_count(field: str, prompts: list[msgspec.Raw], most: int) -> None:
    """A list of numbers is one prompt, given as token ids, and one of objects is a conversation."""
    if len(prompts) > most and memoryview(prompts[0])[0] in (BRACKET, QUOTE):
        raise InvalidRequest(f"{field!r} holds {len(prompts)} prompts; at most {most} are taken.", field)


@lru_cache(maxsize=1024)
def _raw(text: str) -> msgspec.Raw:
    return msgspec.Raw(_encode(text))
