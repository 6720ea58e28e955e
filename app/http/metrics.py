"""Prometheus metrics: counters of requests, and gauges that are read from SQL at the scrape."""

import importlib.metadata
import platform

from prometheus_client import REGISTRY, CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from sqlalchemy import exists, func, select
from sqlalchemy.orm import aliased
from sqlmodel import Session, col

from app.tables import Deployment, Job, Run, RunStatus

VERSION = importlib.metadata.version("tunesmith")

REQUEST_COUNT = Counter("tunesmith_api_requests", "Requests to the API.", ["method", "route", "status"])
REQUEST_SECONDS = Histogram(
    "tunesmith_api_request_seconds", "Duration of a request in seconds.", ["method", "route"]
)
_BUILD = Gauge("tunesmith_build_info", "Always 1; the labels are the versions.", ["version", "python"])
_BUILD.labels(VERSION, platform.python_version()).set(1)


def render_metrics(session: Session) -> bytes:
    """Return all metrics in Prometheus's text format."""
    return generate_latest(REGISTRY) + generate_latest(_collect_from_sql(session))


def _collect_from_sql(session: Session) -> CollectorRegistry:
    registry = CollectorRegistry()
    runs = Gauge("tunesmith_runs", "Runs by status and queue.", ["status", "queue"], registry=registry)
    by_status_and_queue = select(Run.status, Run.queue, func.count()).group_by(Run.status, Run.queue)  # type: ignore[call-overload]
    for status, queue, count in session.execute(by_status_and_queue):
        runs.labels(status, queue).set(count)
    jobs = Gauge("tunesmith_jobs", "Jobs by status.", ["status"], registry=registry)
    for job_status, count in _jobs_by_status(session).items():
        jobs.labels(job_status).set(count)
    deployments = Gauge("tunesmith_deployments", "Deployments by status.", ["status"], registry=registry)
    for deployment_status, count in session.execute(
        select(col(Deployment.status), func.count()).group_by(col(Deployment.status))
    ):
        deployments.labels(deployment_status).set(count)
    return registry


def _jobs_by_status(session: Session) -> dict[RunStatus, int]:
    """Count jobs by status: that of the first run that has not succeeded, or `succeeded`."""
    earlier = aliased(Run)
    follows_unfinished = exists().where(
        col(earlier.job_id) == col(Run.job_id),
        col(earlier.position) < col(Run.position),
        col(earlier.status) != RunStatus.succeeded,
    )
    unfinished = select(col(Run.status), func.count()).where(
        col(Run.status) != RunStatus.succeeded, ~follows_unfinished
    )
    counts = dict(session.execute(unfinished.group_by(col(Run.status))).all())
    total = session.scalar(select(func.count()).select_from(Job)) or 0
    return counts | {RunStatus.succeeded: total - sum(counts.values())}
