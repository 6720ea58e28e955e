"""The datasets and models that jobs read: which unfinished jobs use one, and which were deleted."""

import json
import re
from collections.abc import Sequence

from pydantic import ValidationError
from sqlalchemy import ColumnElement, String, cast, func, or_, select
from sqlmodel import Session, col

from app.tables import FINISHED, Dataset, Evaluation, Model, Run
from trainers.configs import StageDataset, StageOutput
from trainers.configs.references import find_references

INPUT_ID = re.compile(r"\b(?:dataset|evaluation|model)_[0-9a-hjkmnp-tv-z]{26}\b")
MAX_LISTED = 100
MAX_SEARCHED_RUNS = 10_000


def list_unfinished_jobs(session: Session, input_id: str) -> list[str]:
    """Return the ids of unfinished jobs of which a stage reads or has produced the dataset or model."""
    unfinished = select(col(Run.job_id)).where(col(Run.status).not_in(FINISHED))
    statement = select(col(Run.job_id)).where(col(Run.job_id).in_(unfinished), mentions(input_id))
    return list(session.scalars(statement.distinct().order_by(col(Run.job_id)).limit(MAX_LISTED)))


def mentions(input_id: str) -> ColumnElement[bool]:
    """Return the condition for runs that read or have produced a dataset or model.

    An id has 26 random characters, so a search in the text of the config finds it and nothing else.
    """
    return or_(
        cast(Run.config, String).contains(input_id, autoescape=True),
        cast(Run.result, String).contains(input_id, autoescape=True),
        col(Run.model_id) == input_id,
    )


def is_recent() -> ColumnElement[bool]:
    """Return the condition for the newest runs: no index finds an id in a config, so a search reads each."""
    oldest = select(col(Run.id)).order_by(col(Run.id).desc()).offset(MAX_SEARCHED_RUNS).limit(1)
    return col(Run.id) >= func.coalesce(oldest.scalar_subquery(), "")


def is_trained_on(dataset_id: str) -> ColumnElement[bool]:
    """Return the condition for models trained on a dataset, alone or in a mixture."""
    # The field of a mixture's part; lists of held-out datasets contain ids without a field.
    named = cast(Run.config, String).contains(f'"dataset": "{dataset_id}"', autoescape=True)
    return or_(col(Model.dataset_id) == dataset_id, col(Model.run_id).in_(select(col(Run.id)).where(named)))


def find_deleted_inputs(
    session: Session, runs: Sequence[Run], readers: Sequence[Run] | None = None
) -> list[str]:
    """Return the ids that some runs of a job read, all by default, and whose data was deleted."""
    named = {run.name: run for run in runs}
    ids: set[str] = set()
    for run in runs if readers is None else readers:
        ids.update(INPUT_ID.findall(json.dumps(run.config)))
        ids.update(_find_stage_inputs(run, named))
    existing: set[str] = set()
    for table, prefix in ((Dataset, "dataset_"), (Model, "model_")):
        named_ids = [input_id for input_id in ids if input_id.startswith(prefix)]
        if named_ids:
            rows = select(col(table.id)).where(col(table.id).in_(named_ids), col(table.deleted_at).is_(None))
            existing.update(session.scalars(rows))
    if evaluations := [input_id for input_id in ids if input_id.startswith("evaluation_")]:
        existing.update(
            session.scalars(select(col(Evaluation.id)).where(col(Evaluation.id).in_(evaluations)))
        )
    return sorted(ids - existing)


def _find_stage_inputs(run: Run, named: dict[str, Run]) -> set[str]:
    """Return the ids of the outputs of earlier stages that a run reads, as far as they exist."""
    try:
        references = find_references(run.stage_config())
    except ValidationError:
        # The run is of an older version, whose config is only read.
        return set()
    ids: set[str] = set()
    for value in (reference.value for reference in references):
        producer = named.get(value.stage) if isinstance(value, StageOutput | StageDataset) else None
        if isinstance(value, StageDataset) and producer is not None:
            parts = (producer.result or {}).get("datasets", [])
            ids.update(dataset["id"] for dataset in parts if dataset["part"] == value.part)
        elif producer is not None and producer.model_id is not None:
            ids.add(producer.model_id)
    return ids
