"""Detection of how a stream ends, for each endpoint, and the error event for one that ends early."""

import json
import re
from typing import Protocol

from serving.gateway.request_context import find_usage
from serving.http.errors import ApiError

# A JSON string contains no raw newline, so these patterns match events only, never their text.
DONE = re.compile(rb"(?:^|\n)(data: ?\[DONE\])")
# The event with the usage of a chat or a completion has an empty list of choices.
USAGE = re.compile(rb'^data: ?\{[^\n]*"choices": ?\[\][^\n]*\n\n?', re.MULTILINE)
ERROR = re.compile(rb'(?:^|\n)data: ?\{"error"')
RESPONSE_ERROR = re.compile(rb'(?:^|\n)(?:event: ?error\r?\n|data: ?\{"error")')
RESPONSE_DONE = re.compile(rb"(?:^|\n)event: ?response\.(completed|incomplete|failed)\r?\n(data:)?")
SEQUENCE_NUMBER = re.compile(rb'"sequence_number": ?(\d+)')


class LineBuffer:
    """Splits chunks after their last newline and keeps the remainder; a line may arrive in many reads."""

    def __init__(self) -> None:
        self.remainder: list[bytes] = []

    def take_lines(self, chunk: bytes) -> bytes:
        """Add a chunk and return the lines that are complete."""
        end = chunk.rfind(b"\n") + 1
        if end == len(chunk) and not self.remainder:
            return chunk
        remainder = chunk[end:]
        lines = b"".join([*self.remainder, chunk[:end]]) if end else b""
        if end:
            self.remainder.clear()
        if remainder:
            self.remainder.append(remainder)
        return lines


class StreamEnd(Protocol):
    """Inspects the lines of a stream as they arrive.

    `done` is set once the stream is complete, and `failed` once the engine has sent an error. `usage` is the
    usage event, if it was removed from the stream.
    """

    done: bool
    failed: bool
    usage: bytes

    def inspect(self, lines: bytes) -> bytes:
        """Return the lines that the client receives."""

    def error_event(self, error: ApiError, last: bytes) -> bytes:
        """Return the event that ends a stream which broke after the lines `last`."""


def stream_end_for(path: str, remove_usage: bool) -> StreamEnd:
    """Return the detector for a path; `remove_usage` where only the gateway requested the usage event."""
    return LastEventEnd() if path == "/v1/responses" else DoneMarkerEnd(remove_usage)


class DoneMarkerEnd:
    """Chats and completions end with `data: [DONE]`.

    vLLM sends the marker after an error, too. A client that looks for the marker only would take half a
    completion for a complete one, so it is removed there.
    """

    done = failed = False
    usage = b""

    def __init__(self, remove_usage: bool) -> None:
        self.remove_usage = remove_usage

    def inspect(self, lines: bytes) -> bytes:
        if self.remove_usage and (b'"choices":[]' in lines or b'"choices": []' in lines):
            lines = self._remove_usage(lines)
        if b'"error"' in lines and ERROR.search(lines):
            self.failed = True
        if b"[DONE]" in lines and (marker := DONE.search(lines)):
            if self.failed:
                return lines[: marker.start(1)]
            self.done = True
        return lines

    def _remove_usage(self, lines: bytes) -> bytes:
        # Others may have neither choices nor usage, such as the results of a filter.
        for event in USAGE.findall(lines):
            if find_usage(event) >= 0:
                self.usage = event
                lines = lines.replace(event, b"", 1)
        return lines

    def error_event(self, error: ApiError, last: bytes) -> bytes:
        # The empty line before the event ends one that was cut short.
        return b"" if self.failed else b"\ndata: " + error.body() + b"\n\n"


class LastEventEnd:
    """Responses end with an event that contains the whole response, its name on the line before its data."""

    done = failed = name_seen = False
    usage = b""

    def inspect(self, lines: bytes) -> bytes:
        if self.name_seen and lines.startswith(b"data:"):
            self.done = True
        if end := RESPONSE_DONE.search(lines):
            self.name_seen = True
            self.done = end[2] is not None
            self.failed = end[1] == b"failed"
        elif RESPONSE_ERROR.search(lines):
            self.failed = True
        return lines

    def error_event(self, error: ApiError, last: bytes) -> bytes:
        if self.failed:
            return b""
        numbers = SEQUENCE_NUMBER.findall(last)
        event = {
            "type": "error",
            "sequence_number": int(numbers[-1]) + 1 if numbers else 0,
            "code": error.code,
            "message": error.message,
            "param": error.param,
            # OpenAI's SDK raises the `error` object of an event, on every endpoint.
            **json.loads(error.body()),
        }
        return b"\nevent: error\ndata: " + json.dumps(event, ensure_ascii=False).encode() + b"\n\n"
