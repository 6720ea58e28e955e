"""URLs of media in requests, which an engine would fetch from inside the private network."""

import re
from typing import Any

import msgspec

from serving.http.errors import InvalidRequest

# The field of each path that contains content parts.
CONTENT_FIELDS = {"/v1/chat/completions": "messages", "/v1/responses": "input"}
MEDIUM = re.compile(r"image|audio|video|file|document|media")
# The fields of a message that contains nothing but text, if none of their values is a list or an object.
TEXT_FIELDS = frozenset({"role", "content", "name", "tool_call_id"})
STRUCTURES = b"[{"
# Python's own limit depends on what else the process has imported.
MAX_LEVELS = 64
SCHEME = re.compile(r"(?!data:)[a-z][a-z0-9+.-]*:", re.IGNORECASE)
# Parsers of URLs skip these characters at the start, and tabs and line ends everywhere.
SKIPPED_AT_START = "".join(map(chr, range(33)))

_decode = msgspec.json.Decoder().decode
_decode_messages = msgspec.json.Decoder(list[dict[str, msgspec.Raw]]).decode


def decode_messages(path: str, fields: dict[str, msgspec.Raw]) -> list[dict[str, msgspec.Raw]]:
    """Return the messages of a request; content that is not a list of objects is one without a name."""
    content = fields.get(CONTENT_FIELDS.get(path, ""))
    if content is None or memoryview(content)[0] not in STRUCTURES:
        return []
    try:
        return _decode_messages(content)
    except msgspec.ValidationError:
        return [{"": content}]


def check_media(path: str, messages: list[dict[str, msgspec.Raw]]) -> None:
    """Raise InvalidRequest for a content part that names its data by a URL other than `data:`, or by a path.

    Messages that contain nothing but text are not decoded. A part of another one need not have a `type`: vLLM
    also accepts a field such as `image_url` alone.
    """
    try:
        names_url = any(_names_url(_decode_dict(message)) for message in messages if not _is_text(message))
    except msgspec.ValidationError as error:
        field = CONTENT_FIELDS[path]
        raise InvalidRequest(f"{field!r} contains a number that is out of range.", field) from error
    if names_url:
        field = CONTENT_FIELDS[path]
        raise InvalidRequest(
            f"{field!r} names an image, a sound or a file by its URL, which is not fetched. Send the data "
            "itself as a `data:` URL.",
            field,
        )


def _is_text(message: dict[str, msgspec.Raw]) -> bool:
    return message.keys() <= TEXT_FIELDS and all(
        memoryview(value)[0] not in STRUCTURES for value in message.values()
    )


def _decode_dict(message: dict[str, msgspec.Raw]) -> dict[str, Any]:
    return {name: _decode(value) for name, value in message.items()}


def _names_url(value: Any, field: str = "", is_media: bool = False, levels: int = MAX_LEVELS) -> bool:
    """Return whether a part of a medium contains a URL; texts may.

    Raises InvalidRequest for too many levels.
    """
    if isinstance(value, str):
        return is_media and _is_reference(field, value)
    if levels == 0 and isinstance(value, list | dict):
        raise InvalidRequest(f"A message has more than {MAX_LEVELS} levels of lists and objects.")
    if isinstance(value, list):
        return any(_names_url(item, field, is_media, levels - 1) for item in value)
    if isinstance(value, dict):
        kind = value.get("type")
        is_media = is_media or (isinstance(kind, str) and MEDIUM.search(kind.lower()) is not None)
        return any(
            _names_url(item, name.lower(), is_media or MEDIUM.search(name.lower()) is not None, levels - 1)
            for name, item in value.items()
        )
    return False


def _is_reference(field: str, value: str) -> bool:
    """Return whether a string is a URL, or is in a field for URLs, where engines also read a path."""
    text = value.lstrip(SKIPPED_AT_START).replace("\t", "").replace("\n", "").replace("\r", "")
    if field.endswith("url"):
        return text != "" and not text.lower().startswith("data:")
    return SCHEME.match(text) is not None
