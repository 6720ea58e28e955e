"""A collection that crashes at any point leaves each artifact whole, or nothing of it.

Method: publish real artifacts with rows, repeat a collection that ends at its first, second, … write until
one completes, and verify the whole store afterwards.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path

import pytest
from sqlalchemy import event
from sqlmodel import Session, select

from app.jobs import actions
from app.settings import Settings
from app.storage.artifacts import ArtifactStore
from app.storage.database import transaction
from app.tables import (
    Checkpoint,
    Run,
    RunStatus,
    StorageState,
)
from tests.integration.app.stored_artifacts import (
    LONG_AGO,
    Make,
    add_checkpoint,
    add_log,
    finish,
    list_faults,
    make_old,
    publish,
    rows,
    run_collection,
    stored_keys,
)


class Crash(BaseException):
    """The end of the process at a certain write."""


class Countdown:
    """Raises Crash at the n-th write of the store or the database."""

    def __init__(self, n: int) -> None:
        self.n = n

    def step(self, *_: object) -> None:
        self.n -= 1
        if self.n == 0:
            raise Crash


class CrashingStore(ArtifactStore):
    """A store that can end before each of its writes, and in the middle of a deletion."""

    countdown: Countdown

    def _copy(self, source: str, destination: str) -> None:
        self.countdown.step()
        super()._copy(source, destination)

    def _write(self, content: bytes, destination: str) -> None:
        self.countdown.step()
        super()._write(content, destination)

    def delete(self, key: str) -> None:
        self.countdown.step()
        for path in sorted(Path(self._path(key)).rglob("*")):
            if path.is_file():
                path.unlink()
                self.countdown.step()
        super().delete(key)


@contextmanager
def crash_at(n: int, settings: Settings) -> Iterator[CrashingStore]:
    store = CrashingStore(settings.artifacts_url, settings.data_dir / "cache")
    store.countdown = Countdown(n)
    event.listen(Session, "before_commit", store.countdown.step)
    event.listen(Session, "after_commit", store.countdown.step)
    try:
        yield store
    finally:
        event.remove(Session, "before_commit", store.countdown.step)
        event.remove(Session, "after_commit", store.countdown.step)


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_a_crash_at_any_write_of_a_collection_leaves_every_named_artifact_whole(
    settings: Settings, make_job: Make, tmp_path: Path
) -> None:
    run_collection(settings)
    limited = settings.model_copy(update={"max_run_files_bytes": 50})
    for n in count(1):
        succeeded = finish(make_job, finished_at=LONG_AGO)
        weights = add_checkpoint(tmp_path, succeeded, n)
        add_log(tmp_path, succeeded)
        add_checkpoint(tmp_path, finish(make_job, RunStatus.failed, finished_at=LONG_AGO), n)
        publish(tmp_path / f"orphan{n}", f"models/model_orphan{n}", {"a": 5, "b": 5})
        make_old(settings)
        has_crashed = crash_collection(limited, n)
        assert [fault for fault in list_faults() if not fault.startswith("unknown")] == []
        run_collection(limited)
        (kept,) = rows(Checkpoint)
        assert (kept.artifact, kept.resumable) == (f"{weights.artifact}-weights", False)
        assert stored_keys() == {kept.artifact}
        if not has_crashed:
            break
        with transaction() as session:
            actions.delete(session, succeeded.job_id)
        run_collection(limited)
    assert n > 30


def crash_collection(settings: Settings, n: int) -> bool:
    """Collect up to the n-th write; return False if the collection has fewer."""
    with crash_at(n, settings) as store:
        try:
            run_collection(settings, store=store)
        except Crash:
            release_lease()
            return True
    return False


def release_lease() -> None:
    """Let the lease of a process that crashed end."""
    with transaction() as session:
        for state in session.exec(select(StorageState)).all():
            state.lease_expires_at = LONG_AGO


def test_a_crash_after_the_deletion_of_a_job_leaves_nothing_of_it(
    settings: Settings, make_job: Make, tmp_path: Path
) -> None:
    run_collection(settings)
    for n in (1, 2):
        run = finish(make_job)
        add_checkpoint(tmp_path, run, 5)
        with crash_at(n, settings), pytest.raises(Crash), transaction() as session:
            actions.delete(session, run.job_id)
        is_deleted = run.id not in {row.id for row in rows(Run)}
        assert is_deleted == (n == 2)
        assert {row.run_id for row in rows(Checkpoint)} == (set() if is_deleted else {run.id})
        assert [fault for fault in list_faults() if not fault.startswith("unknown")] == []
        with transaction() as session:
            if not is_deleted:
                actions.delete(session, run.job_id)
    run_collection(settings)
    assert stored_keys() == set()
