"""The outbox: an event is inserted in the transaction that it reports, one delivery for each webhook.

So a killed process neither loses an event nor reports what was not committed. The ends of runs are collected
in the session and handled when it commits: the status of a job is derived from all of its runs, and two
transactions that end the last two runs of a job must not both overlook the other.
"""

from collections.abc import Sequence
from typing import Any

from sqlalchemy import event, insert, select
from sqlalchemy.orm import defer
from sqlmodel import Session, col

from app.jobs.graph.status import find_deciding_run
from app.settings import get_settings
from app.storage.database import database_now
from app.tables import EvalRun, FineTuningJob, Job, Run, RunStatus, Webhook, WebhookDelivery
from app.webhooks.event_types import WebhookEventType, make_payload, new_event_id

_ENDED_RUNS = "ended_runs"
# Objects that end with their job; each table has the columns `id` and `job_id`.
JOB_OBJECTS: dict[type[Any], dict[RunStatus, WebhookEventType]] = {
    FineTuningJob: {
        RunStatus.succeeded: WebhookEventType.fine_tuning_job_succeeded,
        RunStatus.failed: WebhookEventType.fine_tuning_job_failed,
        RunStatus.cancelled: WebhookEventType.fine_tuning_job_cancelled,
    },
    EvalRun: {
        RunStatus.succeeded: WebhookEventType.eval_run_succeeded,
        RunStatus.failed: WebhookEventType.eval_run_failed,
        RunStatus.cancelled: WebhookEventType.eval_run_canceled,
    },
}


def record_event(
    session: Session, event_type: WebhookEventType | str, object_id: str, **details: str
) -> None:
    """Insert a delivery of an event for each webhook that has subscribed to its type.

    Call it in the transaction that changes the object. Without webhooks it costs one SELECT. `details` are
    further ids in the event's `data`.
    """
    event_type = WebhookEventType(event_type)
    webhooks = [webhook for webhook in _list_enabled(session) if event_type in webhook.event_types]
    if not webhooks:
        return
    event_id = new_event_id()
    payload = make_payload(event_id, event_type, object_id, **details)
    deliveries = [
        WebhookDelivery(webhook_id=webhook.id, event_id=event_id, event_type=event_type, payload=payload)
        for webhook in webhooks
    ]
    # Due by the database's clock, by which senders claim.
    times = {
        "next_attempt_at": database_now(),
        "created_at": database_now(),
        "expires_at": database_now(get_settings().webhook_retry_seconds),
    }
    for delivery in deliveries:
        values = delivery.model_dump(exclude=set(times)) | times
        session.execute(insert(WebhookDelivery).values(values))


def note_run_end(session: Session, run: Run) -> None:
    """Record the events of a run's end, and of its job's if it was the last one, when the session commits."""
    session.info.setdefault(_ENDED_RUNS, {})[run.id] = run.job_id


@event.listens_for(Session, "before_commit")
def _record_ends(session: Session) -> None:
    if session.in_nested_transaction() or not (ended := session.info.pop(_ENDED_RUNS, None)):
        return
    if not _list_enabled(session):
        return
    # In one order, and after all locks of runs: two transactions must not wait for each other.
    for job_id in sorted(set(ended.values())):
        _lock_job(session, job_id)
        runs = session.scalars(
            select(Run)
            .where(col(Run.job_id) == job_id)
            .order_by(col(Run.position))
            .execution_options(populate_existing=True)
        ).all()
        for run in runs:
            if run.id in ended and run.status.finished:
                record_event(session, f"run.{run.status}", run.id, job_id=job_id)
        if runs and (status := find_deciding_run(runs).status).finished:
            _record_job_end(session, job_id, status)


@event.listens_for(Session, "after_rollback")
def _discard_ends(session: Session) -> None:
    session.info.pop(_ENDED_RUNS, None)


def _record_job_end(session: Session, job_id: str, status: RunStatus) -> None:
    """Record the end of a job, and of the object of OpenAI's API that it carries out."""
    record_event(session, f"job.{status}", job_id)
    for table, event_types in JOB_OBJECTS.items():
        object_id = session.scalar(select(col(table.id)).where(col(table.job_id) == job_id))
        if object_id is not None:
            record_event(session, event_types[status], object_id)


def _lock_job(session: Session, job_id: str) -> None:
    """Let the transactions that end runs of a job commit one after the other; each then sees the last."""
    statement = select(col(Job.id)).where(col(Job.id) == job_id).with_for_update(key_share=True)
    session.execute(statement)


def _list_enabled(session: Session) -> Sequence[Webhook]:
    """Return the enabled webhooks without their secrets, which a worker on another host may not read."""
    secrets = (defer(column) for column in (Webhook.encrypted_secret, Webhook.encrypted_previous_secret))  # type: ignore[arg-type]
    statement = select(Webhook).where(col(Webhook.disabled_at).is_(None)).options(*secrets)
    return session.scalars(statement).all()
