"""The garbage collector. It runs in every API process and every worker, without a leader.

A lease in the database lets one of them at a time collect. Nothing depends on it: each step may run twice,
and can be interrupted at any point. What a collection leaves, the next one finds again.
"""

import json
import logging
import math
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime

from sqlalchemy import ColumnElement, or_, update
from sqlalchemy.exc import IntegrityError
from sqlmodel import col

from app.retention import answers, checkpoints, events, files, garbage, host_files, open_uploads, records
from app.retention.report import CollectionReport, Removal, RemovalCounts, count_stored
from app.scheduling.periodic import PeriodicThread, repeat
from app.settings import Settings
from app.storage.artifacts import ArtifactStore
from app.storage.database import database_now, read_session, transaction
from app.storage.inventory import KEY_PARTS, list_artifacts
from app.storage.opening import get_store
from app.tables import STORAGE_STATE_ID, StorageState
from app.tables.base import new_id

# The lease of a killed process ends after this time; a thread of a live one renews it.
LEASE_SECONDS = 60.0
HEARTBEAT_SECONDS = 15.0
MAX_TICK_SECONDS = 60.0
# A collection on a host reads the size of every copy in its cache.
MAX_HOST_SECONDS = 600.0
JITTER = 0.2
STOP_SECONDS = 5.0
INSTALLATION_KEY = "installation.json"
FOREIGN_HINT = (
    "Check TUNESMITH_DATABASE_URL and TUNESMITH_ARTIFACTS_URL. If the store's contents are no longer needed, "
    f"empty it, {INSTALLATION_KEY} included."
)

logger = logging.getLogger(__name__)


class CollectionInterrupted(Exception):
    """The collection must stop: the process stops, or another one holds the lease."""


class ForeignStore(Exception):
    """The artifact store belongs to another installation, whose artifacts no row here names."""


class StorageLease:
    """The lease on the storage state that this process holds."""

    def __init__(self, holder: str, is_stopping: Callable[[], bool] = lambda: False) -> None:
        self.holder = holder
        self._is_stopping = is_stopping
        self._renewed_at = time.monotonic()

    def renew(self) -> None:
        """Renew the lease if it is due; raise CollectionInterrupted if it is lost or the process stops."""
        if self._is_stopping():
            raise CollectionInterrupted("the process stops")
        if time.monotonic() - self._renewed_at < HEARTBEAT_SECONDS:
            return
        self._renewed_at = time.monotonic()
        if not self.extend():
            raise CollectionInterrupted("another process holds the lease")

    def extend(self) -> bool:
        """Renew the lease; return whether this process still holds it."""
        return _update_state(col(StorageState.holder) == self.holder, lease_seconds=LEASE_SECONDS)


@contextmanager
def hold_storage_lease(
    min_age_seconds: float = 0, is_stopping: Callable[[], bool] = lambda: False
) -> Iterator[StorageLease | None]:
    """Yield the lease, or None if another process holds it or a collection ended less than that ago.

    A thread renews it, so that the time of one file of any size does not end it.
    """
    lease = StorageLease(new_id("holder"), is_stopping)
    _ensure_state()
    is_free = or_(
        col(StorageState.lease_expires_at).is_(None), col(StorageState.lease_expires_at) < database_now()
    )
    is_due = or_(
        col(StorageState.collected_at).is_(None),
        col(StorageState.collected_at) < database_now(-min_age_seconds),
    )
    if not _update_state(is_free & is_due, lease_seconds=LEASE_SECONDS, holder=lease.holder):
        yield None
        return
    heartbeat = PeriodicThread("lease of the storage", lease.extend, HEARTBEAT_SECONDS)
    heartbeat.start()
    try:
        yield lease
    finally:
        heartbeat.stop()
        statement = update(StorageState).where(col(StorageState.holder) == lease.holder)
        with transaction() as session:
            session.execute(statement.values(holder=None, lease_expires_at=None))


def collect(
    settings: Settings,
    store: ArtifactStore,
    lease: StorageLease,
    on_removal: Callable[[Removal], None] = lambda removal: None,
    *,
    dry_run: bool = False,
) -> CollectionReport:
    """Apply the retention settings, delete garbage, and record the report.

    With `dry_run` nothing is changed, and the report contains what would be removed.

    Raises:
        ForeignStore: The store belongs to another installation.
        CollectionInterrupted: The process stops, or the lease was lost.
        OSError: The store cannot be read or written.
    """
    started_at, started = datetime.now(UTC), time.monotonic()
    check_installation(store, settings.gc_grace_seconds, claim=not dry_run)
    counts = RemovalCounts()
    for removal in _remove_all(settings, store, lease, dry_run=dry_run):
        counts.add(removal)
        on_removal(removal)
    artifacts = list_artifacts(store)
    unnamed = [artifact for artifact, _ in garbage.classify(artifacts, settings.gc_grace_seconds)]
    report = CollectionReport(
        started_at=started_at,
        seconds=round(time.monotonic() - started, 3),
        removed=counts.list_counts(),
        reclaimable_bytes=sum(artifact.size_bytes for artifact in unnamed),
        stored=count_stored(artifacts),
    )
    if not dry_run:
        statement = update(StorageState).where(col(StorageState.holder) == lease.holder)
        values = {"collected_at": database_now(), "report": report.model_dump(mode="json")}
        with transaction() as session:
            session.execute(statement.values(**values))
    return report


def check_installation(store: ArtifactStore, grace_seconds: float, *, claim: bool) -> None:
    """Check that the store belongs to this database, so that nothing of another installation is deleted.

    A store without a mark gets one, unless it has artifacts of which the database names none.
    """
    with read_session() as session:
        state = session.get(StorageState, STORAGE_STATE_ID)
        assert state is not None, "the lease is held"
    if store.exists(INSTALLATION_KEY):
        with store.open(INSTALLATION_KEY) as file:
            owner = json.load(file)["installation_id"]
        if owner != state.installation_id:
            raise ForeignStore(
                f"The artifact store belongs to the installation {owner}, but the database to "
                f"{state.installation_id}. Nothing is deleted. {FOREIGN_HINT}"
            )
        return
    artifacts = [artifact for artifact in list_artifacts(store) if artifact.kind in KEY_PARTS]
    if artifacts and len(list(garbage.classify(artifacts, grace_seconds))) == len(artifacts):
        raise ForeignStore(
            "The artifact store contains artifacts, but the database names none of them. Nothing is deleted. "
            f"{FOREIGN_HINT}"
        )
    if claim:
        mark = json.dumps({"installation_id": state.installation_id}).encode()
        store.publish_bytes(mark, INSTALLATION_KEY)


class Collector:
    """A thread that collects garbage of the store and of this host until it is stopped."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._stopping = threading.Event()
        self._host_collected_at = -math.inf
        seconds = min(MAX_TICK_SECONDS, settings.gc_seconds)
        self._thread = threading.Thread(
            target=repeat,
            args=("garbage collection", self._collect, seconds, self._stopping),
            kwargs={"max_seconds": max(seconds, settings.gc_seconds), "jitter": JITTER},
            name="collector",
            daemon=True,
        )

    def start(self) -> None:
        """Start the thread, unless the settings disable it."""
        if self._settings.gc_seconds:
            self._thread.start()

    def stop(self) -> None:
        """Stop the thread before its next batch; what it is deleting does not keep the process alive."""
        self._stopping.set()
        if self._thread.is_alive():
            self._thread.join(STOP_SECONDS)

    def _collect(self) -> None:
        """Collect on this host and in the store, each if that is due."""
        interval = min(MAX_HOST_SECONDS, self._settings.gc_seconds)
        if time.monotonic() - self._host_collected_at >= interval:
            self._host_collected_at = time.monotonic()
            host_files.collect_host_files(self._settings)
        if not self._settings.gc_store:
            return
        with (
            suppress(CollectionInterrupted),
            hold_storage_lease(self._settings.gc_seconds, self._stopping.is_set) as lease,
        ):
            if lease is not None:
                report = collect(self._settings, get_store(), lease)
                removed = {count.reason: count.model_dump(exclude={"reason"}) for count in report.removed}
                logger.info("collected garbage", extra={"removed": removed, "seconds": report.seconds})


def _remove_all(
    settings: Settings, store: ArtifactStore, lease: StorageLease, *, dry_run: bool
) -> Iterator[Removal]:
    yield from records.delete_records(settings, dry_run=dry_run)
    yield from files.delete_expired_files(lease.renew, dry_run=dry_run)
    yield from files.delete_upload_parts(lease.renew, dry_run=dry_run)
    yield from files.delete_old_uploads(dry_run=dry_run)
    yield from answers.delete_expired_answers(lease.renew, dry_run=dry_run)
    yield from events.thin_events(settings, lease.renew, dry_run=dry_run)
    yield from checkpoints.expire_checkpoints(store, settings, lease.renew, dry_run=dry_run)
    yield from checkpoints.drop_training_state(store, settings, lease.renew, dry_run=dry_run)
    artifacts = list_artifacts(store)
    yield from records.drop_run_files(store, settings, artifacts, dry_run=dry_run)
    yield from open_uploads.abort_uploads(store, settings.gc_grace_seconds, lease.renew, dry_run=dry_run)
    unnamed = garbage.classify(artifacts, settings.gc_grace_seconds)
    if dry_run:
        yield from (
            Removal(reason=reason, name=artifact.key, size_bytes=artifact.size_bytes)
            for artifact, reason in unnamed
            if reason is not None
        )
        return
    candidates = [artifact for artifact, reason in unnamed if reason is not None]
    yield from garbage.delete_garbage(store, candidates, settings.gc_grace_seconds, lease.renew)


def load_installation_id() -> str:
    """Return the id of this installation, which is made once and stored with its rows."""
    _ensure_state()
    with read_session() as session:
        return session.get_one(StorageState, STORAGE_STATE_ID).installation_id


def _ensure_state() -> None:
    try:
        with transaction() as session:
            if session.get(StorageState, STORAGE_STATE_ID) is None:
                session.add(StorageState())
    except IntegrityError:
        # Another process has inserted it at the same time.
        return


def _update_state(condition: ColumnElement[bool], lease_seconds: float, **values: object) -> bool:
    statement = update(StorageState).where(col(StorageState.id) == STORAGE_STATE_ID, condition)
    statement = statement.values(lease_expires_at=database_now(lease_seconds), **values)
    with transaction() as session:
        options = {"synchronize_session": False}
        return (
            session.scalar(statement.returning(col(StorageState.id)), execution_options=options) is not None
        )
