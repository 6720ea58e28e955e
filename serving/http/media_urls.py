"""URLs of media in requests, which an engine would fetch from inside the private network."""

import re
from typing import Any

import msgspec

from serving.http.errors import InvalidRequest

# The field of each path that contains content parts.
CONTENT_FIELDS = {"/v1/chat/completions": "messages", "/v1/responses": "input"}
MEDIUM = re.compile(r"image|audio|video|file|document|media")
# A part that contains a medium has a `type` or, in vLLM's API, only a field such as `image_url`, and escapes
# could hide both. The length of a name is bounded, so that the search takes linear time.
POSSIBLE_MEDIUM = re.compile(rb'"type"|\\u|(?:image|audio|video|file|document|media)[A-Za-z0-9_]{0,32}"\s*:')
SCHEME = re.compile(r"(?!data:)[a-z][a-z0-9+.-]*:", re.IGNORECASE)
# Parsers of URLs skip these characters at the start, and tabs and line ends everywhere.
SKIPPED_AT_START = "".join(map(chr, range(33)))

_decode = msgspec.json.Decoder().decode


def check_media(path: str, fields: dict[str, msgspec.Raw]) -> None:
    """Raise InvalidRequest for a content part that names its data by a URL other than `data:`, or by a path.

    Messages that cannot contain a medium are not decoded.
    """
    field = CONTENT_FIELDS.get(path)
    if field is None or field not in fields:
        return
    raw = bytes(fields[field])
    if POSSIBLE_MEDIUM.search(raw) and _names_url(_decode(raw)):
        raise InvalidRequest(
            f"{field!r} names an image, a sound or a file by its URL, which is not fetched. Send the data "
            "itself as a `data:` URL.",
            field,
        )


def _names_url(value: Any, field: str = "", is_media: bool = False) -> bool:
    """Return whether a part of a medium contains a URL; texts may."""
    if isinstance(value, str):
        return is_media and _is_reference(field, value)
    if isinstance(value, list):
        return any(_names_url(item, field, is_media) for item in value)
    if isinstance(value, dict):
        kind = value.get("type")
        is_media = is_media or (isinstance(kind, str) and MEDIUM.search(kind.lower()) is not None)
        return any(
            _names_url(item, name.lower(), is_media or MEDIUM.search(name.lower()) is not None)
            for name, item in value.items()
        )
    return False


def _is_reference(field: str, value: str) -> bool:
    """Return whether a string is a URL, or is in a field for URLs, where engines also read a path."""
    text = value.lstrip(SKIPPED_AT_START).replace("\t", "").replace("\n", "").replace("\r", "")
    if field.endswith("url"):
        return text != "" and not text.lower().startswith("data:")
    return SCHEME.match(text) is not None
