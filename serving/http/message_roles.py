"""The roles of a chat's messages: an engine may render any, and the model has never seen most of them."""

import msgspec

from serving.http.errors import InvalidRequest

CHATS_PATH = "/v1/chat/completions"
# Those of rows of training data, as on our own engines.
ROLES = ("system", "developer", "user", "assistant", "tool")
_NAMES = frozenset(f'"{role}"'.encode() for role in ROLES)
_ASSISTANT = b'"assistant"'
_NULL = b"null"


def check_roles(path: str, messages: list[dict[str, msgspec.Raw]]) -> None:
    """Raise InvalidRequest for an unknown role, and for a message without content that must have one.

    Messages that are no objects are the engine's to refuse.
    """
    if path != CHATS_PATH or (len(messages) == 1 and messages[0].keys() == {""}):
        return
    for message in messages:
        role = bytes(message.get("role", b""))
        if role not in _NAMES:
            role = _normalize(role)
        if role != _ASSISTANT and memoryview(message.get("content", _NULL)) == _NULL:
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
