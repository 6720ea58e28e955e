"""Batches whose job is paused or cancelled meanwhile, on both databases, without a worker.

Goal: a batch that was cancelled or has expired ends, whatever happened to its run, and requests that act on
the batch and on its job at once do not block each other.
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
from sqlalchemy import text, update
from sqlmodel import col

from app.batches import lifecycle
from app.batches.service import cancel_batch
from app.jobs import actions
from app.scheduling.sweeper import sweep_once
from app.settings import Settings
from app.storage.database import database_now, read_session, transaction
from app.tables import Batch, BatchStatus, Run, RunStatus
from tests.integration.app.test_waking import until
from trainers.configs import BatchEndpoint, StageKind

MakeBatch = Callable[..., Batch]


@pytest.fixture
def make_batch(make_job: Callable[..., list[Run]]) -> MakeBatch:
    """Return a function that creates a batch whose run has a status."""

    def make(status: RunStatus, attempt: int = 0, **times: object) -> Batch:
        (run,) = make_job(status, stage=StageKind.batch, attempt=attempt)
        batch = Batch(
            endpoint=BatchEndpoint.chat_completions,
            input_file_id="file-a",
            completion_window="24h",
            job_id=run.job_id,
        )
        batch.run_id = run.id
        with transaction() as session:
            session.add(batch)
            session.flush()
            times.setdefault("expires_at", database_now(60))
            session.execute(update(Batch).where(col(Batch.id) == batch.id).values(**times))
        return batch

    return make


def read(batch: Batch) -> tuple[BatchStatus, RunStatus]:
    with read_session() as session:
        assert batch.run_id is not None
        return session.get_one(Batch, batch.id).status, session.get_one(Run, batch.run_id).status


@pytest.mark.parametrize("status", [RunStatus.queued, RunStatus.paused])
def test_a_batch_that_no_worker_has_started_ends_at_once(make_batch: MakeBatch, status: RunStatus) -> None:
    batch = make_batch(status)
    cancel_batch(batch.id)
    assert read(batch) == (BatchStatus.cancelled, RunStatus.cancelled)


def test_a_paused_batch_that_is_cancelled_is_queued_to_write_its_files(make_batch: MakeBatch) -> None:
    batch = make_batch(RunStatus.paused, attempt=1)
    cancel_batch(batch.id)
    assert read(batch) == (BatchStatus.cancelling, RunStatus.queued)


def test_a_batch_that_was_pausing_when_it_was_cancelled_is_queued_once_it_is_paused(
    make_batch: MakeBatch, settings: Settings
) -> None:
    batch = make_batch(RunStatus.pausing, attempt=1)
    cancel_batch(batch.id)
    with transaction() as session:
        session.execute(update(Run).values(status=RunStatus.paused))
    sweep_once(settings)
    assert read(batch) == (BatchStatus.cancelling, RunStatus.queued)


def test_a_paused_batch_expires(make_batch: MakeBatch, settings: Settings) -> None:
    past = {"expires_at": database_now(-1)}
    unstarted, started = make_batch(RunStatus.paused, **past), make_batch(RunStatus.paused, 1, **past)
    later = make_batch(RunStatus.paused, 1, expires_at=database_now(60))
    sweep_once(settings)
    assert read(unstarted) == (BatchStatus.expired, RunStatus.cancelled)
    assert read(started)[1] is RunStatus.queued
    assert read(later)[1] is RunStatus.paused


@pytest.mark.parametrize("database_url", ["postgres"], indirect=True)
@pytest.mark.parametrize("act", ["cancel", "expire"])
def test_a_batch_and_its_job_are_ended_at_once(make_batch: MakeBatch, act: str) -> None:
    batch = make_batch(RunStatus.queued, expires_at=database_now(-1))
    assert batch.job_id is not None

    def end_batch() -> None:
        if act == "cancel":
            cancel_batch(batch.id)
        else:
            with transaction() as session:
                lifecycle.end_waiting(session)

    with ThreadPoolExecutor() as pool:
        with transaction() as session:
            # As a worker or a person that ends the job: the run first.
            session.get(Run, batch.run_id, with_for_update=True)
            other = pool.submit(end_batch)
            until(lambda: other.done() or count_waiting() == 1)
            actions.cancel(session, batch.job_id)
        other.result()
    assert read(batch) == (BatchStatus.cancelled, RunStatus.cancelled)


def count_waiting() -> int:
    """Return the number of transactions that wait for a row."""
    with read_session() as session:
        waiting = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'"
        return session.scalar(text(waiting)) or 0
