"""What can be done with a checkpoint now, and the reason for each use that is not possible."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum

from pydantic import ValidationError
from sqlalchemy import select
from sqlmodel import Session, col

from app.checkpoints.schemas import CheckpointView
from app.checkpoints.service import find_resumed_checkpoint
from app.jobs.actions import JobAction, list_actions
from app.jobs.service import list_runs
from app.tables import Deployment, DeploymentStatus, Run
from trainers.configs.training import TrainingConfig

# Statuses of a deployment that a request can use, or wakes.
USABLE = (DeploymentStatus.ready, DeploymentStatus.asleep)


class CheckpointUse(StrEnum):
    """A use of a checkpoint."""

    resume = "resume"
    evaluate = "evaluate"
    chat = "chat"
    deploy = "deploy"


class UseObstacle(StrEnum):
    """Why a checkpoint cannot be used."""

    job_status = "job_status"
    not_last = "not_last"
    weights_only = "weights_only"
    base_unpublished = "base_unpublished"
    no_model = "no_model"
    not_deployed = "not_deployed"
    not_ready = "not_ready"


@dataclass(frozen=True)
class CheckpointUseState:
    """Whether a checkpoint can be used in one way: the obstacle, or what the use needs."""

    use: CheckpointUse
    obstacle: UseObstacle | None = None
    action: JobAction | None = None
    """Of `resume`: the action on the job that does it."""
    deployment: str | None = None
    """Of `chat`: the name of the newest deployment of the model."""


def list_uses(
    session: Session, run: Run, checkpoints: Sequence[CheckpointView]
) -> dict[str, list[CheckpointUseState]]:
    """Return the uses of each checkpoint, by its id."""
    action = _find_action(list_runs(session, run.job_id))
    resumed = find_resumed_checkpoint(session, run.id)
    can_evaluate = _has_base(run)
    deployments = _find_deployments(session, (each.model_id for each in checkpoints))
    return {
        checkpoint.id: [
            _resume(checkpoint, action, resumed.id if resumed is not None else None),
            CheckpointUseState(
                CheckpointUse.evaluate, None if can_evaluate else UseObstacle.base_unpublished
            ),
            _chat(checkpoint, deployments),
            CheckpointUseState(CheckpointUse.deploy, None if checkpoint.model_id else UseObstacle.no_model),
        ]
        for checkpoint in checkpoints
    }


def _find_action(runs: Sequence[Run]) -> JobAction | None:
    """Return the action that makes a job continue, if its status allows one."""
    allowed = {state.action for state in list_actions(runs) if state.is_allowed}
    return next((action for action in (JobAction.resume, JobAction.retry) if action in allowed), None)


def _resume(
    checkpoint: CheckpointView, action: JobAction | None, resumed_id: str | None
) -> CheckpointUseState:
    obstacle = None
    if not checkpoint.resumable:
        obstacle = UseObstacle.weights_only
    elif checkpoint.id != resumed_id:
        obstacle = UseObstacle.not_last
    elif action is None:
        obstacle = UseObstacle.job_status
    return CheckpointUseState(CheckpointUse.resume, obstacle, action)


def _chat(checkpoint: CheckpointView, deployments: dict[str, Deployment]) -> CheckpointUseState:
    if checkpoint.model_id is None:
        return CheckpointUseState(CheckpointUse.chat, UseObstacle.no_model)
    deployment = deployments.get(checkpoint.model_id)
    if deployment is None:
        return CheckpointUseState(CheckpointUse.chat, UseObstacle.not_deployed)
    obstacle = None if deployment.status in USABLE else UseObstacle.not_ready
    return CheckpointUseState(CheckpointUse.chat, obstacle, deployment=deployment.name)


def _has_base(run: Run) -> bool:
    """Return whether the checkpoints can be loaded: their base exists."""
    try:
        config = run.stage_config()
    except ValidationError:
        # The run is of an older version whose config cannot be used any more.
        return True
    return not (isinstance(config, TrainingConfig) and config.publishes_base and run.model_id is None)


def _find_deployments(session: Session, model_ids: Iterable[str | None]) -> dict[str, Deployment]:
    """Return a deployment of each model that has one: one that serves requests, else the newest."""
    wanted = {model_id for model_id in model_ids if model_id is not None}
    if not wanted:
        return {}
    unfinished = [status for status in DeploymentStatus if not status.finished]
    statement = select(Deployment).where(
        col(Deployment.model_id).in_(wanted), col(Deployment.status).in_(unfinished)
    )
    found = sorted(session.scalars(statement), key=lambda each: (each.status in USABLE, each.id))
    return {each.model_id: each for each in found if each.model_id is not None}
