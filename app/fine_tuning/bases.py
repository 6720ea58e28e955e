"""The bases of fine-tuning jobs: which model is trained for the name in a request, and what serves it."""

from dataclasses import dataclass
from typing import Any

from sqlalchemy import or_
from sqlmodel import Session, col, select

from app.fine_tuning.names import find_model_id
from app.http.errors import HttpError, UnprocessableContent
from app.models import references
from app.settings import FineTuningBase, Settings
from app.tables import FineTuningCheckpoint, FineTuningJob
from trainers.configs import EngineChoice
from trainers.runtime.error_codes import ErrorCode

FINE_TUNED = "ft:"


class BaseUnknown(HttpError):
    """A fine-tuning job names a model that no base is known for."""

    code = ErrorCode.model_not_found


@dataclass(frozen=True)
class TrainedBase:
    """The model that a fine-tuning job trains."""

    reference: str
    name: str
    """The part of the trained model's name after `ft:`."""
    engine: EngineChoice
    training: dict[str, Any]
    """Fields of the training stage that the operator has set."""


def resolve_base(session: Session, settings: Settings, model: str) -> TrainedBase:
    """Return the base for a name of the settings' table, a fine-tuned model, or a model of ours.

    Raises BaseUnknown.
    """
    if model in settings.openai_models:
        mapped = settings.openai_models[model]
        return TrainedBase(mapped.base, model, _engine(settings, mapped), mapped.training)
    if model.startswith(FINE_TUNED):
        return _resolve_fine_tuned(session, settings, model)
    try:
        reference = str(references.resolve_model(session, model, "model"))
    except UnprocessableContent as error:
        raise _unknown(settings, model) from error
    name = model.partition("@")[0].rstrip("/").rpartition("/")[2]
    return TrainedBase(reference, name, _engine(settings, None), {})


def _resolve_fine_tuned(session: Session, settings: Settings, model: str) -> TrainedBase:
    """Continue from a fine-tuned model, with the settings of the base that it was trained from."""
    model_id = find_model_id(session, model)
    checkpoint = select(FineTuningCheckpoint.fine_tuning_job_id).where(FineTuningCheckpoint.name == model)
    is_named = or_(col(FineTuningJob.fine_tuned_model) == model, col(FineTuningJob.id).in_(checkpoint))
    job = session.exec(select(FineTuningJob).where(is_named)).first()
    if model_id is None or job is None:
        raise _unknown(settings, model)
    mapped = settings.openai_models.get(job.base_name)
    engine = EngineChoice.model_validate(job.engine)
    return TrainedBase(model_id, job.base_name, engine, mapped.training if mapped is not None else {})


def _engine(settings: Settings, mapped: FineTuningBase | None) -> EngineChoice:
    engine = (mapped.engine if mapped is not None else None) or settings.fine_tuned_engine
    return EngineChoice(engine=engine, options=mapped.options) if mapped else EngineChoice(engine=engine)


def _unknown(settings: Settings, model: str) -> BaseUnknown:
    mapped = ", ".join(sorted(settings.openai_models)) or "none"
    message = f"There is no model {model!r} to fine-tune."
    return BaseUnknown(
        message,
        hint="The operator maps OpenAI's names to bases in TUNESMITH_OPENAI_MODELS (mapped: "
        f"{mapped}). A hub id such as 'org/name', a folder under an allowed root, an id of the registry "
        "'model_…' and the name of a fine-tuned model are accepted as well.",
        fields=[{"field": "model", "message": message}],
    )
