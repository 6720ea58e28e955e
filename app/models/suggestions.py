"""Models that a form suggests: the example model, those of the registry, and bases of the newest runs."""

from dataclasses import dataclass

from sqlalchemy import select
from sqlmodel import Session, col

from app.models.references import find_folder
from app.models.starter import STARTER
from app.storage.database import json_text
from app.tables import Model, Run
from trainers.configs import StageKind

MAX_MODELS = 20
# Among these, the bases are looked for.
MAX_RUNS = 200


@dataclass(frozen=True)
class SuggestedModel:
    """A model as a job names it, and the name that a person knows it by."""

    reference: str
    label: str = ""


def suggest_models(session: Session) -> list[SuggestedModel]:
    """Return what a job can name as its model: the example, used bases, and the newest of the registry."""
    example = [STARTER] if find_folder(STARTER) is not None else []
    newest = select(Model).where(col(Model.deleted_at).is_(None)).order_by(col(Model.id).desc())
    models = session.scalars(newest.limit(MAX_MODELS)).all()
    bases = dict.fromkeys([*example, *_list_used_bases(session)])
    return [
        *map(SuggestedModel, bases),
        *(SuggestedModel(model.id, model.name) for model in models),
    ]


def _list_used_bases(session: Session) -> list[str]:
    training = col(Run.stage).in_([kind for kind in StageKind if kind.trains])
    base = json_text(col(Run.config), "base")
    statement = select(base).where(training).order_by(col(Run.id).desc()).limit(MAX_RUNS)
    # Not the output of an earlier stage, which is an object, and not a model that may have been deleted.
    found = [base for base in session.scalars(statement) if base and not base.startswith(("{", "model_"))]
    return list(dict.fromkeys(found))[:MAX_MODELS]
