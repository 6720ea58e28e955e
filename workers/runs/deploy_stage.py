"""The `deploy` stage: it asks for a deployment and waits until it is ready.

The engine outlives the run and takes no run slot: `engines/` keeps it.
"""

import logging
import time
from typing import Any

from sqlalchemy.exc import OperationalError
from sqlmodel import Session

from app.deployments import lifecycle as deployments
from app.deployments.create import NameIsAlias, build_deployment, insert_deployment
from app.runs import lifecycle
from app.runs.lifecycle import StaleAttempt
from app.storage.database import transaction
from app.tables import Deployment, DeploymentStatus, Run, RunStatus
from trainers.configs import DeployConfig
from trainers.runtime.error_codes import ErrorCode
from workers.hosts.lease import Lease
from workers.hosts.worker import WorkerContext
from workers.runs import complete
from workers.runs.complete import RunAttempt
from workers.runs.launch import LaunchError, fetch_model

logger = logging.getLogger(__name__)

LOOK_SECONDS = 0.5


def run_deploy_stage(host: WorkerContext, run: Run, lease: Lease) -> None:
    """The `deploy` stage: ask for the deployment, wait until it is ready, answer where it is."""
    config = DeployConfig.model_validate(run.config)
    try:
        model = fetch_model(run.job_id, run.config["model"], host.settings)
    except LaunchError as unreadable:
        complete.end_attempt(RunAttempt(run, host.settings, lease, stop_asked=False), unreadable.as_dict())
        return
    try:
        with transaction() as session:
            # An attempt that slept through its lease must not replace the deployment of the next.
            lifecycle.append_events(session, run.id, run.attempt, [])
            reference = model.model_id or model.origin
            deployment = insert_deployment(
                session, build_deployment(session, config.deployment, reference, config, run.queue)
            )
    except NameIsAlias as taken:
        refused = {"code": ErrorCode.deployment_failed, "message": taken.message, "hint": taken.hint}
        complete.end_attempt(RunAttempt(run, host.settings, lease, stop_asked=False), refused)
        return
    _await_ready(host, run, lease, deployment.id, time.monotonic() + config.ready_timeout_seconds)


def _await_ready(host: WorkerContext, run: Run, lease: Lease, deployment_id: str, deadline: float) -> None:
    while not lease.lost.wait(LOOK_SECONDS):
        try:
            with transaction() as session:
                if _settled(session, host, run, deployment_id, deadline):
                    return
        except OperationalError as error:
            logger.warning("cannot look for %s: %s", deployment_id, error.orig)
    raise StaleAttempt(f"attempt {run.attempt} of {run.id} lost its lease")


def _settled(session: Session, host: WorkerContext, run: Run, deployment_id: str, deadline: float) -> bool:
    """Whether the stage has ended: its deployment is ready or hopeless, or the stage is to stop."""
    deployment = session.get_one(Deployment, deployment_id)
    status = session.get_one(Run, run.id).status
    # One that was ready may sleep already, if others needed its room.
    if deployment.status in (DeploymentStatus.ready, DeploymentStatus.asleep):
        result = {"stage": "deploy", "deployment_id": deployment.id, "deployment": deployment.name}
        return _move(session, run, RunStatus.succeeded, {"result": result})
    if status is not RunStatus.running or host.stopping.is_set():
        # What asked for the deployment is gone: another attempt asks anew.
        deployments.stop(session, deployment_id)
        after = {RunStatus.cancelling: RunStatus.cancelled, RunStatus.pausing: RunStatus.paused}
        return _move(session, run, after.get(status, RunStatus.queued), {})
    if deployment.status.finished or time.monotonic() > deadline:
        error = _deployment_error(deployment)
        deployments.stop(session, deployment_id)
        return _move(session, run, RunStatus.failed, {"error": error})
    return False


def _deployment_error(deployment: Deployment) -> dict[str, Any]:
    if deployment.error is not None:
        return deployment.error
    message = (
        f"The deployment {deployment.name!r} ({deployment.id}) is {deployment.status} and not ready in time."
    )
    hint = "Give ready_timeout_seconds more, or see whether a worker of its queue has a free device."
    return {"code": ErrorCode.deployment_failed, "message": message, "hint": hint}


def _move(session: Session, run: Run, status: RunStatus, values: dict[str, Any]) -> bool:
    """Whether the run could be moved; raises StaleAttempt when this attempt does not hold it."""
    guards = lifecycle.lease_guards(run.attempt)
    data = {"error": values["error"]} if "error" in values else {}
    if lifecycle.move(session, run.id, status, guards=guards, values=values, data=data) is not None:
        return True
    lifecycle.append_events(session, run.id, run.attempt, [])
    return False
