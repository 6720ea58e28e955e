"""What can be done with a deployment in its status, for views that show buttons."""

from dataclasses import dataclass
from enum import StrEnum

from app.deployments.lifecycle import LIVE
from app.tables import Deployment, DeploymentStatus, Scope


class DeploymentAction(StrEnum):
    """A change of a deployment that a person asks for."""

    wake = "wake"
    stop = "stop"
    delete = "delete"


@dataclass(frozen=True)
class DeploymentActionState:
    """Whether an action has an effect now, in which statuses it has one, and the scope that it needs."""

    action: DeploymentAction
    is_allowed: bool
    statuses: tuple[DeploymentStatus, ...]
    scope: Scope


ENDED = tuple(status for status in DeploymentStatus if status.finished)


def list_deployment_actions(deployment: Deployment) -> list[DeploymentActionState]:
    """Return every action with whether it is possible; one on demand is never stopped for good."""
    status = deployment.current_status
    stoppable = tuple(
        each for each in LIVE if not (deployment.is_on_demand and each is DeploymentStatus.asleep)
    )
    possible = {
        DeploymentAction.wake: (DeploymentStatus.asleep,),
        DeploymentAction.stop: stoppable,
        DeploymentAction.delete: ENDED,
    }
    scopes = {DeploymentAction.wake: Scope.inference}
    return [
        DeploymentActionState(action, status in statuses, statuses, scopes.get(action, Scope.write))
        for action, statuses in possible.items()
    ]
