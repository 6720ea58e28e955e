"""How the streams of each endpoint end, and how one that broke off is ended for the client."""

import json
import re
from typing import Protocol

from serving.http.errors import ApiError

# A JSON string holds no raw newline, so these can only be the events themselves.
DONE = re.compile(rb"(?:^|\n)(data: ?\[DONE\])")
# The event that tells the tokens of a chat or a completion is the only one without a choice.
USAGE = re.compile(rb'^data: ?\{[^\n]*"choices": ?\[\][^\n]*\n\n?', re.MULTILINE)
ERROR = re.compile(rb'(?:^|\n)data: ?\{"error"')
RESPONSE_ERROR = re.compile(rb'(?:^|\n)(?:event: ?error\r?\n|data: ?\{"error")')
RESPONSE_DONE = re.compile(rb"(?:^|\n)event: ?response\.(completed|incomplete|failed)\r?\n(data:)?")
SEQUENCE_NUMBER = re.compile(rb'"sequence_number": ?(\d+)')


class LineBuffer:
    """Cuts what comes after its last newline, and keeps the rest; a line may come in very many reads."""

    def __init__(self) -> None:
        self.rest: list[bytes] = []

    def take(self, chunk: bytes) -> bytes:
        """The lines that are whole now."""
        end = chunk.rfind(b"\n") + 1
        if end == len(chunk) and not self.rest:
            return chunk
        rest = chunk[end:]
        lines = b"".join([*self.rest, chunk[:end]]) if end else b""
        if end:
            self.rest.clear()
        if rest:
            self.rest.append(rest)
        return lines


class StreamEnd(Protocol):
    """Looks at the lines of a stream as they come.

    `done` once the stream has come to its end, `failed` once the engine told of an error. `usage` is the
    event that told its tokens, if that did not pass.
    """

    done: bool
    failed: bool
    usage: bytes

    def look(self, lines: bytes) -> bytes:
        """Those of the lines that may pass."""

    def broken(self, error: ApiError, last: bytes) -> bytes:
        """The event that ends a stream which broke off after these lines."""


def stream_end_for(path: str, drops_usage: bool) -> StreamEnd:
    """How a stream of this path ends; `drops_usage` where only the gateway asked for its tokens."""
    return LastEventEnd() if path == "/v1/responses" else DoneMarkerEnd(drops_usage)


class DoneMarkerEnd:
    """Chats and completions end with `data: [DONE]`.

    vLLM sends it after an error too, where a client that looks for it alone takes half an answer for all.
    """

    done = failed = False
    usage = b""

    def __init__(self, drops_usage: bool) -> None:
        self.drops_usage = drops_usage

    def look(self, lines: bytes) -> bytes:
        if self.drops_usage and (b'"choices":[]' in lines or b'"choices": []' in lines):
            lines = self._drop_usage(lines)
        if b'"error"' in lines and ERROR.search(lines):
            self.failed = True
        if b"[DONE]" in lines and (mark := DONE.search(lines)):
            if self.failed:
                return lines[: mark.start(1)]
            self.done = True
        return lines

    def _drop_usage(self, lines: bytes) -> bytes:
        told = USAGE.search(lines)
        if told is None or b'"usage"' not in told[0]:
            return lines
        self.usage = told[0]
        return lines[: told.start()] + lines[told.end() :]

    def broken(self, error: ApiError, last: bytes) -> bytes:
        # The empty line before the event ends one that was cut short.
        return b"" if self.failed else b"\ndata: " + error.body() + b"\n\n"


class LastEventEnd:
    """Responses end with an event that holds all of the answer, its name on the line before its data."""

    done = failed = named = False
    usage = b""

    def look(self, lines: bytes) -> bytes:
        if self.named and lines.startswith(b"data:"):
            self.done = True
        if end := RESPONSE_DONE.search(lines):
            self.named = True
            self.done = end[2] is not None
            self.failed = end[1] == b"failed"
        elif RESPONSE_ERROR.search(lines):
            self.failed = True
        return lines

    def broken(self, error: ApiError, last: bytes) -> bytes:
        if self.failed:
            return b""
        numbers = SEQUENCE_NUMBER.findall(last)
        told = {
            "type": "error",
            "sequence_number": int(numbers[-1]) + 1 if numbers else 0,
            "code": error.code,
            "message": error.message,
            "param": error.param,
            # Where OpenAI's SDK looks for what to raise, whatever the endpoint.
            **json.loads(error.body()),
        }
        return b"\nevent: error\ndata: " + json.dumps(told, ensure_ascii=False).encode() + b"\n\n"
