"""Reading the registry of models."""

from collections.abc import Sequence

from sqlalchemy import select
from sqlmodel import Session, col

from app.http.errors import NotFound
from app.http.paging import PageQuery, paginate_newest_first
from app.tables import Dataset, Model, Run
from trainers.runtime.error_codes import ErrorCode


class ModelNotFound(NotFound):
    """No model has this id."""

    code = ErrorCode.model_not_found


def list_models(session: Session, paging: PageQuery, name: str | None) -> tuple[Sequence[Model], str | None]:
    """Return a page of models, newest first, optionally with one name."""
    statement = select(Model) if name is None else select(Model).where(col(Model.name) == name)
    return paginate_newest_first(session, statement, col(Model.id), paging)


def get_model(session: Session, model_id: str) -> Model:
    """Return the model; raises ModelNotFound."""
    model = session.get(Model, model_id)
    if model is None:
        raise ModelNotFound(f"There is no model {model_id}.", hint="List models with GET /api/v1/models.")
    return model


def load_lineage(session: Session, model: Model) -> tuple[Run | None, Dataset | None, Model | None]:
    """Return the run, the dataset and the parent model that a model was produced from."""
    run = session.get(Run, model.run_id) if model.run_id else None
    dataset = session.get(Dataset, model.dataset_id) if model.dataset_id else None
    parent = session.get(Model, model.parent_id) if model.parent_id else None
    return run, dataset, parent
