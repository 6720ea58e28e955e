"""What was made of a model, and the spec of a job that trains it further."""

from collections.abc import Mapping, Sequence
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
UNKNOWN_DATASET = "dataset_…"
# Fields of a stage that have a meaning among the other stages of its job only.
OF_ITS_JOB = ("needs", "when", "sweep", "sweep_max_runs", "sweep_max_seconds")


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

    It has the stage of the model's run as its author wrote it, with the model as the base, and of a sweep the
    values of that run. What referred to other stages of that job is left out. A model without such a stage
    gets one that needs a dataset.
    """
    run = session.get(Run, model.run_id) if model.run_id else None
    job = session.get(Job, run.job_id) if run is not None else None
    stages = (job.spec or {}).get("stages", []) if job is not None else []
    default: dict[str, Any] = {"stage": "sft"}
    stage = next((each for each in stages if run is not None and _is_stage_of(each, run)), default)
    mixture = stage.get("dataset") if isinstance(stage.get("dataset"), list) else None
    dataset = model.dataset_id or stage.get("dataset")
    own = {name: value for name, value in stage.items() if name not in OF_ITS_JOB and not _names_stage(value)}
    swept = _read_swept(stage.get("sweep") or {}, run.config) if run is not None else {}
    merged = {name: _merge(own.get(name), value) for name, value in swept.items()}
    fields = {**own, **merged, "base": model.id}
    if mixture is not None and not _names_stage(mixture):
        fields["dataset"] = mixture
    else:
        fields["dataset"] = dataset if isinstance(dataset, str) else UNKNOWN_DATASET
    return {"name": f"{model.name}-next", "stages": [fields]}


def make_evaluation_spec(model: Model, dataset: str | None) -> dict[str, Any]:
    """Return the spec of a job that evaluates a model against the one that it was made from."""
    stage = {"stage": "evaluate", "model": model.id, "baseline": model.parent_id or model.base}
    return {"name": f"{model.name}-evaluation", "stages": [stage | ({"dataset": dataset} if dataset else {})]}


def _is_stage_of(stage: dict[str, Any], run: Run) -> bool:
    """Return whether a stage of a spec became the run; only one that trains has a base."""
    if "base" not in stage:
        return False
    name, _, number = run.name.rpartition("-")
    own = stage.get("name", stage["stage"])
    return bool(own == run.name or ("sweep" in stage and own == name and number.isdecimal()))


def _names_stage(value: Any) -> bool:
    """Return whether a value refers to the output of another stage, such as `{stage: prepare}`."""
    if isinstance(value, list):
        return any(_names_stage(each) for each in value)
    return isinstance(value, dict) and ("stage" in value or _names_stage(value.get("dataset")))


def _read_swept(sweep: Mapping[str, Any], config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values of a run for the fields that a sweep varies, such as `tuning.rank`, nested."""
    found: dict[str, Any] = {}
    for path in sweep:
        parent, dot, name = path.partition(".")
        values = config.get(parent)
        if dot and isinstance(values, Mapping):
            found[parent] = {**found.get(parent, {}), name: values.get(name)}
        elif not dot and parent in config:
            found[parent] = values
    return found


def _merge(own: Any, swept: Any) -> Any:
    return {**own, **swept} if isinstance(own, dict) and isinstance(swept, dict) else swept
