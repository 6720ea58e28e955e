"""Deployments, aliases, workers and hosts, for tests and screenshots of the pages of serving."""

from typing import Any

from app.aliases.schemas import AliasTarget, AliasUpdate
from app.aliases.service import update_alias
from app.storage.database import transaction
from app.tables import Deployment, DeploymentStatus
from app.tables.base import utc_now
from trainers.configs import EngineKind, ParityMode, Queue


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


def add_shown_deployments() -> dict[str, str]:
    """Insert deployments in several states and an alias with a canary, and return their ids by name."""
    error = {
        "code": "out_of_memory",
        "message": "The engine needs 21.4 GiB for the weights, and the GPU has 15.8 GiB free.",
        "hint": "Set options.quantization to fp8, or stop a deployment on this GPU.",
    }
    passed, differs = {"passed": True, "engine": "hf"}, {"passed": False, "engine": "hf", "position": 3}
    ids = {
        "news-v1": add_deployment("news-v1", parity=passed, last_used_at=utc_now()),
        "news-v2": add_deployment("news-v2", parity=differs, parity_mode=ParityMode.warn),
        "asleep": add_deployment("asleep", status=DeploymentStatus.asleep, address=None, idle_seconds=600),
        "waiting": add_deployment("waiting", status=DeploymentStatus.queued, address=None, ready_at=None),
        "ill": add_deployment("ill", status=DeploymentStatus.failed, address=None, error=error),
    }
    shares = [AliasTarget(deployment="news-v1", share=1.0)]
    with transaction() as session:
        update_alias(session, "news", AliasUpdate(targets=shares), None)
    canary = [
        AliasTarget(deployment="news-v1", share=0.9),
        AliasTarget(deployment="news-v2", share=0.1),
    ]
    with transaction() as session:
        update_alias(session, "news", AliasUpdate(targets=canary), None)
    return ids
