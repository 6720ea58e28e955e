"""Prometheus metrics: counters of requests, and gauges that are read from SQL at the scrape."""

import importlib.metadata
import platform
from collections.abc import Sequence

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.registry import Collector
from sqlalchemy import func, select
from sqlmodel import Session, col

from app.hosts.service import list_unfinished, read_now, sum_ended_spend
from app.hosts.settlement import is_out_of_reach
from app.hosts.spend import sum_spend
from app.http.worker_metrics import add_queue_metrics, add_worker_metrics
from app.jobs.graph.status import decides_unsuccessful
from app.settings import get_settings
from app.storage import usage
from app.tables import (
    Checkpoint,
    CloudState,
    Comparison,
    Dataset,
    Evaluation,
    Host,
    Job,
    Model,
    Run,
    RunStatus,
    current_status,
)

VERSION = importlib.metadata.version("tunesmith")

REQUEST_COUNT = Counter("tunesmith_api_requests", "Requests to the API.", ["method", "route", "status"])
REQUEST_SECONDS = Histogram(
    "tunesmith_api_request_seconds", "Duration of a request in seconds.", ["method", "route"]
)
_BUILD = Gauge("tunesmith_build_info", "Always 1; the labels are the versions.", ["version", "python"])
_BUILD.labels(VERSION, platform.python_version()).set(1)


def render_metrics(session: Session, counted: Collector) -> bytes:
    """Return in Prometheus's text format what processes have counted, and what is read from SQL."""
    return generate_latest(counted) + generate_latest(_collect_from_sql(session))


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
    # One expression with parameters cannot be both selected and grouped by on PostgreSQL.
    deployed = select(current_status().label("status")).subquery()
    for deployment_status, count in session.execute(
        select(deployed.c.status, func.count()).group_by(deployed.c.status)
    ):
        deployments.labels(deployment_status).set(count)
    _add_hosts(session, registry)
    add_worker_metrics(session, registry)
    add_queue_metrics(session, registry)
    _add_storage(session, registry)
    return registry


def _add_hosts(session: Session, registry: CollectorRegistry) -> None:
    """Add the hosts in clouds, what they cost, and whether somebody keeps them."""

    def gauge(name: str, text: str, *labels: str) -> Gauge:
        return Gauge(f"tunesmith_{name}", text, ["cloud", *labels], registry=registry)

    hosts = gauge("hosts", "Hosts in clouds by status.", "status")
    spend = gauge("host_spend_usd", "US dollars that the hosts of a cloud have cost.")
    rate = gauge("host_usd_per_hour", "US dollars per hour that the hosts cost that have not ended.")
    overdue = gauge("hosts_overdue", "Hosts whose termination is overdue: their machines are billed.")
    unreached = gauge("hosts_out_of_reach", "Hosts whose machines the keys of the cloud do not show.")
    unclaimed = gauge("cloud_unclaimed", "Machines of Tunesmith that are neither used nor terminated.")
    held = gauge("cloud_held", "1 while the hosts are held after a restoration, else 0.")
    attended = gauge("cloud_attended", "1 while a live worker holds the keys of the cloud, else 0.")
    swept_at = gauge("cloud_swept_timestamp_seconds", "End of the last comparison with the cloud.")
    orphans = gauge("cloud_orphans", "Machines without a row that were terminated.")
    for cloud, status, count in session.execute(
        select(col(Host.cloud), col(Host.status), func.count()).group_by(col(Host.cloud), col(Host.status))
    ):
        hosts.labels(cloud, status).set(count)
    unfinished, now = list_unfinished(session), read_now(session)
    for state in session.scalars(select(CloudState).order_by(col(CloudState.name))):
        own = [host for host in unfinished if host.cloud is state.name]
        spend.labels(state.name).set(sum_ended_spend(session, state.name) + sum_spend(own, now))
        rate.labels(state.name).set(sum(host.usd_per_hour for host in own if host.attempted_at is not None))
        overdue.labels(state.name).set(sum(host.overdue_at is not None for host in own))
        unreached.labels(state.name).set(sum(is_out_of_reach(host) for host in own))
        unclaimed.labels(state.name).set(len(state.unclaimed))
        held.labels(state.name).set(state.held_at is not None)
        is_kept = state.lease_expires_at is not None and state.lease_expires_at > now
        attended.labels(state.name).set(is_kept)
        swept_at.labels(state.name).set(state.swept_at.timestamp() if state.swept_at else 0)
        orphans.labels(state.name).set(state.orphan_count)


def _add_storage(session: Session, registry: CollectorRegistry) -> None:
    """Add the use of disk space, as far as the rows and the last collection contain it."""

    def gauge(name: str, text: str, labels: Sequence[str] = ()) -> Gauge:
        return Gauge(f"tunesmith_storage_{name}", text, labels, registry=registry)

    rows = gauge("rows", "Datasets, models, checkpoints, evaluations and comparisons.", ["kind"])
    row_bytes = gauge("row_bytes", "Size of the files that rows name.", ["kind"])
    tables: dict[str, type[usage.ArtifactTable]] = {
        "datasets": Dataset,
        "models": Model,
        "checkpoints": Checkpoint,
        "evaluations": Evaluation,
        "comparisons": Comparison,
    }
    for kind, table in tables.items():
        view = usage.count_rows(session, table)
        rows.labels(kind).set(view.count)
        row_bytes.labels(kind).set(view.size_bytes)
    gauge("database_bytes", "Size of the database.").set(usage.measure_database(session))
    free = gauge("disk_free_bytes", "Free space of this host's disks.", ["path"])
    for disk in usage.measure_disks(get_settings()):
        free.labels(disk.path).set(disk.free_bytes)
    stored = gauge("stored_bytes", "Size of the store at the last collection.", ["kind"])
    reclaimable = gauge("reclaimable_bytes", "Size of the files that no row named at the last collection.")
    collected_at = gauge("collected_timestamp_seconds", "Start of the last collection; 0 before the first.")
    if (report := usage.load_report(session)) is None:
        return
    for stored_kind in report.stored:
        stored.labels(stored_kind.kind).set(stored_kind.size_bytes)
    reclaimable.set(report.reclaimable_bytes)
    collected_at.set(report.started_at.timestamp())


def _jobs_by_status(session: Session) -> dict[RunStatus, int]:
    """Count jobs by the status of the run that decides it."""
    unsuccessful = select(col(Run.status), func.count()).where(*decides_unsuccessful())
    counts = dict(session.execute(unsuccessful.group_by(col(Run.status))).all())
    total = session.scalar(select(func.count()).select_from(Job)) or 0
    return counts | {RunStatus.succeeded: total - sum(counts.values())}
