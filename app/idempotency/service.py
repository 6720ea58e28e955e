"""Finding the creation that a repeated request means, and recording new ones.

A request with an `Idempotency-Key` means the creation with this key. OpenAI's clients send none; they repeat
a request whose response they have not received, and count the repetitions in a header. A repetition means an
equal creation whose response is not known to have arrived. Two clients may send equal requests at once, so:

- A response on its way holds its creation for a moment, in which no repetition of another client takes it.
- A repetition that takes a creation holds it in turn.
- A repetition that creates something excludes what an earlier request that still works would create.
"""

import time
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import ColumnElement, delete, func, insert, select, update
from sqlmodel import Session, col

from app.http.errors import Conflict, ServiceUnavailable
from app.storage.database import database_now, lock_name, read_session, transaction
from app.tables import CreationRecord
from trainers.runtime.error_codes import ErrorCode

# How long a key is kept.
KEY_SECONDS = 24 * 3600
# OpenAI's clients wait 10 minutes for a response, then repeat the request within seconds.
RETRY_SECONDS = 15 * 60
# For the rest of the request: serializing the response and sending it.
HOLD_SECONDS = 3.0
POLL_SECONDS = 0.1


@dataclass(frozen=True)
class CreationRequest:
    """A request that may create something, as far as it tells repetitions apart from new requests."""

    caller: str
    route: str
    body_sha256: str
    idempotency_key: str | None
    retry_count: int
    started_at: datetime

    @property
    def lock(self) -> str:
        """The name that orders the transactions of requests that may mean the same creation."""
        return f"creation {self.caller} {self.route} {self.idempotency_key or self.body_sha256}"


class CreationKeyReused(Conflict):
    """The idempotency key was used with another body."""

    code = ErrorCode.idempotency_key_reused


class CreationSuperseded(ServiceUnavailable):
    """The client has repeated the request while this one was working, and the repetition was first."""

    code = ErrorCode.creation_superseded


class EarlierCreation(Exception):
    """The request repeats one that has created something, which is the result of both."""

    def __init__(self, record: CreationRecord) -> None:
        super().__init__(record.id)
        self.record_id = record.id
        self.object_id = record.object_id


def read_clock() -> datetime:
    """Return the database's time."""
    with read_session() as session:
        return session.scalars(select(database_now())).one()


def check_repetition(request: CreationRequest) -> None:
    """Return if the request is to create something; wait while the response to an equal one is on its way.

    Raises EarlierCreation for a repetition, and CreationKeyReused.
    """
    if request.idempotency_key is None and not request.retry_count:
        return
    while True:
        with read_session() as session:
            found = _find(session, request)
            now = session.scalars(select(database_now())).one()
        if found is None:
            return
        if request.idempotency_key is not None:
            raise EarlierCreation(found)
        if found.held_until <= now and _take(found):
            raise EarlierCreation(found)
        # The hold ends by itself, or the response is delivered.
        time.sleep(POLL_SECONDS)


def record_creation(session: Session, request: CreationRequest, object_id: str) -> str:
    """Record what a request has created, in the same transaction; return the id of the record.

    Raises, so that the transaction is rolled back:
        EarlierCreation: An equal request with the same key was faster.
        CreationSuperseded: The client has repeated the request since, and that has created it.
        CreationKeyReused: The key was used with another body at the same time.
    """
    lock_name(session, request.lock)
    if request.idempotency_key is not None:
        if (found := _find(session, request)) is not None:
            raise EarlierCreation(found)
    # The request that it repeats may have committed since the check.
    elif request.retry_count and (found := _find(session, request, since=request.started_at)) is not None:
        raise EarlierCreation(found)
    elif _has_later_repetition(session, request):
        raise CreationSuperseded(
            "The client has sent this request again, and the repetition has created the object.",
            hint="Send the request again to create another one.",
        )
    # Bounds the table, and makes an old key new again.
    expired = delete(CreationRecord).where(col(CreationRecord.created_at) < database_now(-KEY_SECONDS))
    session.execute(expired.execution_options(synchronize_session=False))
    record = CreationRecord(
        caller=request.caller,
        route=request.route,
        idempotency_key=request.idempotency_key,
        body_sha256=request.body_sha256,
        retry_count=request.retry_count,
        object_id=object_id,
    )
    times = {"created_at": database_now(), "held_until": database_now(HOLD_SECONDS)}
    session.execute(insert(CreationRecord).values(record.model_dump(exclude=set(times)) | times))
    return record.id


def mark_delivered(record_id: str) -> None:
    """Record that the response to a creation has reached the client."""
    statement = update(CreationRecord).where(col(CreationRecord.id) == record_id)
    statement = statement.values(delivered_at=func.coalesce(CreationRecord.delivered_at, database_now()))
    with transaction() as session:
        session.execute(statement.execution_options(synchronize_session=False))


def release(record_id: str) -> None:
    """Record that the response to a creation did not reach a client: a repetition may take it at once."""
    statement = update(CreationRecord).where(col(CreationRecord.id) == record_id)
    with transaction() as session:
        session.execute(
            statement.values(held_until=database_now()).execution_options(synchronize_session=False)
        )


def _find(session: Session, request: CreationRequest, since: datetime | None = None) -> CreationRecord | None:
    """Return the creation that the request repeats, if it exists: of several, one that is not held."""
    statement = select(CreationRecord).where(*_same_route(request)).order_by(col(CreationRecord.held_until))
    if request.idempotency_key is not None:
        statement = statement.where(
            col(CreationRecord.idempotency_key) == request.idempotency_key,
            col(CreationRecord.created_at) > database_now(-KEY_SECONDS),
        )
        found = session.scalars(statement).one_or_none()
        if found is not None and found.body_sha256 != request.body_sha256:
            raise CreationKeyReused(
                f"Idempotency-Key {request.idempotency_key!r} was used with another body.",
                hint="Send a new key for a new object.",
            )
        return found
    statement = statement.where(
        col(CreationRecord.idempotency_key).is_(None),
        col(CreationRecord.body_sha256) == request.body_sha256,
        col(CreationRecord.retry_count) < request.retry_count,
        col(CreationRecord.delivered_at).is_(None),
        col(CreationRecord.created_at) > (since or database_now(-RETRY_SECONDS)),
    )
    return session.scalars(statement.limit(1)).one_or_none()


def _take(found: CreationRecord) -> bool:
    """Hold a creation for this request; return False if another request was faster."""
    statement = update(CreationRecord).where(
        col(CreationRecord.id) == found.id,
        col(CreationRecord.held_until) == found.held_until,
        col(CreationRecord.delivered_at).is_(None),
    )
    taken = statement.values(held_until=database_now(HOLD_SECONDS)).returning(col(CreationRecord.id))
    with transaction() as session:
        return session.scalar(taken.execution_options(synchronize_session=False)) is not None


def _has_later_repetition(session: Session, request: CreationRequest) -> bool:
    later = select(col(CreationRecord.id)).where(
        *_same_route(request),
        col(CreationRecord.body_sha256) == request.body_sha256,
        col(CreationRecord.retry_count) > request.retry_count,
        col(CreationRecord.created_at) > request.started_at,
    )
    return session.scalar(later.limit(1)) is not None


def _same_route(request: CreationRequest) -> list[ColumnElement[bool]]:
    return [
        col(CreationRecord.caller) == request.caller,
        col(CreationRecord.route) == request.route,
    ]
