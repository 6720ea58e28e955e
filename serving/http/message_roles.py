"""The roles of a chat's messages: an engine may render any, and the model has never seen most of them."""

import msgspec

from serving.http.errors import InvalidRequest

CHATS_PATH = "/v1/chat/completions"
# Those of rows of training data, as on our own engines.
ROLES = ("system", "developer", "user", "assistant", "tool")
_NAMES = frozenset(f'"{role}"'.encode() for role in ROLES)
_ASSISTANT = b'"assistant"'
_NULL = b"null"


class _Message(msgspec.Struct):
    role: msgspec.Raw = msgspec.Raw(b"")
    content: msgspec.Raw = msgspec.Raw(_NULL)


_decode = msgspec.json.Decoder(list[_Message]).decode


def check_messages(path: str, fields: dict[str, msgspec.Raw]) -> None:
    """Raise InvalidRequest for an unknown role, and for a message without content that must have one.

    Messages that are no objects are the engine's to refuse.
    """
    if path != CHATS_PATH or "messages" not in fields:
        return
    try:
        messages = _decode(fields["messages"])
    except msgspec.ValidationError:
        return
    for message in messages:
        role = bytes(message.role)
        if role not in _NAMES:
            role = _normalize(role)
        if role != _ASSISTANT and bytes(message.content) == _NULL:
            raise InvalidRequest(
                f"A message with the role {role.decode()} has no 'content', which must be a text or a list "
                "of parts.",
                "messages",
            )


def _normalize(role: bytes) -> bytes:
    """Return a role without escapes; raise InvalidRequest for an unknown one."""
    name = msgspec.json.decode(role) if role else None
    if name in ROLES:
        return f'"{name}"'.encode()
    raise InvalidRequest(
        f"'messages' contains a message with the role {name!r}. Use 'system', 'developer', 'user', "
        "'assistant' or 'tool'.",
        "messages",
    )
