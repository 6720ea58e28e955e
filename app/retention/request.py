"""Collections that a person requests, of which the first one shows what the next would delete."""

from collections.abc import Callable
from contextlib import ExitStack
from datetime import UTC, datetime
from functools import partial

from sqlalchemy import update
from sqlmodel import Session, col

from app.http.errors import Conflict
from app.retention.collector import (
    LEASE_SECONDS,
    CollectionInterrupted,
    ForeignStore,
    StorageLease,
    collect,
    hold_storage_lease,
)
from app.retention.report import Removal, RequestedCollectionView
from app.settings import Settings
from app.storage.database import transaction
from app.storage.opening import get_store
from app.tables import STORAGE_STATE_ID, StorageState

MAX_SHOWN_REMOVALS = 100


class CollectionRunning(Conflict):
    """A process collects garbage or writes a backup."""


def start_collection(
    settings: Settings, *, dry_run: bool, is_stopping: Callable[[], bool]
) -> tuple[RequestedCollectionView, Callable[[], None]]:
    """Take the lease of the store, and return the request with the function that collects in the background.

    If the process ends before it has collected, the lease expires within a minute.

    Raises CollectionRunning.
    """
    with ExitStack() as starting:
        lease = starting.enter_context(hold_storage_lease(is_stopping=is_stopping))
        if lease is None:
            raise CollectionRunning(
                "Another process collects garbage or writes a backup, and only one can at a time.",
                hint="Repeat the request when `collecting` of GET /api/v1/storage is false. If that process "
                f"was killed, this takes at most {LEASE_SECONDS:.0f} seconds.",
            )
        request = RequestedCollectionView(dry_run=dry_run, started_at=datetime.now(UTC))
        _record(lease, request)
        holding = starting.pop_all()
    return request, partial(_collect, settings, holding, lease, request)


def load_request(session: Session) -> RequestedCollectionView | None:
    """Return the last collection that somebody has requested."""
    state = session.get(StorageState, STORAGE_STATE_ID)
    return RequestedCollectionView.model_validate(state.requested) if state and state.requested else None


def _collect(
    settings: Settings, holding: ExitStack, lease: StorageLease, request: RequestedCollectionView
) -> None:
    removals: list[Removal] = []

    def show(removal: Removal) -> None:
        if len(removals) < MAX_SHOWN_REMOVALS:
            removals.append(removal)

    with holding:
        try:
            request.report = collect(settings, get_store(), lease, show, dry_run=request.dry_run)
        except (ForeignStore, CollectionInterrupted) as error:
            request.error = str(error)
        except OSError as error:
            request.error = f"The artifact store cannot be read or written: {error}."
        request.removals, request.ended_at = removals, datetime.now(UTC)
        _record(lease, request)


def _record(lease: StorageLease, request: RequestedCollectionView) -> None:
    statement = update(StorageState).where(col(StorageState.holder) == lease.holder)
    with transaction() as session:
        session.execute(statement.values(requested=request.model_dump(mode="json")))
