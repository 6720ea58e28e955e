"""The fields of an answer that the gateway sets itself: its id, and what it reports of its storage."""

import re
from dataclasses import dataclass

import msgspec

from serving.gateway.request_body import Fields

RESPONSES_PATH = "/v1/responses"
# Inside a JSON string quotes are escaped and there is no newline, so both patterns match keys of events only.
RESPONSE_EVENT = re.compile(rb'^data: ?(\{[^\n]*"response": ?\{[^\n]*)$', re.MULTILINE)
FIRST_EVENT = re.compile(rb"^data: ?(\{[^\n]*)$", re.MULTILINE)

_decode_fields = msgspec.json.Decoder(Fields).decode
_decode = msgspec.json.Decoder().decode
_encode = msgspec.json.Encoder().encode


@dataclass(slots=True)
class AnswerFields:
    """The values to set. Without an id, that of the engine stays."""

    path: str
    id: str | None
    stored: bool
    previous_response_id: str | None
    _replacements: tuple[tuple[bytes, bytes], ...] | None = None

    def set_in_object(self, content: bytes) -> bytes:
        """Return a plain answer with the values; raises ValueError for one that is not a JSON object."""
        return _encode(self._set(_decode_fields(content)))

    def set_in_lines(self, lines: bytes) -> bytes:
        """Return lines of a stream with the values; raises ValueError for an event that is not JSON."""
        if self.path == RESPONSES_PATH:
            return RESPONSE_EVENT.sub(self._set_in_event, lines) if b'"response":' in lines else lines
        if self.id is not None and self._replacements is None:
            self._replacements = self._find_id(lines)
        for old, new in self._replacements or ():
            lines = lines.replace(old, new)
        return lines

    def _set(self, answer: Fields) -> Fields:
        if self.id is not None:
            answer["id"] = msgspec.Raw(_encode(self.id))
        if self.path == RESPONSES_PATH:
            answer["store"] = msgspec.Raw(_encode(self.stored))
            answer["previous_response_id"] = msgspec.Raw(_encode(self.previous_response_id))
            # The token counts are read from the end of an answer.
            if "usage" in answer:
                answer["usage"] = answer.pop("usage")
        return answer

    def _set_in_event(self, found: re.Match[bytes]) -> bytes:
        event = _decode_fields(found[1])
        event["response"] = msgspec.Raw(_encode(self._set(_decode_fields(event["response"]))))
        return b"data: " + _encode(event)

    def _find_id(self, lines: bytes) -> tuple[tuple[bytes, bytes], ...] | None:
        """Return the bytes to replace in each chunk, given the first; an engine formats JSON in one way."""
        event = FIRST_EVENT.search(lines)
        if event is None:
            return None
        fields = _decode_fields(event[1])
        if "id" not in fields:
            return ()
        old, new = bytes(fields["id"]), _encode(self.id)
        return tuple((b'"id":%b%b' % (gap, old), b'"id":%b' % new) for gap in (b"", b" "))


def end_position(path: str, lines: bytes) -> int:
    """Return where the last event of a stream begins in the lines that complete it."""
    marker = b"event: response." if path == RESPONSES_PATH else b"data: [DONE]"
    return max(lines.rfind(marker), 0)


def join_input(items: "list[bytes]", own: msgspec.Raw) -> msgspec.Raw:
    """Return the input that continues a conversation: a text, or a list of items; raises ValueError."""
    first = memoryview(own)[:1].tobytes()
    if first == b"[":
        added = [bytes(item) for item in msgspec.json.decode(own, type=list[msgspec.Raw])]
    elif first == b'"':
        added = [b'{"type":"message","role":"user","content":%b}' % bytes(own)]
    else:
        raise ValueError("'input' must be a text or a list of items.")
    return msgspec.Raw(b"[%b]" % b",".join([*items, *added]))
