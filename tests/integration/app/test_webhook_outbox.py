"""Events of webhooks are part of the transaction that they report.

Goal: no event is lost, doubled or reported without its change, and without webhooks nothing is written.
Method: the life cycles on real databases; the deliveries in SQL are compared with what was committed.
"""

import json
from collections.abc import Callable
from threading import Barrier, Thread
from typing import Any

import pytest
from sqlalchemy import delete
from sqlmodel import col, select

from app.deployments import lifecycle as deployments
from app.jobs import actions
from app.runs import lifecycle
from app.settings import Settings
from app.storage.database import get_engine, read_session, transaction
from app.tables import (
    Deployment,
    DeploymentStatus,
    FineTuningJob,
    Run,
    RunNeed,
    RunStatus,
    Webhook,
    WebhookDelivery,
    Worker,
)
from app.webhooks.event_types import WebhookEventType
from app.webhooks.outbox import record_event
from trainers.configs import EngineKind, Queue

Make = Callable[..., list[Run]]


@pytest.fixture
def webhook(settings: Settings) -> Webhook:
    return make_webhook()


def make_webhook(*types: str) -> Webhook:
    values: dict[str, Any] = {"url": "https://example.com/", "encrypted_secret": "x", "secret_hint": "whsec_"}
    webhook = Webhook(name="test", event_types=list(types or WebhookEventType), **values)
    with transaction() as session:
        session.add(webhook)
    return webhook


def list_events(*prefixes: str) -> list[tuple[str, dict[str, str]]]:
    """Return the type and the data of each event, oldest first."""
    with read_session() as session:
        rows = session.scalars(select(WebhookDelivery).order_by(col(WebhookDelivery.id))).all()
    bodies = [json.loads(row.payload) for row in rows]
    return [(body["type"], body["data"]) for body in bodies if body["type"].startswith(prefixes or "")]


def test_the_end_of_the_last_run_ends_the_job(make_job: Make, webhook: Webhook) -> None:
    first, last = make_job(RunStatus.running, RunStatus.queued)
    with transaction() as session:
        lifecycle.move(session, first.id, RunStatus.succeeded)
    assert list_events() == [("run.succeeded", {"id": first.id, "job_id": first.job_id})]
    for status in (RunStatus.running, RunStatus.succeeded):
        with transaction() as session:
            lifecycle.move(session, last.id, status)
    assert list_events("job.") == [("job.succeeded", {"id": first.job_id})]


def test_a_failure_and_what_follows_from_it_are_one_transaction(make_job: Make, webhook: Webhook) -> None:
    first, last = make_job(RunStatus.running, RunStatus.queued)
    with transaction() as session:
        lifecycle.move(session, first.id, RunStatus.failed)
    expected = [("run.failed", first.id), ("run.cancelled", last.id), ("job.failed", first.job_id)]
    assert sorted((name, data["id"]) for name, data in list_events()) == sorted(expected)


def test_a_change_that_is_rolled_back_is_not_reported(make_job: Make, webhook: Webhook) -> None:
    (run,) = make_job(RunStatus.running)
    with pytest.raises(KeyError), transaction() as session:
        lifecycle.move(session, run.id, RunStatus.succeeded)
        raise KeyError
    with transaction() as session:
        session.add(Worker(name="w", host="h", pid=1, queues=[], stages=[]))
    assert list_events() == []


def test_two_transactions_that_end_the_last_two_runs_report_the_job_once(
    settings: Settings, make_job: Make, webhook: Webhook
) -> None:
    for _ in range(5):
        runs = make_independent(make_job)
        barrier = Barrier(2)

        def end(run: Run, barrier: Barrier = barrier) -> None:
            with transaction() as session:
                lifecycle.move(session, run.id, RunStatus.succeeded)
                # SQLite runs one writing transaction at a time.
                if get_engine().dialect.name == "postgresql":
                    barrier.wait(60)

        threads = [Thread(target=end, args=(run,)) for run in runs]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        ended = [data["id"] for _, data in list_events("job.")]
        assert ended.count(runs[0].job_id) == 1


def make_independent(make_job: Make) -> list[Run]:
    """Return two running runs of one job; neither needs the other."""
    runs = make_job(RunStatus.running, RunStatus.running)
    with transaction() as session:
        session.execute(delete(RunNeed).where(col(RunNeed.run_id) == runs[1].id))
    return runs


def test_cancelling_a_job_reports_it_once_all_runs_have_ended(make_job: Make, webhook: Webhook) -> None:
    running, queued = make_job(RunStatus.running, RunStatus.queued)
    with transaction() as session:
        actions.cancel(session, running.job_id)
    assert [name for name, _ in list_events()] == ["run.cancelled"]
    with transaction() as session:
        lifecycle.move(session, running.id, RunStatus.cancelled)
    assert list_events("job.") == [("job.cancelled", {"id": queued.job_id})]


def test_only_subscribed_webhooks_that_are_enabled_receive_an_event(settings: Settings) -> None:
    subscribed = make_webhook("batch.completed")
    make_webhook("batch.failed")
    disabled = make_webhook("batch.completed")
    with transaction() as session:
        session.get_one(Webhook, disabled.id).disabled_at = disabled.created_at
    with transaction() as session:
        record_event(session, WebhookEventType.batch_completed, "batch_1")
    with read_session() as session:
        (delivery,) = session.scalars(select(WebhookDelivery)).all()
    assert (delivery.webhook_id, delivery.status, delivery.attempt) == (subscribed.id, "pending", 0)
    assert (delivery.expires_at - delivery.next_attempt_at).total_seconds() == pytest.approx(259_200, abs=5)


def test_a_deployment_reports_that_it_is_ready_and_that_it_failed(
    settings: Settings, make_worker: Callable[..., Worker], webhook: Webhook
) -> None:
    worker = make_worker()
    values: dict[str, Any] = {"engine": EngineKind.hf, "queue": Queue.cpu, "base": "b"}
    deployment = Deployment(name="d", status=DeploymentStatus.queued, **values)
    with transaction() as session:
        session.add(deployment)
    with transaction() as session:
        claimed = deployments.claim(session, deployment.id, worker.id, 30)
        assert claimed is not None
        deployments.mark_ready(session, deployment.id, 1, "http://127.0.0.1:1", "m")
        deployments.end(session, deployment.id, 1, {"code": "engine_failed"})
    assert [name for name, _ in list_events()] == ["deployment.ready", "deployment.failed"]


def test_without_webhooks_nothing_is_written(make_job: Make) -> None:
    (run,) = make_job(RunStatus.running)
    with transaction() as session:
        lifecycle.move(session, run.id, RunStatus.succeeded)
    assert list_events() == []


def test_the_end_of_a_job_is_that_of_its_fine_tuning_job(make_job: Make, webhook: Webhook) -> None:
    (run,) = make_job(RunStatus.running)
    texts = dict.fromkeys(("model", "base", "base_name", "training_file", "explanation", "organization"), "x")
    values: dict[str, Any] = {"seed": 1, "method": {}, "engine": {}, "fine_tuned_model": "m", **texts}
    tuning = FineTuningJob(job_id=run.job_id, **values)
    with transaction() as session:
        session.add(tuning)
    with transaction() as session:
        lifecycle.move(session, run.id, RunStatus.failed)
    assert list_events("fine_tuning.") == [("fine_tuning.job.failed", {"id": tuning.id})]
