"""URLs of media in requests, which an engine would fetch from inside the private network."""

import re
from typing import Any

import msgspec

from serving.http.errors import InvalidRequest

# The field of each path that contains content parts.
CONTENT_FIELDS = {"/v1/chat/completions": "messages", "/v1/responses": "input"}
MEDIA_TYPE = re.compile(r"image|audio|video|file|document|media")
URL = re.compile(r"\s*(?!data:)[a-z][a-z0-9+.-]*:", re.IGNORECASE)

_decode = msgspec.json.Decoder().decode


def check_media(path: str, fields: dict[str, msgspec.Raw]) -> None:
    """Raise InvalidRequest for a content part that names its data by a URL other than `data:`.

    A part has a `type`, so messages without this word and without escapes, which could hide it, are not
    decoded.
    """
    field = CONTENT_FIELDS.get(path)
    if field is None or field not in fields:
        return
    raw = bytes(fields[field])
    if (b'"type"' in raw or b"\\u" in raw) and _names_url(_decode(raw)):
        raise InvalidRequest(
            f"{field!r} names an image, a sound or a file by its URL, which is not fetched. Send the data "
            "itself as a `data:` URL.",
            field,
        )


def _names_url(value: Any, is_media: bool = False) -> bool:
    """Return whether a part of a medium contains a URL; texts may."""
    if isinstance(value, str):
        return is_media and URL.match(value) is not None
    if isinstance(value, list):
        return any(_names_url(item, is_media) for item in value)
    if isinstance(value, dict):
        kind = value.get("type")
        is_media = is_media or (isinstance(kind, str) and MEDIA_TYPE.search(kind.lower()) is not None)
        return any(_names_url(item, is_media) for item in value.values())
    return False
