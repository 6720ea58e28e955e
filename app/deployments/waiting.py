"""What a queued deployment waits for, so that a client whose request it serves learns the reason."""

from collections.abc import Sequence

from sqlalchemy import select
from sqlmodel import Session, col

from app.deployments.lifecycle import HELD as HELD_DEPLOYMENTS
from app.tables import HELD, Deployment, Run
from trainers.configs import Queue

MAX_NAMED = 3


def explain_unclaimed(session: Session, deployment: Deployment) -> str:
    """Return why no worker has claimed a deployment, although one that is alive could hold it."""
    unclaimed = f"No worker of queue {deployment.queue} has claimed it yet"
    users = _list_users_of_gpus(session, deployment) if deployment.queue is Queue.cuda else []
    if not users:
        return f"{unclaimed}."
    named = ", ".join(users[:MAX_NAMED])
    more = f" and {len(users) - MAX_NAMED} more" if len(users) > MAX_NAMED else ""
    return f"{unclaimed}; GPUs are in use by {named}{more}."


def _list_users_of_gpus(session: Session, deployment: Deployment) -> Sequence[str]:
    """Return what holds GPUs: runs, and deployments on engines that this one cannot share."""
    runs = select(col(Run.full_name), col(Run.id)).where(
        col(Run.status).in_(HELD), col(Run.queue) == Queue.cuda, col(Run.device_count) > 0
    )
    names = select(col(Deployment.name)).where(
        col(Deployment.status).in_(HELD_DEPLOYMENTS),
        col(Deployment.queue) == Queue.cuda,
        col(Deployment.engine_key) != deployment.engine_key,
    )
    return [
        *(f"run {name or run_id!r}" for name, run_id in session.execute(runs.order_by(col(Run.id)))),
        *(f"deployment {name!r}" for name in session.scalars(names.order_by(col(Deployment.id)))),
    ]
