"""Complete answers as rows of the tables of stored completions and responses."""

from datetime import timedelta
from typing import Any

import msgspec

from app.completions.chat_stream import assemble_completion
from app.completions.input_items import normalize_input
from app.tables import StoredCompletion, StoredResponse
from app.tables.base import utc_now
from serving.gateway.stored_answers.answer import RESPONSES_PATH
from serving.gateway.stored_answers.store import CompleteAnswer

_decode = msgspec.json.Decoder().decode
_encode = msgspec.json.Encoder().encode


def build_row(answer: CompleteAnswer) -> StoredCompletion | StoredResponse:
    """Return the row of an answer; raises ValueError if it is malformed."""
    return _build_response(answer) if answer.path == RESPONSES_PATH else _build_completion(answer)


def dump_text(value: Any) -> str:
    """Return JSON as a text that every database can store: control characters are escaped in it."""
    return _encode(value).decode()


def load_text(text: str) -> Any:
    """Return the value of a JSON text."""
    return _decode(text)


def _build_completion(answer: CompleteAnswer) -> StoredCompletion:
    completion = assemble_completion(answer.content) if answer.streamed else _decode(answer.content)
    if not isinstance(completion, dict) or not isinstance(completion.get("choices"), list):
        raise ValueError("the answer is not a chat completion")
    # Decoded, because what is stored must be readable: the raw JSON may have a number that is out of range.
    request = {name: _decode(value) for name, value in answer.request.items()}
    return StoredCompletion(
        **_common(answer),
        client_metadata=request.get("metadata") or {},
        request=dump_text(request),
        completion=dump_text(completion),
    )


def _build_response(answer: CompleteAnswer) -> StoredResponse:
    if answer.streamed:
        _, _, event = answer.content.partition(b"data:")
        response = _decode(event)["response"]
    else:
        response = _decode(answer.content)
    if not isinstance(response, dict) or not isinstance(response.get("output"), list):
        raise ValueError("the answer is not a response")
    input_items = dump_text(normalize_input(_decode(answer.request["input"])))
    text = dump_text(response)
    return StoredResponse(
        **_common(answer),
        previous_response_id=answer.previous_response_id,
        input_items=input_items,
        response=text,
        size_bytes=len(input_items.encode()) + len(text.encode()),
    )


def _common(answer: CompleteAnswer) -> dict[str, Any]:
    now = utc_now()
    return {
        "id": answer.id,
        "key_id": answer.key_id,
        "model": answer.model,
        "deployment_id": answer.deployment_id,
        "created_at": now,
        "expires_at": now + timedelta(days=answer.store_days),
    }
