"""The journal of a batch: each response as a line, in the form of OpenAI's output files.

Lines are written and fsynced in groups. A killed program loses the responses that were not written yet, and
asks for them again; a line that is written is never asked for again.
"""

import asyncio
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from serving.batch.files import BatchState, BatchTokens
from serving.batch.input_file import BatchInput
from serving.http.errors import ApiError
from trainers.runtime.run_dir import has_partial_last_line

# Responses that wait to be written; more make the senders wait.
MAX_WAITING_BYTES = 32 * 1024 * 1024
_encode = msgspec.json.Encoder().encode


class _Details(msgspec.Struct):
    cached_tokens: int | None = None
    reasoning_tokens: int | None = None


class _Usage(msgspec.Struct):
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    input_tokens: int | None = None
    output_tokens: int | None = None
    prompt_tokens_details: _Details | None = None
    completion_tokens_details: _Details | None = None
    input_tokens_details: _Details | None = None
    output_tokens_details: _Details | None = None


class _Body(msgspec.Struct):
    usage: _Usage | None = None


class _Response(msgspec.Struct):
    status_code: int
    body: _Body


class _LineUsage(msgspec.Struct):
    response: _Response | None = None


class _LineId(msgspec.Struct):
    custom_id: str


class _Status(msgspec.Struct):
    status_code: int


class _LineStatus(msgspec.Struct):
    response: _Status | None = None


_decode_id = msgspec.json.Decoder(_LineId).decode
_decode_usage = msgspec.json.Decoder(_LineUsage).decode
_decode_status = msgspec.json.Decoder(_LineStatus).decode


@dataclass(frozen=True)
class Answer:
    """What becomes of a request: a response, or the reason why there is none."""

    status: int | None
    content: bytes
    """The line of the journal."""


def response_line(line_id: str, custom_id: str, status: int, request_id: str, body: bytes) -> Answer:
    """Return the line of a response; the body must be JSON without line breaks."""
    head = {"id": line_id, "custom_id": custom_id}
    response = {"status_code": status, "request_id": request_id, "body": msgspec.Raw(body)}
    return Answer(status, _encode({**head, "response": response, "error": None}))


def refusal_line(line_id: str, custom_id: str, error: ApiError) -> Answer:
    """Return the line of a request that was refused before it reached an engine."""
    return response_line(
        line_id, custom_id, error.status, line_id, msgspec.json.format(error.body(), indent=-1)
    )


def failure_line(line_id: str, custom_id: str, code: str, message: str) -> Answer:
    """Return the line of a request that has no response."""
    head = {"id": line_id, "custom_id": custom_id, "response": None}
    return Answer(None, _encode({**head, "error": {"code": code, "message": message}}))


@dataclass
class _Group:
    """Lines that are written together."""

    numbers: list[int] = field(default_factory=list)
    parts: list[bytes] = field(default_factory=list)
    size: int = 0


class Journal:
    """The journal file, and what it contains."""

    def __init__(self, path: Path, lines: BatchInput) -> None:
        """Open the file, and continue after its last complete line."""
        self.path = path
        self.state = BatchState(total=len(lines))
        self.done = bytearray(len(lines))
        self._lines = lines
        _remove_partial_line(path)
        for content in read_lines(path):
            number = lines.find(_decode_id(content).custom_id)
            if number is not None and not self.done[number]:
                self._count(number, content)
        self._file = path.open("ab")
        self._waiting = _Group()
        self._added, self._written = asyncio.Event(), asyncio.Event()
        self._written.set()
        self._is_writing = False

    async def add(self, number: int, answer: Answer) -> None:
        """Append the line of a request, soon; wait while too much waits to be written."""
        while self._waiting.size > MAX_WAITING_BYTES:
            self._written.clear()
            await self._written.wait()
        self._waiting.numbers.append(number)
        self._waiting.parts.append(answer.content + b"\n")
        self._waiting.size += len(answer.content)
        self._added.set()

    async def write_groups(self) -> None:
        """Write lines until this is cancelled."""
        while True:
            await self._added.wait()
            self._added.clear()
            group, self._waiting = self._waiting, _Group()
            self._is_writing = True
            # All responses that arrive during one fsync share the next.
            writing = asyncio.ensure_future(asyncio.to_thread(self._write, group))
            try:
                await asyncio.shield(writing)
            except asyncio.CancelledError:
                await writing
                raise
            finally:
                if writing.done() and writing.exception() is None:
                    self._finish(group)

    async def flush(self) -> None:
        """Wait until all lines that were added are written."""
        while self._waiting.parts or self._is_writing:
            self._written.clear()
            await self._written.wait()

    def close(self) -> None:
        """Write the lines that wait; `write_groups` must have ended."""
        group, self._waiting = self._waiting, _Group()
        if group.parts:
            self._write(group)
            self._finish(group)
        self._file.close()

    def _write(self, group: _Group) -> None:
        self._file.write(b"".join(group.parts))
        self._file.flush()
        os.fsync(self._file.fileno())

    def _finish(self, group: _Group) -> None:
        for number, content in zip(group.numbers, group.parts, strict=True):
            self._count(number, content)
        self._is_writing = False
        self._written.set()

    def _count(self, number: int, content: bytes) -> None:
        self.done[number] = 1
        if not is_success(content):
            self.state.failed += 1
            return
        self.state.completed += 1
        try:
            response = _decode_usage(content).response
        except msgspec.ValidationError:
            # An engine reports its usage in another form.
            return
        if response is not None and response.body.usage is not None:
            _add_usage(self.state.usage, response.body.usage)


def read_lines(path: Path) -> Iterator[bytes]:
    """Yield the lines of a journal."""
    if path.exists():
        with path.open("rb") as file:
            yield from file


def is_success(content: bytes) -> bool:
    """Return whether a line of a journal is a response with status 2xx."""
    response = _decode_status(content).response
    return response is not None and 200 <= response.status_code < 300


def _add_usage(total: BatchTokens, usage: _Usage) -> None:
    total.input_tokens += max(0, usage.input_tokens or usage.prompt_tokens or 0)
    total.output_tokens += max(0, usage.output_tokens or usage.completion_tokens or 0)
    inputs = usage.input_tokens_details or usage.prompt_tokens_details or _Details()
    outputs = usage.output_tokens_details or usage.completion_tokens_details or _Details()
    total.cached_tokens += max(0, inputs.cached_tokens or 0)
    total.reasoning_tokens += max(0, outputs.reasoning_tokens or 0)


def _remove_partial_line(path: Path) -> None:
    """Remove the incomplete last line that a killed program leaves."""
    if not has_partial_last_line(path):
        return
    with path.open("r+b") as file:
        end = file.seek(0, os.SEEK_END)
        while end > 0:
            start = max(0, end - (1 << 20))
            file.seek(start)
            found = file.read(end - start).rfind(b"\n")
            if found >= 0:
                file.truncate(start + found + 1)
                return
            end = start
        file.truncate(0)
