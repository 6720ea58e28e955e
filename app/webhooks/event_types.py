"""The types of events that webhooks can receive, and the body that is sent."""

import json
import time
from enum import StrEnum

from app.tables.base import new_id

# Shown by a test delivery in place of the id of an object.
SAMPLE_ID = "sample"


class WebhookEventType(StrEnum):
    """The type of an event: our own, and those of OpenAI's API with the same names.

    `response.*` is not among them: OpenAI sends these for background responses alone.
    """

    job_succeeded = "job.succeeded"
    job_failed = "job.failed"
    job_cancelled = "job.cancelled"
    run_succeeded = "run.succeeded"
    run_failed = "run.failed"
    run_cancelled = "run.cancelled"
    run_skipped = "run.skipped"
    deployment_ready = "deployment.ready"
    deployment_failed = "deployment.failed"
    host_ready = "host.ready"
    host_terminated = "host.terminated"
    host_failed = "host.failed"
    host_termination_overdue = "host.termination_overdue"

    fine_tuning_job_succeeded = "fine_tuning.job.succeeded"
    fine_tuning_job_failed = "fine_tuning.job.failed"
    fine_tuning_job_cancelled = "fine_tuning.job.cancelled"
    batch_completed = "batch.completed"
    batch_failed = "batch.failed"
    batch_cancelled = "batch.cancelled"
    batch_expired = "batch.expired"
    eval_run_succeeded = "eval.run.succeeded"
    eval_run_failed = "eval.run.failed"
    eval_run_canceled = "eval.run.canceled"


def make_payload(event_id: str, event_type: WebhookEventType, object_id: str, **details: str) -> str:
    """Return the body of an event: OpenAI's event object, whose `data` has the id of the object."""
    body = {
        "id": event_id,
        "object": "event",
        "type": event_type.value,
        "created_at": int(time.time()),
        "data": {"id": object_id, **details},
    }
    return json.dumps(body, ensure_ascii=False)


def new_event_id() -> str:
    """Return the id of a new event."""
    return new_id("evt")
