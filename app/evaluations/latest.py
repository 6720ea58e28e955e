"""The latest evaluation of a deployed model."""

from sqlalchemy import select
from sqlmodel import Session, col

from app.tables import Dataset, Deployment, Evaluation, EvaluationScore


def find_latest_evaluation(
    session: Session, deployment_name: str, metric: str, dataset: Dataset | None
) -> Evaluation | None:
    """Return the newest evaluation of the model that a deployment serves, by a metric on a dataset.

    The newest deployment of the name counts, ready or not; without a dataset, any dataset does.
    """
    newest = select(Deployment).where(col(Deployment.name) == deployment_name)
    deployment = session.scalars(newest.order_by(col(Deployment.id).desc()).limit(1)).first()
    if deployment is None:
        return None
    is_model = (
        col(Evaluation.model_id) == deployment.model_id
        if deployment.model_id is not None
        else col(Evaluation.model) == deployment.base
    )
    scored = select(col(EvaluationScore.evaluation_id)).where(col(EvaluationScore.metric) == metric)
    evaluations = select(Evaluation).where(is_model, col(Evaluation.id).in_(scored))
    if dataset is not None:
        evaluations = evaluations.where(col(Evaluation.dataset_sha256) == dataset.sha256)
    return session.scalars(evaluations.order_by(col(Evaluation.id).desc()).limit(1)).first()
