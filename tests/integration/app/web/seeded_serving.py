"""Deployments, aliases, workers and hosts, for tests and screenshots of the pages of serving."""

from typing import Any

from app.storage.database import transaction
from app.tables import Deployment, DeploymentStatus
from app.tables.base import utc_now
from trainers.configs import EngineKind, Queue


def add_deployment(name: str, **values: Any) -> str:
    """Insert a deployment, by default one that is ready, and return its id."""
    common: dict[str, Any] = {
        "base": "starter",
        "engine": EngineKind.hf,
        "queue": Queue.cpu,
        "engine_key": name,
        "status": DeploymentStatus.ready,
        "address": "http://127.0.0.1:9",
        "ready_at": utc_now(),
    }
    with transaction() as session:
        row = Deployment(name=name, **common | values)
        session.add(row)
        session.flush()
        return row.id
