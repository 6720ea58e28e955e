"""The requests to one model: sent side by side, repeated when its engine fails, and slower when it is busy.

The number of requests in progress follows the engine: a 429 or 503 halves it, and responses raise it again.
"""

import asyncio
import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO

import msgspec

from serving.batch.engine_table import EngineTable
from serving.batch.exchange import ConnectionFailed, EngineResponse, ResponseOversized, post
from serving.batch.files import EngineTarget
from serving.batch.input_file import BatchInput
from serving.batch.journal import Answer, Journal, failure_line, refusal_line, response_line
from serving.gateway.connection_pool import ConnectionPool
from serving.gateway.request_body import (
    RequestBody,
    RequestLimits,
    model_name_replacements,
    parse_request_body,
    replace_model_name,
)
from serving.http.errors import EngineDisconnected, InvalidRequest, ModelNotServed, UnknownUrl

BUSY_STATUSES = frozenset({429, 502, 503, 504})
NOT_FOUND, SERVER_ERROR = 404, 500
# An adapter that was unloaded a moment ago, or an error inside the engine.
RETRIED_STATUSES = frozenset({NOT_FOUND, SERVER_ERROR})
MAX_TRIES = 3
# A request during which the engine ended its connection so often is probably the cause.
MAX_DISCONNECTS = 5
# From the second on it is sent while no other suspect is, so that only the culprit reaches the maximum.
SUSPECT_DISCONNECTS = 2
POLL_SECONDS = 0.2
MAX_BACKOFF_SECONDS = 10.0
MAX_RETRY_AFTER_SECONDS = 60.0
LIMITS = RequestLimits()
MAX_QUOTED_CHARACTERS = 1000

_check_json = msgspec.json.Decoder(msgspec.Raw).decode


@dataclass
class _Failures:
    """What has happened to one request so far."""

    disconnects: int = 0
    refusals: int = 0
    tries: int = 0

    @property
    def backoff_seconds(self) -> float:
        count = self.disconnects + self.refusals + self.tries
        return min(MAX_BACKOFF_SECONDS, 0.25 * 2.0 ** min(count, 10))


class Lane:
    """The requests to one model."""

    def __init__(
        self,
        model: str,
        numbers: Iterator[int],
        lines: BatchInput,
        journal: Journal,
        engines: EngineTable,
        pool: ConnectionPool,
        batch_id: str,
        concurrency: int,
    ) -> None:
        self.model = model
        self.stopping = False
        self._numbers, self._lines, self._journal = numbers, lines, journal
        self._engines, self._pool, self._batch_id = engines, pool, batch_id
        self._concurrency = self._limit = float(concurrency)
        self._paused_until = 0.0
        self._exhausted = False
        self._suspects = asyncio.Lock()

    async def run(self) -> None:
        """Send the requests until all have an answer in the journal, or `stopping` is set."""
        with self._lines.path.open("rb") as file:
            async with asyncio.TaskGroup() as group:
                for index in range(int(self._concurrency)):
                    group.create_task(self._work(index, file))

    async def _work(self, index: int, file: BinaryIO) -> None:
        while not self.stopping and not self._exhausted:
            if index >= self._limit:
                await asyncio.sleep(POLL_SECONDS)
                continue
            number = next(self._numbers, None)
            if number is None:
                self._exhausted = True
                return
            answer = await self._find_answer(number, file)
            if answer is not None:
                await self._journal.add(number, answer)

    async def _find_answer(self, number: int, file: BinaryIO) -> Answer | None:
        """Return what becomes of a request; None if the lane stops first."""
        line = self._lines.read(file, number)
        line_id = make_line_id(self._batch_id, line.custom_id)
        try:
            body = _parse_body(self._lines.endpoint, line.body)
        except InvalidRequest as error:
            return refusal_line(line_id, line.custom_id, error)
        failures = _Failures()
        while not self.stopping:
            target = await self._wait_for_engine()
            if target is None:
                if self.stopping:
                    return None
                unknown = ModelNotServed(self.model, self._engines.control.known_models)
                return refusal_line(line_id, line.custom_id, unknown)
            try:
                response = await self._send(target, line_id, body, failures)
            except ConnectionFailed as failed:
                failures.disconnects += failed.sent
                failures.refusals += not failed.sent
                if failures.disconnects >= MAX_DISCONNECTS:
                    return refusal_line(line_id, line.custom_id, EngineDisconnected(self.model))
                await self._sleep(failures.backoff_seconds)
                continue
            except ResponseOversized:
                message = "The response is larger than a batch stores. Request fewer tokens or choices."
                return failure_line(line_id, line.custom_id, "response_too_large", message)
            if response.status in BUSY_STATUSES:
                self._slow_down(response)
                continue
            failures.tries += 1
            if self._is_final(response, failures.tries):
                self._limit = min(self._concurrency, self._limit + 1 / self._limit)
                return self._make_answer(line_id, line.custom_id, target, response)
            await self._sleep(failures.backoff_seconds)
        return None

    async def _send(
        self, target: EngineTarget, line_id: str, body: RequestBody, failures: _Failures
    ) -> EngineResponse:
        encoded = body.encode(target.model)
        path = self._lines.endpoint.value
        if failures.disconnects < SUSPECT_DISCONNECTS:
            return await post(self._pool, target.base_url, path, line_id, encoded)
        async with self._suspects:
            return await post(self._pool, target.base_url, path, line_id, encoded)

    async def _wait_for_engine(self) -> EngineTarget | None:
        """Return an engine of the model; None if there is none any more, or the lane stops."""
        while not self.stopping:
            delay = self._paused_until - self._pool.loop.time()
            if delay <= 0:
                target = self._engines.choose(self.model)
                if target is not None:
                    return target
                if self._engines.is_gone(self.model):
                    return None
            await asyncio.sleep(min(max(delay, 0.01), POLL_SECONDS))
        return None

    async def _sleep(self, seconds: float) -> None:
        until = self._pool.loop.time() + seconds
        while not self.stopping and (left := until - self._pool.loop.time()) > 0:
            await asyncio.sleep(min(left, POLL_SECONDS))

    def _slow_down(self, response: EngineResponse) -> None:
        """Send nothing during the time that the engine names, and then half as many requests at once."""
        now = self._pool.loop.time()
        if now >= self._paused_until:
            # The other requests in progress were refused for the same reason.
            self._limit = max(1.0, self._limit / 2)
        self._paused_until = max(self._paused_until, now + _read_retry_after(response.headers))

    def _is_final(self, response: EngineResponse, tries: int) -> bool:
        if tries >= MAX_TRIES:
            return True
        if response.status == NOT_FOUND:
            return not _is_error_object(response.body)
        return response.status not in RETRIED_STATUSES and (response.status >= 300 or _is_json(response.body))

    def _make_answer(
        self, line_id: str, custom_id: str, target: EngineTarget, response: EngineResponse
    ) -> Answer:
        if response.status == NOT_FOUND and not _is_error_object(response.body):
            message = f"The engine of {self.model!r} does not serve {self._lines.endpoint}."
            return refusal_line(line_id, custom_id, UnknownUrl(message))
        if not _is_json(response.body):
            quoted = response.body[:MAX_QUOTED_CHARACTERS].decode(errors="replace")
            message = f"The engine responded with status {response.status}, and not with JSON: {quoted}"
            return failure_line(line_id, custom_id, "invalid_response", message)
        replacements = model_name_replacements(target.model, self.model)
        content = replace_model_name(response.body, replacements)
        if b"\n" in content or b"\r" in content:
            content = msgspec.json.format(content, indent=-1)
        request_id = response.headers.get(b"x-request-id", b"").decode("latin-1") or line_id
        return response_line(line_id, custom_id, response.status, request_id, content)


def _parse_body(endpoint: str, content: bytes) -> RequestBody:
    """Parse and check the body of a request as a gateway does that stores nothing; raises InvalidRequest."""
    body = parse_request_body(endpoint, content, LIMITS)
    if body.previous_response_id is not None:
        raise InvalidRequest(
            "A batch continues no stored response: send the whole conversation in 'input'.",
            "previous_response_id",
        )
    return body


def make_line_id(batch_id: str, custom_id: str) -> str:
    """Return the id of a request, which is the same in each attempt."""
    content = f"{batch_id}\0{custom_id}".encode("utf-8", "surrogatepass")
    return f"batch_req_{hashlib.blake2b(content, digest_size=12).hexdigest()}"


def _read_retry_after(headers: dict[bytes, bytes]) -> float:
    for name, seconds_per_unit in ((b"retry-after-ms", 0.001), (b"retry-after", 1.0)):
        try:
            return min(MAX_RETRY_AFTER_SECONDS, max(0.0, float(headers[name]) * seconds_per_unit))
        except (KeyError, ValueError):
            continue
    return 1.0


def _is_json(content: bytes) -> bool:
    try:
        _check_json(content)
    except (ValueError, RecursionError):
        return False
    return True


def _is_error_object(content: bytes) -> bool:
    # A 404 without OpenAI's error object comes from the engine's web framework: an unknown path.
    return b'"error"' in content
