"""Workers, queues, hosts in clouds, storage, and the caller."""

from datetime import datetime
from typing import Any

from app.client.views.base import ApiView, ErrorRecord


class WorkerRecord(ApiView):
    """A worker process."""

    api_schema = "WorkerView"

    id: str
    name: str
    alive: bool
    host: str
    pid: int
    node_address: str | None = None
    queues: list[str]
    stages: list[str]
    capabilities: list[str]
    slots: dict[str, int]
    hardware: dict[str, Any]
    versions: dict[str, str]
    host_report: dict[str, Any] | None = None
    problems: list[str]
    runs: list[str]
    deployments: list[str]
    started_at: datetime
    last_seen_at: datetime | None = None
    stopped_at: datetime | None = None


class QueueRecord(ApiView):
    """A queue, with what its live workers can hold."""

    api_schema = "QueueView"

    queue: str
    workers: int
    slots: int
    free_slots: int
    running: int
    waiting: int
    later: int


class WaitingRunRecord(ApiView):
    """A run that waits for its queue."""

    api_schema = "WaitingRunView"

    id: str
    job_id: str
    position: int
    name: str
    full_name: str
    stage: str
    queue: str
    priority: int
    status: str
    error: ErrorRecord | None = None
    attempt: int
    step: int
    total_steps: int | None = None
    progress: float
    eta_seconds: float | None = None
    worker_id: str | None = None
    model_id: str | None = None
    created_at: datetime
    started_at: datetime | None = None
    finished_at: datetime | None = None
    waiting_for: str | None = None


class HostRecord(ApiView):
    """A machine that was launched in a cloud."""

    api_schema = "HostView"

    id: str
    cloud: str
    type: str
    region: str
    spot: bool
    gpu_name: str | None = None
    gpu_count: int
    status: str
    progress: str
    usd_per_hour: float
    spend_usd: float
    max_usd: float
    idle_seconds: float
    job_id: str | None = None
    machine_id: str | None = None
    address: str | None = None
    ssh_host_keys: list[str]
    workers: list[str]
    stop_reason: str | None = None
    account: str | None = None
    error: ErrorRecord | None = None
    created_by: str | None = None
    created_at: datetime
    launched_at: datetime | None = None
    running_at: datetime | None = None
    ready_at: datetime | None = None
    last_busy_at: datetime | None = None
    stop_at: datetime | None = None
    overdue_at: datetime | None = None
    ended_at: datetime | None = None


class CollectionRecord(ApiView):
    """A collection of garbage that somebody has requested."""

    api_schema = "RequestedCollectionView"

    dry_run: bool
    started_at: datetime
    ended_at: datetime | None = None
    report: dict[str, Any] | None = None
    removals: list[dict[str, Any]]
    error: str | None = None


class StorageRecord(ApiView):
    """The use of space, the collections of garbage, and what they keep."""

    api_schema = "StorageView"

    installation_id: str | None = None
    datasets: dict[str, Any]
    models: dict[str, Any]
    checkpoints: dict[str, Any]
    evaluations: dict[str, Any]
    comparisons: dict[str, Any]
    database_bytes: int
    disks: list[dict[str, Any]]
    reclaimable_bytes: int | None = None
    last_collection: dict[str, Any] | None = None
    collecting: bool
    requested: CollectionRecord | None = None
    largest: list[dict[str, Any]]
    retention: list[dict[str, Any]]


class CallerRecord(ApiView):
    """The API key that the client uses, as the service knows it."""

    api_schema = "CallerView"

    key_id: str
    scopes: list[str]
    requests_per_minute: int | None = None
    concurrent_requests: int | None = None
    tokens_per_day: int | None = None
    tokens_today: int
    models: list[str] | None = None


class ReadinessRecord(ApiView):
    """The state of what the service depends on."""

    api_schema = "Readiness"

    ready: bool
    database: str
    store: str
    broker: str
    workers: str
    hosts: str
    queues: list[str]
    background: str
    examples: str = "ok"
