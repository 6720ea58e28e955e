"""The state of a promotion at one look: its rows, the traffic that gateways have reported, and the time."""

from dataclasses import dataclass
from datetime import datetime

from sqlmodel import Session, select

from app.aliases.changes import find_version
from app.aliases.promotions import check_unmoved, find_promotion, list_others
from app.promotions.decision import Assessment, ConditionState
from app.routing_table.traffic import sum_traffic
from app.runs.lifecycle import StaleAttempt
from app.storage.database import database_now, read_session
from app.tables import Deployment, DeploymentStatus, Promotion, Run, RunStatus
from serving.gateway.traffic.counts import TrafficCounts


@dataclass(frozen=True)
class StepSnapshot:
    """The state of a promotion at one look."""

    status: RunStatus
    promotion: Promotion | None
    seconds: float
    """Time since the step began, by the database's clock."""
    candidate: TrafficCounts
    """Requests to the new deployment in this step."""
    present: TrafficCounts
    """Requests to the present deployments in all steps."""
    present_deployment: str
    """The present deployment with the largest share."""
    failure: Assessment | None
    """Why the new deployment can serve no more, if it cannot."""


def read_snapshot(run: Run) -> StepSnapshot:
    """Read the state of a promotion; raises AliasMoved if somebody else has changed the alias."""
    with read_session() as session:
        current = session.get_one(Run, run.id)
        if current.attempt != run.attempt:
            raise StaleAttempt(f"attempt {run.attempt} no longer holds {run.id}")
        promotion = find_promotion(session, run.id)
        if promotion is None:
            empty = TrafficCounts()
            return StepSnapshot(current.status, None, 0.0, empty, empty, "", None)
        if current.status is RunStatus.running:
            check_unmoved(session, promotion, lock=False)
        now: datetime = session.exec(select(database_now())).one()
        candidate, present = sum_traffic(session, promotion)
        return StepSnapshot(
            status=current.status,
            promotion=promotion,
            seconds=(now - promotion.step_started_at).total_seconds(),
            candidate=candidate,
            present=present,
            present_deployment=_find_present(session, promotion),
            failure=_find_failure(session, promotion),
        )


def _find_present(session: Session, promotion: Promotion) -> str:
    before = find_version(session, promotion.alias, promotion.version_before)
    assert before is not None, "the promotion began from it"
    others = list_others(before.targets, promotion.deployment)
    name: str = max(others, key=lambda target: target["share"])["deployment"]
    return name


def _find_failure(session: Session, promotion: Promotion) -> Assessment | None:
    deployment = session.get(Deployment, promotion.deployment_id)
    if deployment is None:
        message = f"the deployment {promotion.deployment!r} was deleted"
    elif deployment.status.finished or deployment.status is DeploymentStatus.stopping:
        reason = f": {deployment.error['message']}" if deployment.error else ""
        message = f"the deployment {promotion.deployment!r} is {deployment.status}{reason}"
    else:
        return None
    return Assessment("deployment", ConditionState.violated, None, 0.0, 0, None, message)
