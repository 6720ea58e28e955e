"""Reading the registry of models."""

from collections.abc import Sequence

from sqlalchemy import select
from sqlmodel import Session, col

from app.http.errors import NotFound
from app.http.paging import PageQuery, paginate_newest_first
from app.models.schemas import LineageDatasetView, LineageRunView, ModelLineageView, ModelView
from app.tables import Dataset, Model, Run
from trainers.runtime.error_codes import ErrorCode


class ModelNotFound(NotFound):
    """No model has this id."""

    code = ErrorCode.model_not_found


def listed(session: Session, paging: PageQuery, name: str | None) -> tuple[Sequence[Model], str | None]:
    """Models from new to old, of one name or of all."""
    statement = select(Model) if name is None else select(Model).where(col(Model.name) == name)
    return paginate_newest_first(session, statement, col(Model.id), paging)


def show(session: Session, model_id: str) -> ModelLineageView:
    """A model with its lineage; raises ModelNotFound."""
    model = session.get(Model, model_id)
    if model is None:
        raise ModelNotFound(f"There is no model {model_id}.", hint="List models with GET /api/v1/models.")
    run = session.get(Run, model.run_id) if model.run_id else None
    dataset = session.get(Dataset, model.dataset_id) if model.dataset_id else None
    parent = session.get(Model, model.parent_id) if model.parent_id else None
    return ModelLineageView(
        **ModelView.model_validate(model).model_dump(),
        run=LineageRunView.model_validate(run) if run else None,
        dataset=LineageDatasetView.model_validate(dataset) if dataset else None,
        parent=ModelView.model_validate(parent) if parent else None,
    )
