"""The part of an endpoint that makes its POST repeatable, and the middleware that sees its response sent.

    @router.post("/things")
    def create_thing(body: ThingCreate, creation: Creation) -> ThingObject:
        thing_id = creation.once(lambda record: service.create_thing(body, record))
        return load_view(thing_id)

`service.create_thing` calls `record(session, thing.id)` in the transaction that creates the thing, and
returns the id. A repetition creates nothing, and gets the id of the earlier thing.
"""

import hashlib
from collections.abc import Callable
from dataclasses import replace
from typing import Annotated

from fastapi import Depends, Header, Request
from pydantic import BaseModel
from sqlmodel import Session
from starlette.concurrency import run_in_threadpool
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.http.auth import CallerDependency
from app.idempotency import service
from app.idempotency.service import CreationRequest, EarlierCreation
from app.scheduling.incidents import Incident
from app.storage.database import DATABASE_UNAVAILABLE

_RECORD_ID = "creation_record_id"
_INCIDENT = Incident("recording that responses were delivered")

Record = Callable[[Session, str], None]
IdempotencyKeyHeader = Annotated[
    str | None,
    Header(
        min_length=1,
        max_length=255,
        description="A key of your choice. A second request with the same key and body creates nothing, and "
        "returns what the first one has created, for 24 hours.",
    ),
]
RetryCount = Annotated[
    int,
    Header(
        ge=0,
        le=1_000_000,
        description="Number of this repetition, which OpenAI's clients count by themselves. A repetition "
        "returns what an equal request has created whose response did not arrive.",
    ),
]


def ignore_creation(session: Session, object_id: str) -> None:
    """Record nothing: the creation is not part of a request that a client may repeat."""


class RepeatableRequest:
    """A request that may be the repetition of one that has created something."""

    def __init__(self, http_request: Request, request: CreationRequest) -> None:
        self._http_request = http_request
        self._request = request

    def once(self, create: Callable[[Record], str]) -> str:
        """Call `create`, unless the request is a repetition; return the id of what it or the first created.

        `create` must call its argument in its transaction, and let what that raises roll it back. It runs in
        a thread, without an open session. Raises CreationKeyReused, CreationSuperseded and its own errors.
        """
        try:
            service.check_repetition(self._request)
            return create(self._record)
        except EarlierCreation as earlier:
            self._set_record_id(earlier.record_id)
            return earlier.object_id

    def _record(self, session: Session, object_id: str) -> None:
        self._set_record_id(service.record_creation(session, self._request, object_id))

    def _set_record_id(self, record_id: str) -> None:
        setattr(self._http_request.state, _RECORD_ID, record_id)


RepeatableUpload = Callable[[str], RepeatableRequest]
"""What makes a repeatable request of the hash of a form, whose encoding differs at each repetition."""


async def get_repeatable_upload(
    request: Request,
    caller: CallerDependency,
    idempotency_key: IdempotencyKeyHeader = None,
    x_stainless_retry_count: RetryCount = 0,
) -> RepeatableUpload:
    """Return the request as it may be repeated, before its body is read."""
    arrived = CreationRequest(
        caller=caller.key_id,
        route=f"{request.method} {request.url.path}",
        body_sha256="",
        idempotency_key=idempotency_key,
        retry_count=x_stainless_retry_count,
        # The arrival, not the start of the work: requests wait for a thread.
        started_at=await run_in_threadpool(service.read_clock),
    )
    return lambda sha256: RepeatableRequest(request, replace(arrived, body_sha256=sha256))


UploadCreation = Annotated[RepeatableUpload, Depends(get_repeatable_upload)]


async def get_repeatable_request(request: Request, upload: UploadCreation) -> RepeatableRequest:
    """Return the request as it may be repeated; its body and its query are compared byte by byte."""
    content = hashlib.sha256(await request.body())
    content.update(request.scope["query_string"])
    return upload(content.hexdigest())


def repeatable_form(request: Request, caller: str, key: str, body: BaseModel) -> RepeatableRequest:
    """Return the request of a form of a page, whose `key` is the same each time that the form is sent.

    With other values it is another request, as a person changes them and sends the form again.
    """
    sha256 = hashlib.sha256(body.model_dump_json().encode()).hexdigest()
    arrived = CreationRequest(
        caller=caller,
        route=f"{request.method} {request.url.path}",
        body_sha256=sha256,
        idempotency_key=f"page-{key}-{sha256}" if key else None,
        retry_count=0,
        started_at=service.read_clock(),
    )
    return RepeatableRequest(request, arrived)


Creation = Annotated[RepeatableRequest, Depends(get_repeatable_request)]


class CreationMiddleware:
    """A middleware that records whether the response to a creation reached the client.

    A client that is still connected when the last byte is sent counts as reached. A process that is killed
    before records nothing, and a repetition then finds the creation.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "POST":
            await self.app(scope, receive, send)
            return
        state = scope.setdefault("state", {})
        is_connected = False

        async def send_and_check(message: Message) -> None:
            nonlocal is_connected
            is_last = message["type"] == "http.response.body" and not message.get("more_body", False)
            if is_last and _RECORD_ID in state:
                is_connected = not await Request(scope, receive).is_disconnected()
            await send(message)

        await self.app(scope, receive, send_and_check)
        if (record_id := state.get(_RECORD_ID)) is not None:
            await run_in_threadpool(_record_delivery, record_id, is_connected)


def _record_delivery(record_id: str, is_connected: bool) -> None:
    try:
        if is_connected:
            service.mark_delivered(record_id)
        else:
            service.release(record_id)
    except DATABASE_UNAVAILABLE as error:
        # The hold on the creation ends by itself.
        _INCIDENT.record(error)
    else:
        _INCIDENT.resolve()
