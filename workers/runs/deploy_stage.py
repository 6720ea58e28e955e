"""The `deploy` stage: creates a deployment and waits until it is ready.

The engine outlives the run and takes no run slot: `workers/engines` runs it.
"""

import logging
import time

from sqlmodel import Session

from app.deployments import lifecycle as deployments
from app.deployments.create import NameIsAlias, build_deployment, insert_deployment
from app.runs import lifecycle
from app.runs.attempt_outcome import AttemptOutcome
from app.runs.lifecycle import StaleAttempt
from app.scheduling.incidents import describe_error
from app.storage.database import DATABASE_UNAVAILABLE, transaction
from app.tables import Deployment, DeploymentStatus, Run, RunStatus
from trainers.configs import DeployConfig
from trainers.runtime.error_codes import ErrorCode
from trainers.runtime.errors import TunesmithError
from workers.hosts.lease import Lease
from workers.hosts.worker import WorkerContext
from workers.inputs.errors import LaunchError
from workers.inputs.models import locate_model
from workers.runs.complete import RunAttempt, end_attempt
from workers.runs.results import ReportedError

logger = logging.getLogger(__name__)

POLL_SECONDS = 0.5


class DeployStageFailed(TunesmithError):
    code = ErrorCode.deployment_failed


def run_deploy_stage(worker: WorkerContext, run: Run, lease: Lease) -> None:
    """Create the deployment, wait until it is ready, and write its id as the run's result."""
    config = run.stage_config()
    assert isinstance(config, DeployConfig)
    attempt = RunAttempt(run, worker.settings, lease, stop_requested=False)
    try:
        # The deployment fetches the model, on the worker that serves it.
        location = locate_model(run.job_id, config.model)
        with transaction() as session:
            # An attempt that slept through its lease must not replace the deployment of the next one.
            lifecycle.append_events(session, run.id, run.attempt, [])
            deployment = insert_deployment(
                session, build_deployment(session, config.deployment, str(location), config, run.queue)
            )
    except LaunchError as error:
        end_attempt(attempt, error)
    except NameIsAlias as error:
        end_attempt(attempt, DeployStageFailed(error.message, error.hint))
    else:
        worker.notify_deployments()
        _wait_until_ready(worker, run, lease, deployment.id, time.monotonic() + config.ready_timeout_seconds)


def _wait_until_ready(
    worker: WorkerContext, run: Run, lease: Lease, deployment_id: str, deadline: float
) -> None:
    while not lease.lost.is_set():
        # Another worker may serve it, whose changes only the database shows.
        worker.wait_for_deployments(POLL_SECONDS)
        try:
            with transaction() as session:
                if _end_when_settled(session, worker, run, deployment_id, deadline):
                    return
        except DATABASE_UNAVAILABLE as error:
            logger.warning(
                "cannot read %s: %s", deployment_id, describe_error(error), extra={"run_id": run.id}
            )
    raise StaleAttempt(f"attempt {run.attempt} of {run.id} lost its lease")


def _end_when_settled(
    session: Session, worker: WorkerContext, run: Run, deployment_id: str, deadline: float
) -> bool:
    """End the run if its deployment is ready or has failed, or if it must stop; return whether it did."""
    guards = lifecycle.lease_guards(run.attempt)
    deployment = session.get(Deployment, deployment_id)
    if deployment is None:
        end = AttemptOutcome(
            DeployStageFailed(f"The deployment {deployment_id} ended and was deleted.", "Retry the job.")
        )
        return lifecycle.end_attempt(session, run.id, end, guards, worker.settings.max_failures) is not None
    status = session.get_one(Run, run.id).status
    # A deployment that was ready may be asleep already, if others needed its place.
    if deployment.current_status in (DeploymentStatus.ready, DeploymentStatus.asleep):
        result = {"stage": "deploy", "deployment_id": deployment.id, "deployment": deployment.name}
        ended = lifecycle.move(session, run.id, RunStatus.succeeded, guards=guards, values={"result": result})
    elif status is not RunStatus.running or worker.stopping.is_set():
        # The next attempt creates its own deployment.
        deployments.stop(session, deployment_id)
        end = AttemptOutcome(reason="the worker is shutting down")
        ended = lifecycle.end_attempt(session, run.id, end, guards, worker.settings.max_failures)
    elif deployment.status.finished or time.monotonic() > deadline:
        end = AttemptOutcome(_deployment_error(deployment))
        deployments.stop(session, deployment_id)
        ended = lifecycle.end_attempt(session, run.id, end, guards, worker.settings.max_failures)
    else:
        return False
    if ended is None:
        # Raises StaleAttempt unless this attempt still holds the run; then the next poll decides again.
        lifecycle.append_events(session, run.id, run.attempt, [])
    return ended is not None


def _deployment_error(deployment: Deployment) -> TunesmithError:
    if deployment.error is not None:
        return ReportedError(
            ErrorCode(deployment.error["code"]), deployment.error["message"], deployment.error.get("hint")
        )
    return DeployStageFailed(
        f"The deployment {deployment.name!r} ({deployment.id}) is {deployment.status} and was "
        "not ready in time.",
        "Increase ready_timeout_seconds, or check that a worker of its queue has a free device.",
    )
