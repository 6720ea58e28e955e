"""Previews of a dataset's rows as tokens, which runs of `prepare` and `preflight` have rendered.

Rendering needs a tokenizer, and so a worker: this module reads what it has stored.
"""

from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import Any, NamedTuple

from sqlalchemy import String, cast, select
from sqlmodel import Session, col

from app.datasets.schemas import PreviewCreate
from app.datasets.service import get_dataset
from app.jobs import service as jobs
from app.jobs.inputs import is_recent
from app.jobs.schemas import JobCreate
from app.models import references
from app.models.templates import check_template
from app.settings import Settings
from app.tables import Job, Run, RunStatus
from trainers.configs import PrepareConfig, StageKind
from trainers.configs.base import UNPRINTABLE

# Runs that are compared with the dataset, from the newest; each is one short row.
MAX_CONSIDERED = 50


class TokenSpan(NamedTuple):
    """Consecutive tokens of which all or none carry loss."""

    text: str
    loss: bool


class TokenRow(NamedTuple):
    """A completion of a row, as the model reads it."""

    row: int
    turn: int
    side: str | None
    spans: Sequence[TokenSpan]
    token_count: int
    loss_token_count: int
    truncated: bool


class PreviewRun(NamedTuple):
    """A run that renders rows of the dataset."""

    run_id: str
    job_id: str
    stage: StageKind
    status: RunStatus
    model: str
    error: dict[str, Any] | None


class DatasetPreview(NamedTuple):
    """The rows that the newest successful run has rendered, and a newer run that has not."""

    rendered: PreviewRun | None
    rows: Sequence[TokenRow]
    newest: PreviewRun | None


def create_preview(
    session: Session, settings: Settings, dataset_id: str, body: PreviewCreate, created_by: str
) -> Job:
    """Queue a run that renders rows with a model's template; raises the errors of `create_job`."""
    check_template(body.model, "model")
    dataset = get_dataset(session, dataset_id)
    # The job would report the error under `stages.0.base`, a field that this request does not have.
    references.resolve_model(session, body.model, "model")
    stage = PrepareConfig(
        stage="prepare",
        base=body.model,
        template=body.template,
        dataset=dataset.id,
        rows=body.rows,
        max_length=body.max_length,
    )
    # Older names may have characters that those of jobs may not have.
    name = f"preview of {UNPRINTABLE.sub('', dataset.name)}"[:200]
    spec = JobCreate(name=name, priority=100, queue=body.queue, stages=[stage])
    job, _ = jobs.create_job(session, settings, spec, created_by, None)
    return job


def load_preview(session: Session, dataset_id: str) -> DatasetPreview:
    """Return the newest preview of a dataset."""
    runs = _list_runs(session, dataset_id)
    rendered = next((run for run in runs if run.status is RunStatus.succeeded), None)
    newest = runs[0] if runs and runs[0] is not rendered else None
    if rendered is None:
        return DatasetPreview(None, [], newest)
    result = session.scalar(select(col(Run.result)).where(col(Run.id) == rendered.run_id)) or {}
    return DatasetPreview(rendered, [_token_row(row) for row in result.get("rows", [])], newest)


def _list_runs(session: Session, dataset_id: str) -> list[PreviewRun]:
    """Return the runs that render rows of the dataset itself, newest first."""
    columns = (Run.id, Run.job_id, Run.stage, Run.status, Run.config, Run.error)
    statement = (
        select(*(col(column) for column in columns))
        .where(
            col(Run.stage).in_([StageKind.prepare, StageKind.preflight]),
            cast(Run.config, String).contains(dataset_id, autoescape=True),
            is_recent(),
        )
        .order_by(col(Run.id).desc())
        .limit(MAX_CONSIDERED)
    )
    return [
        PreviewRun(run_id, job_id, stage, status, str(model), error)
        for run_id, job_id, stage, status, config, error in session.execute(statement)
        if (model := _rendering_model(config, stage, dataset_id)) is not None
    ]


def _rendering_model(config: dict[str, Any], stage: StageKind, dataset_id: str) -> Any:
    """Return the model whose template renders the rows; None if others than the dataset's are rendered."""
    if stage is StageKind.preflight:
        config = config.get("target", {})
    elif any(config.get(name) for name in ("source", "recipe", "filters", "convert_to", "split")):
        return None  # It renders the rows that it has made.
    return config.get("base") if config.get("dataset") == dataset_id else None


def _token_row(row: dict[str, Any]) -> TokenRow:
    return TokenRow(
        row=row["row"],
        turn=row["turn"],
        side=row.get("side"),
        spans=list(_join_tokens(row["tokens"])),
        token_count=row["token_count"],
        loss_token_count=row["loss_token_count"],
        truncated=row["truncated"],
    )


def _join_tokens(tokens: Sequence[dict[str, Any]]) -> Iterator[TokenSpan]:
    for loss, group in groupby(tokens, key=lambda token: bool(token["loss"])):
        yield TokenSpan("".join(token["text"] for token in group), loss)
