"""What was made of a model, and the spec of a job that trains it further."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import or_, select
from sqlmodel import Session, col

from app.evaluations.schemas import EvaluationSummaryView, evaluation_summary_view
from app.evaluations.service import EvaluationFilters, list_evaluations
from app.http.paging import PageQuery
from app.models.schemas import ModelView, model_view
from app.tables import Deployment, DeploymentStatus, Job, Model, Run

MAX_LISTED = 20


@dataclass(frozen=True)
class DeploymentOfModel:
    """A deployment that serves a model, or an adapter on it."""

    id: str
    name: str
    status: DeploymentStatus


@dataclass(frozen=True)
class Descendants:
    """The newest evaluations and deployments of a model, and the models made of it."""

    evaluations: Sequence[EvaluationSummaryView]
    deployments: Sequence[DeploymentOfModel]
    models: Sequence[ModelView]


def list_descendants(session: Session, model_id: str) -> Descendants:
    """Return what was made of a model, the newest first."""
    page = PageQuery(limit=MAX_LISTED)
    evaluations, _ = list_evaluations(session, page, EvaluationFilters(model=model_id))
    serves = or_(col(Deployment.model_id) == model_id, col(Deployment.base) == model_id)
    deployments = select(Deployment).where(serves).order_by(col(Deployment.id).desc()).limit(MAX_LISTED)
    comes_from = or_(col(Model.parent_id) == model_id, col(Model.base) == model_id)
    models = (
        select(Model)
        .where(comes_from, col(Model.id) != model_id, col(Model.deleted_at).is_(None))
        .order_by(col(Model.id).desc())
        .limit(MAX_LISTED)
    )
    return Descendants(
        evaluations=[evaluation_summary_view(each) for each in evaluations],
        deployments=[
            DeploymentOfModel(each.id, each.name, each.status) for each in session.scalars(deployments)
        ],
        models=[model_view(each) for each in session.scalars(models)],
    )


def make_next_spec(session: Session, model: Model) -> dict[str, Any]:
    """Return the spec of a job that trains a model as it was trained itself.

    It has the stage of the model's run as its author wrote it, with the model as the base. A model without
    such a stage gets one that needs a dataset.
    """
    run = session.get(Run, model.run_id) if model.run_id else None
    job = session.get(Job, run.job_id) if run is not None else None
    stages = (job.spec or {}).get("stages", []) if job is not None else []
    stage = next((each for each in stages if run is not None and _is_stage_of(each, run)), {"stage": "sft"})
    unneeded = {name: value for name, value in stage.items() if name not in ("needs", "sweep")}
    dataset = model.dataset_id or stage.get("dataset")
    if not isinstance(dataset, str):
        dataset = "dataset_…"
    return {"name": f"{model.name}-next", "stages": [{**unneeded, "base": model.id, "dataset": dataset}]}


def _is_stage_of(stage: dict[str, Any], run: Run) -> bool:
    """Return whether a stage of a spec became the run; only one that trains has a base."""
    return "base" in stage and stage.get("name", stage["stage"]) == run.name
