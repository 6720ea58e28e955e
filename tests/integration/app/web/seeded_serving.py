"""Deployments, aliases, workers and hosts, for tests and screenshots of the pages of serving."""

from typing import Any

from app.aliases.promotions import begin_next_step, begin_promotion, end_promotion
from app.aliases.schemas import AliasTarget, AliasUpdate
from app.aliases.service import update_alias
from app.aliases.targets import find_name_holders
from app.jobs.schemas import JobCreate
from app.jobs.service import create_job, list_runs
from app.routing_table.traffic import record_traffic
from app.runs import lifecycle
from app.runs.attempt_outcome import AttemptOutcome
from app.settings import get_settings
from app.storage.database import transaction
from app.tables import Deployment, DeploymentStatus, Promotion, Worker
from app.tables.base import utc_now
from serving.gateway.traffic.counts import TrafficCounts, find_bucket
from trainers.configs import EngineKind, ParityMode, Queue, StageKind
from trainers.runtime.error_codes import ErrorCode
from trainers.runtime.errors import TunesmithError


class PromotionFailed(TunesmithError):
    """The error of a promotion that was rolled back."""

    code = ErrorCode.promotion_rolled_back


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


PROMOTION: dict[str, Any] = {
    "stage": "promote",
    "alias": "news",
    "deployment": "news-v2",
    "steps": [{"share": 0.25}, {"share": 0.5}, {"share": 1.0}],
    "conditions": {"max_error_rate": 0.02, "max_p95_seconds": 5},
    "min_requests": 230,
}


def submit_promotion(**fields: Any) -> str:
    """Submit a job that promotes `news-v2`, and return the id of its run."""
    spec = JobCreate.model_validate({"name": "release", "stages": [{**PROMOTION, **fields}]})
    with transaction() as session:
        job, _ = create_job(session, get_settings(), spec, "", None)
        return list_runs(session, job.id)[0].id


def begin(run_id: str) -> None:
    """Give the deployment of a promotion its first share, as the worker does."""
    with transaction() as session:
        worker = Worker(name="here", host="h", pid=1, queues=[Queue.cpu], stages=list(StageKind))
        session.add(worker)
        session.flush()
        run = lifecycle.claim(session, worker.id, [Queue.cpu], [StageKind.promote], 60)
        assert run is not None and run.id == run_id
        begin_promotion(session, run, "news", "news-v2", 0.25)


def report_traffic(run_id: str, succeeded: int, failed: int, present: int) -> None:
    """Report requests of the promotion's current step, as a gateway does, each of 1.2 seconds."""
    with transaction() as session:
        promotion = session.get_one(Promotion, run_id)
        old = find_name_holders(session, ["news-v1"])["news-v1"]
        counts = {
            promotion.deployment_id: TrafficCounts(succeeded=succeeded, failed=failed),
            old.id: TrafficCounts(succeeded=present),
        }
        for each in counts.values():
            each.seconds[find_bucket(1.2)] = each.succeeded
        items = [
            {"alias": "news", "version": promotion.version, "deployment_id": id, "counts": each.to_json()}
            for id, each in counts.items()
        ]
        record_traffic(session, "gateway_test", items)


def add_shown_promotions() -> str:
    """Insert a promotion that was rolled back and one in its second step; return the id of the latter."""
    first = submit_promotion()
    begin(first)
    report_traffic(first, 180, 41, 700)
    assessed = {"condition": "max_error_rate", "state": "violated", "value": 0.186, "bound": 0.02, "n": 221}
    message = "41 of 221 requests failed (95 % limits 0.121 to 0.26); at most 0.02 may fail"
    details = {
        "share": 0.25,
        "seconds": 94.0,
        "requests": 221.0,
        "failed": 41.0,
        "error_rate": 41 / 221,
        "p95_seconds": 1.2,
        "conditions": [{**assessed, "limits_95": None, "message": message}],
    }
    error = PromotionFailed(
        f"In step 1 (share 0.25) of 'news', after 94 s: max_error_rate: {message}. The alias has the targets "
        "of version 2 again.",
        "The values are in the run's error and events. A retry begins from the first step.",
        details,
    )
    with transaction() as session:
        end_promotion(session, first, roll_back=True)
        lifecycle.end_attempt(session, first, AttemptOutcome(error), [], 1)
    second = submit_promotion()
    begin(second)
    measured = {"share": 0.25, "seconds": 612.0, "requests": 254.0, "failed": 0.0, "error_rate": 0.0}
    holds = {**assessed, "state": "holds", "n": 254, "message": "0 of 254 requests failed"}
    with transaction() as session:
        promotion = session.get_one(Promotion, second)
        begin_next_step(session, promotion, 0.5, {**measured, "p95_seconds": 1.1, "conditions": [holds]})
    report_traffic(second, 118, 1, 640)
    submit_promotion()
    return second
