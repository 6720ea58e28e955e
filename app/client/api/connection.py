"""Requests to the service: retries, errors, pages and streams that continue after an interruption.

A request is repeated only if that cannot do its work twice: it reads, it has an idempotency key, the service
recognizes its content, or it never reached the service.
"""

import random
import secrets
import time
from collections.abc import AsyncGenerator, AsyncIterator, Collection, Mapping
from contextlib import aclosing
from typing import Any, TypeVar

import httpx2
from pydantic import BaseModel

from app.client.address import ServiceAddress
from app.client.api.errors import ClientError, ServerUnreachable, ServiceFailure, read_error
from app.client.api.transport import Transport

API = "/api/v1"
# Responses that a later attempt may not get: too many requests, and a service or proxy that is restarting.
RETRIED_STATUSES = {429, 502, 503, 504}
MAX_DELAY_SECONDS = 8.0
# The service sends a heartbeat every 15 seconds.
STREAM_SILENCE_SECONDS = 45.0
# What was connected once is probably restarting.
RECONNECT_SECONDS = 300.0
ADDRESS_HINT = "Start it with `tunesmith up`, or set TUNESMITH_URL to its address."
TView = TypeVar("TView", bound=BaseModel)


class Retries:
    """The delays between attempts, as long as the service is unreachable for less than the limit."""

    def __init__(self, limit_seconds: float) -> None:
        self.limit_seconds = limit_seconds
        self.reset()

    def reset(self) -> None:
        """Start again, after an attempt that succeeded."""
        self._n_attempts = 0
        self._started_at: float | None = None

    def next_delay(self, wanted_seconds: float | None = None) -> float | None:
        """Return the seconds until the next attempt, or None if the limit is reached."""
        now = time.monotonic()
        self._started_at = now if self._started_at is None else self._started_at
        # Full jitter above a tenth: clients that were interrupted together do not return together.
        delay = min(MAX_DELAY_SECONDS, 0.2 * 2**self._n_attempts) * random.uniform(0.5, 1)  # noqa: S311
        delay = max(delay, min(wanted_seconds or 0, self.limit_seconds))
        self._n_attempts += 1
        return delay if now + delay - self._started_at <= self.limit_seconds else None


class Connection:
    """A service as one client sees it."""

    def __init__(
        self, transport: Transport, address: ServiceAddress, *, timeout: float, retry_seconds: float
    ) -> None:
        self.transport = transport
        self.address = address
        self._timeout = timeout
        self._retry_seconds = retry_seconds
        self._headers = {"User-Agent": "tunesmith-client", "Accept-Encoding": "identity"}
        if address.key is not None:
            self._headers["Authorization"] = f"Bearer {address.key}"

    async def get(self, path: str, view: type[TView], **query: Any) -> TView:
        """Return the object at a path of the API."""
        return self.read_view(await self.request("GET", API + path, params=query), view)

    async def post(
        self,
        path: str,
        view: type[TView],
        body: Any = None,
        *,
        repeatable: bool = False,
        idempotency_key: str | None = None,
        query: Mapping[str, Any] | None = None,
    ) -> TView:
        """Return the object that a POST creates or changes; `repeatable` if a repetition changes nothing."""
        response = await self.request(
            "POST",
            API + path,
            params=query,
            json=body,
            repeatable=repeatable,
            idempotency_key=idempotency_key,
        )
        return self.read_view(response, view)

    async def delete(self, path: str) -> None:
        """Delete the object at a path of the API."""
        await self.request("DELETE", API + path)

    async def pages(self, path: str, view: type[TView], **query: Any) -> AsyncIterator[TView]:
        """Yield the items of all pages of a list."""
        after: str | int | None = None
        while True:
            response = await self.request("GET", API + path, params={**query, "after": after})
            page = read_json(response)
            for item in page["items"]:
                yield view.model_validate(item, context=self)
            if (after := page.get("next")) is None:
                return

    async def request(
        self,
        method: str,
        path: str,
        *,
        params: Mapping[str, Any] | None = None,
        json: Any = None,
        repeatable: bool = False,
        idempotency_key: str | None = None,
        timeout: float | None = None,
        patience: float | None = None,
        accepted: Collection[int] = (),
    ) -> httpx2.Response:
        """Return the response to a request that has succeeded; raises RequestRefused, ServerUnreachable.

        It is repeated for `patience` seconds, by default those of the client. `accepted` are the statuses of
        errors that are a response as well.
        """
        headers = {} if idempotency_key is None else {"Idempotency-Key": idempotency_key}
        repeatable = repeatable or idempotency_key is not None or method in ("GET", "DELETE", "PUT")
        retries, n_failures = Retries(patience or self._retry_seconds), 0
        while True:
            request = self.build(method, path, params=params, json=json, headers=headers, timeout=timeout)
            error: ClientError
            try:
                response = await self.transport.send(request)
            except httpx2.TransportError as failure:
                error, wanted = self._unreachable(failure), None
                may_repeat = repeatable or isinstance(failure, httpx2.ConnectError | httpx2.ConnectTimeout)
            else:
                if response.is_success or response.status_code in accepted:
                    return response
                # A repeated deletion finds nothing if the first one has worked.
                if n_failures and method == "DELETE" and response.status_code == 404:
                    return response
                error, wanted = read_error(response), read_retry_after(response)
                may_repeat = repeatable and response.status_code in RETRIED_STATUSES
            n_failures += 1
            delay = retries.next_delay(wanted) if may_repeat else None
            if delay is None:
                raise error
            await self.transport.sleep(delay)

    def build(
        self,
        method: str,
        path: str,
        *,
        params: Mapping[str, Any] | None = None,
        json: Any = None,
        files: Any = None,
        data: Any = None,
        headers: Mapping[str, str] | None = None,
        timeout: float | None = None,
    ) -> httpx2.Request:
        """Return a request with the key of this service."""
        query = {name: value for name, value in (params or {}).items() if value is not None}
        limits = httpx2.Timeout(timeout or self._timeout, connect=min(10.0, timeout or self._timeout))
        return httpx2.Request(
            method,
            self.address.url + path,
            params=query or None,
            json=json,
            files=files,
            data=data,
            headers={**self._headers, **(headers or {})},
            extensions={"timeout": limits.as_dict()},
        )

    async def open(self, request: httpx2.Request) -> httpx2.Response:
        """Return a response whose body is not read yet; the caller releases it. Raises RequestRefused."""
        try:
            response = await self.transport.send(request, stream=True)
        except httpx2.TransportError as failure:
            raise self._unreachable(failure) from failure
        if response.is_success:
            return response
        try:
            await self.transport.read(response)
            raise read_error(response)
        finally:
            await self.transport.release(response)

    async def events(self, path: str, after: str) -> AsyncGenerator[httpx2.ServerSentEvent, None]:
        """Yield the events of a stream after a position to its `end`, once each, over any interruption."""
        position, retries = after, Retries(self._retry_seconds)
        while True:
            headers = {"Last-Event-ID": position}
            request = self.build("GET", API + path, headers=headers, timeout=STREAM_SILENCE_SECONDS)
            failure: ClientError | None = None
            try:
                response = await self.open(request)
                opened_at = time.monotonic()
                retries = Retries(RECONNECT_SECONDS) if retries.limit_seconds < RECONNECT_SECONDS else retries
                try:
                    async with aclosing(self.transport.events(response)) as events:
                        async for event in events:
                            retries.reset()
                            position = event.id or position
                            yield event
                            if event.event == "end":
                                return
                finally:
                    await self.transport.release(response)
                    # A job that waits has no events, and a proxy may close every idle connection.
                    if time.monotonic() - opened_at > MAX_DELAY_SECONDS:
                        retries.reset()
            except httpx2.TransportError as error:
                failure = self._unreachable(error)
            except (ServerUnreachable, ServiceFailure) as error:
                failure = error
            # A service that shuts down closes its streams without an error, and without the event `end`.
            if (delay := retries.next_delay()) is None:
                raise failure or ServerUnreachable(
                    f"The stream {path} was closed repeatedly before its end.", ADDRESS_HINT
                )
            await self.transport.sleep(delay)

    def read_view(self, response: httpx2.Response, view: type[TView]) -> TView:
        """Return the object of a response."""
        return view.model_validate(read_json(response), context=self)

    def retries(self) -> Retries:
        """Return the delays for a sequence of attempts."""
        return Retries(self._retry_seconds)

    def _unreachable(self, failure: httpx2.TransportError) -> ServerUnreachable:
        reason = str(failure) or type(failure).__name__
        return ServerUnreachable(f"{self.address.url} does not respond: {reason}.", ADDRESS_HINT)


def new_idempotency_key() -> str:
    """Return a key that no other request has."""
    return f"client-{secrets.token_hex(16)}"


def read_json(response: httpx2.Response) -> Any:
    """Return the JSON of a response; raises ServiceFailure if another program has answered."""
    try:
        return response.json()
    except ValueError as error:
        raise ServiceFailure(
            f"{response.request.url} did not return JSON.",
            "Expected a response of Tunesmith: check the address.",
            status=response.status_code,
        ) from error


def read_retry_after(response: httpx2.Response) -> float | None:
    """Return the seconds after which the service wants the request again, if it says."""
    try:
        return max(0.0, float(response.headers["retry-after"]))
    except (KeyError, ValueError):
        return None
