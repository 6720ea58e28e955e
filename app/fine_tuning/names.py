"""The names of fine-tuned models, `ft:{base}:{organization}:{suffix}:{id}`, and what they stand for."""

import re

from sqlmodel import Session, col, select

from app.tables import FineTuningCheckpoint, FineTuningJob, Model, Run
from app.tables.base import new_id

# 40 of the 80 random bits of the job's id.
ID_CHARACTERS = 8


def make_model_name(base: str, organization: str, suffix: str | None, job_id: str) -> str:
    """Return the name of the model that a fine-tuning job trains."""
    slug = _slugify(suffix or "").strip("-").lower()
    return f"ft:{_slugify(base)}:{organization}:{slug}:{job_id[-ID_CHARACTERS:]}"


def _slugify(text: str) -> str:
    """Return a part of a name, without what separates parts and without what a path would need encoded."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", text)


def make_checkpoint_name(model_name: str, step: int) -> str:
    """Return the name of the model of a checkpoint."""
    return f"{model_name}:ckpt-step-{step}"


def new_job_id() -> str:
    """Return the id of a new fine-tuning job."""
    return new_id("ftjob", "-")


def find_model_id(session: Session, name: str) -> str | None:
    """Return the registry id of a fine-tuned model or of a checkpoint; None if there is none."""
    trained = (
        select(Run.model_id)
        .join(FineTuningJob, col(FineTuningJob.job_id) == col(Run.job_id))
        .where(FineTuningJob.fine_tuned_model == name)
    )
    checkpoint = select(FineTuningCheckpoint.model_id).where(FineTuningCheckpoint.name == name)
    found = session.exec(trained).first() or session.exec(checkpoint).first()
    model = session.get(Model, found) if found is not None else None
    return model.id if model is not None and model.deleted_at is None else None
