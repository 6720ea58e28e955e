"""The registry of models: reading it, what uses a model, and deletion."""

from collections.abc import Sequence

from sqlalchemy import or_, select, update
from sqlmodel import Session, col

from app.deployments.lifecycle import UNFINISHED
from app.http.errors import InUse, NotFound
from app.http.paging import PageQuery, paginate_newest_first
from app.jobs.inputs import MAX_LISTED, is_trained_on, list_unfinished_jobs
from app.models.schemas import ModelLineageView, ModelUsersView, lineage_view
from app.storage.database import database_now
from app.tables import Dataset, Deployment, Model, Run
from trainers.runtime.error_codes import ErrorCode


class ModelNotFound(NotFound):
    """No model has this id."""

    code = ErrorCode.model_not_found


def list_models(
    session: Session, paging: PageQuery, name: str | None, dataset_id: str | None
) -> tuple[Sequence[Model], str | None]:
    """Return a page of models, newest first, optionally with one name or dataset."""
    statement = select(Model).where(col(Model.deleted_at).is_(None))
    if name is not None:
        statement = statement.where(col(Model.name) == name)
    if dataset_id is not None:
        statement = statement.where(is_trained_on(dataset_id))
    return paginate_newest_first(session, statement, col(Model.id), paging)


def get_model(session: Session, model_id: str) -> Model:
    """Return the model; raises ModelNotFound, also for one that was deleted."""
    model = session.get(Model, model_id)
    if model is None or model.deleted_at is not None:
        missing = f"There is no model {model_id}."
        if model is not None:
            missing = f"The model {model_id} ({model.name}) was deleted at {model.deleted_at}."
        raise ModelNotFound(missing, hint="List the models with GET /api/v1/models.")
    return model


def delete_model(session: Session, model_id: str) -> None:
    """Mark a model as deleted; raises ModelNotFound, and InUse with the ids of its users.

    The row remains as the origin of other models; the next collection deletes the files.
    """
    get_model(session, model_id)
    # The UPDATE locks the row before the check, so that a request which names the model waits for its result.
    session.execute(
        update(Model)
        .where(col(Model.id) == model_id)
        .values(deleted_at=database_now())
        .execution_options(synchronize_session=False)
    )
    users = find_users(session, model_id)
    if ids := users.list_ids():
        others = f" and {len(ids) - 1} more" if len(ids) > 1 else ""
        raise InUse(
            f"The model {model_id} is used by {ids[0]}{others}.",
            hint="Cancel the unfinished jobs, stop the deployments, and delete the models that depend on it.",
            used_by=ids,
        )


def find_users(session: Session, model_id: str) -> ModelUsersView:
    """Return what uses a model: unfinished jobs, deployments that have not ended, and other models."""
    models = select(col(Model.id)).where(
        or_(col(Model.parent_id) == model_id, col(Model.base) == model_id),
        col(Model.id) != model_id,
        col(Model.deleted_at).is_(None),
    )
    deployments = select(col(Deployment.id)).where(
        or_(col(Deployment.model_id) == model_id, col(Deployment.base) == model_id),
        col(Deployment.status).in_(UNFINISHED),
    )
    return ModelUsersView(
        jobs=list_unfinished_jobs(session, model_id),
        deployments=list(session.scalars(deployments.order_by(col(Deployment.id)).limit(MAX_LISTED))),
        models=list(session.scalars(models.order_by(col(Model.id)).limit(MAX_LISTED))),
    )


def view_model(session: Session, model: Model) -> ModelLineageView:
    """Build the view of a model: the run, the dataset and the model that it came from, and its users."""
    run = session.get(Run, model.run_id) if model.run_id else None
    dataset = session.get(Dataset, model.dataset_id) if model.dataset_id else None
    parent = session.get(Model, model.parent_id) if model.parent_id else None
    return lineage_view(model, run, dataset, parent, find_users(session, model.id))
