"""Evals and their runs."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from sqlalchemy import delete, literal, select, tuple_
from sqlalchemy.orm import defer
from sqlmodel import Session, col

from app.aliases.targets import find_name_holders
from app.datasets import service as datasets
from app.datasets.upload import upload_folder
from app.evals import history
from app.evals.data_source import (
    DataSource,
    FileContentSource,
    FileIdSource,
    SampledDataSource,
    find_model,
    shorten_rows,
)
from app.evals.rows import ITEM, SAMPLE, list_content, read_content, write_rows
from app.evals.stored import list_stored
from app.evals.usability import list_unusable
from app.files import service as files
from app.graders.service import name_models, parse_grader
from app.http.auth import Caller
from app.http.errors import HttpError, InUse, NotFound, UnprocessableContent, field_error
from app.http.paging import CursorQuery, paginate_by_id
from app.idempotency.creation import Record
from app.jobs import actions
from app.jobs import service as jobs
from app.jobs.schemas import JobCreate
from app.keys.limits import check_served_use
from app.settings import Settings, get_settings
from app.storage.database import UTCDateTime, read_session, transaction
from app.tables import Dataset, Eval, EvalRun, Evaluation, Run, RunStatus
from app.tables.base import utc_now
from trainers.configs import EngineKind
from trainers.configs.base import UNPRINTABLE
from trainers.runtime.error_codes import ErrorCode

# The fields of the job's stage, as the client named them.
FIELDS = {
    "stages.0.model": "data_source.model",
    "stages.0.metrics": "testing_criteria",
    "stages.0.dataset": "data_source.source",
}
MAX_JOB_NAME = 200
# Configs whose metadata are filters of stored answers.
STORED_CONFIGS = ("logs", "stored_completions")
EvalStatus = Literal["queued", "in_progress", "completed", "canceled", "failed"]
STATUSES: dict[RunStatus, EvalStatus] = {
    RunStatus.queued: "queued",
    RunStatus.running: "in_progress",
    RunStatus.pausing: "in_progress",
    RunStatus.paused: "queued",
    RunStatus.cancelling: "in_progress",
    RunStatus.succeeded: "completed",
    RunStatus.failed: "failed",
    RunStatus.cancelled: "canceled",
    RunStatus.skipped: "canceled",
}
# What was exported may be large, and lists do not show it.
EVAL_OBJECT: Any = Eval.imported_object
RUN_OBJECT: Any = EvalRun.imported_object


class EvalNotFound(NotFound):
    """No eval, run of it or output item has this id."""

    code = ErrorCode.eval_not_found


def list_evals(
    session: Session, cursor: CursorQuery, order_by: Literal["created_at", "updated_at"] = "created_at"
) -> tuple[Sequence[Eval], bool]:
    """Return a page of evals, and whether more follow.

    In the order of their changes, an `after` whose eval is gone begins with the first page.
    """
    statement = select(Eval).options(defer(EVAL_OBJECT))
    if order_by == "created_at":
        return paginate_by_id(session, statement, col(Eval.id), cursor)
    key = tuple_(col(Eval.updated_at), col(Eval.id))
    last = session.get(Eval, cursor.after) if cursor.after is not None else None
    if last is not None:
        position = tuple_(literal(last.updated_at, UTCDateTime()), literal(last.id))
        statement = statement.where(key < position if cursor.descending else key > position)
    columns = (col(Eval.updated_at), col(Eval.id))
    ordered = statement.order_by(*(column.desc() for column in columns) if cursor.descending else columns)
    found = session.scalars(ordered.limit(cursor.limit + 1)).all()
    return found[: cursor.limit], len(found) > cursor.limit


def get_eval(session: Session, eval_id: str, *, lock: bool = False) -> Eval:
    """Return an eval, perhaps locked until the end of the transaction; raises EvalNotFound."""
    found = session.get(Eval, eval_id, with_for_update=lock)
    if found is None:
        raise EvalNotFound(f"There is no eval {eval_id!r}.", hint="List the evals with GET /v1/evals.")
    return found


def create_eval(definition: Eval, created_by: str, record: Record) -> str:
    """Keep a new eval, and return its id; raises the errors of `check_served_use` for its graders."""
    settings = get_settings()
    graders = [parse_grader(criterion, settings) for criterion in definition.testing_criteria]
    with transaction() as session:
        check_served_use(session, created_by, graders)
        session.add(definition)
        record(session, definition.id)
    return definition.id


def update_eval(session: Session, eval_id: str, name: str | None, custom: dict[str, str] | None) -> Eval:
    """Change the name or the metadata of an eval, unless they are None; raises EvalNotFound."""
    definition = get_eval(session, eval_id)
    if name is not None:
        definition.name = name
    if custom is not None:
        definition.custom = custom
    definition.updated_at = utc_now()
    return definition


def delete_eval(session: Session, eval_id: str) -> None:
    """Delete an eval with its runs; raises EvalNotFound, and InUse while a run is not finished.

    The jobs and evaluations of the runs remain.
    """
    get_eval(session, eval_id, lock=True)
    of_eval = col(EvalRun.eval_id) == eval_id
    unfinished = select(col(EvalRun.id)).join(Run, col(Run.job_id) == col(EvalRun.job_id))
    running = session.scalars(unfinished.where(of_eval, col(Run.finished_at).is_(None))).all()
    if running:
        raise InUse(
            f"The eval {eval_id} has unfinished runs, such as {running[0]}.",
            hint="Cancel them, or wait until they have finished.",
            used_by=list(running),
        )
    history.delete_items(session, session.scalars(select(col(EvalRun.id)).where(of_eval)).all())
    session.execute(delete(EvalRun).where(of_eval))
    session.execute(delete(Eval).where(col(Eval.id) == eval_id))


@dataclass(frozen=True)
class EvalRunSpec:
    """A run of an eval, as a client asks for it."""

    eval_id: str
    name: str
    data_source: DataSource
    custom: dict[str, str]


def create_run(settings: Settings, asked: EvalRunSpec, caller: Caller, record: Record) -> str:
    """Queue a run of an eval and return its id; raises EvalNotFound, FileNotFound and UnprocessableContent.

    No session is open while the rows are read and stored.
    """
    data_source = asked.data_source
    with read_session() as session:
        definition = get_eval(session, asked.eval_id)
        if unusable := list_unusable(session, definition, settings):
            first = unusable[0]
            message = f"This eval cannot run here. {first.name}: {first.reason}"
            raise field_error("eval_id", message)
    # A dataset or a job without a name could not be recognized in a list; one from OpenAI has any characters.
    name = UNPRINTABLE.sub(" ", asked.name or definition.name or definition.id)
    _check_effort(data_source)
    dataset = _store_rows(settings, definition, name, data_source, caller)
    spec = _make_spec(definition, name, data_source, dataset)
    with transaction() as session:
        # The lock excludes a deletion of the eval, which may have happened while the rows were stored.
        get_eval(session, asked.eval_id, lock=True)
        try:
            job, _ = jobs.create_job(session, settings, spec, caller.key_id, None)
        except UnprocessableContent as error:
            raise _rename_fields(error) from None
        run = EvalRun(
            eval_id=asked.eval_id,
            job_id=job.id,
            name=asked.name,
            model=find_model(data_source) or "",
            data_source=shorten_rows(data_source.model_dump(mode="json", exclude_none=True)),
            testing_criteria=definition.testing_criteria,
            custom=asked.custom,
        )
        session.add(run)
        record(session, run.id)
    return run.id


def list_runs(
    session: Session, eval_id: str, cursor: CursorQuery, status: EvalStatus | None
) -> tuple[Sequence[EvalRun], bool]:
    """Return a page of the runs of an eval, perhaps with a status; raises EvalNotFound."""
    get_eval(session, eval_id)
    statement = select(EvalRun).where(col(EvalRun.eval_id) == eval_id).options(defer(RUN_OBJECT))
    if status is not None:
        own = [one for one, shown in STATUSES.items() if shown == status]
        of_status = select(col(Run.job_id)).where(col(Run.status).in_(own))
        imported = col(EvalRun.imported_status) == status
        statement = statement.where(col(EvalRun.job_id).in_(of_status) | imported)
    return paginate_by_id(session, statement, col(EvalRun.id), cursor)


def get_run(session: Session, eval_id: str, run_id: str) -> EvalRun:
    """Return a run of an eval; raises EvalNotFound."""
    get_eval(session, eval_id)
    run = session.get(EvalRun, run_id)
    if run is None or run.eval_id != eval_id:
        raise EvalNotFound(
            f"The eval {eval_id} has no run {run_id!r}.", hint=f"List them with GET /v1/evals/{eval_id}/runs."
        )
    return run


def find_progress(session: Session, runs: Sequence[EvalRun]) -> dict[str, tuple[Run, Evaluation | None]]:
    """Return the run of the stage of each run's job, with its evaluation if it has ended, by the id.

    Imported runs have no job, and are absent.
    """
    jobs_by_run = {run.id: run.job_id for run in runs if run.job_id is not None}
    stages = select(Run).where(col(Run.job_id).in_(jobs_by_run.values()), col(Run.position) == 0)
    by_job = {run.job_id: run for run in session.scalars(stages)}
    ended = select(Evaluation).where(col(Evaluation.run_id).in_([run.id for run in by_job.values()]))
    evaluations = {evaluation.run_id: evaluation for evaluation in session.scalars(ended)}
    found = {}
    for run_id, job_id in jobs_by_run.items():
        stage = by_job[job_id]
        found[run_id] = stage, evaluations.get(stage.id)
    return found


def cancel_run(eval_id: str, run_id: str) -> None:
    """Cancel a run; one that has ended stays as it is. Raises EvalNotFound."""
    with transaction() as session:
        run = get_run(session, eval_id, run_id)
        for stage, _ in find_progress(session, [run]).values():
            if not stage.status.finished:
                actions.cancel(session, stage.job_id)


def delete_run(session: Session, eval_id: str, run_id: str) -> None:
    """Delete a run that has ended; its job and its evaluation remain. Raises EvalNotFound and InUse."""
    run = get_run(session, eval_id, run_id)
    for stage, _ in find_progress(session, [run]).values():
        if not stage.status.finished:
            message = f"The run {run_id} is {stage.status}."
            raise InUse(message, hint="Cancel it first.", used_by=[stage.job_id])
    history.delete_items(session, [run.id])
    session.delete(run)


def _check_effort(data_source: DataSource) -> None:
    """Raise UnprocessableContent for a reasoning effort where the engine of the model has none."""
    model = find_model(data_source)
    if model is None or not isinstance(data_source, SampledDataSource):
        return
    with read_session() as session:
        holder = find_name_holders(session, [model]).get(model)
    effort = data_source.sampling_params.reasoning_effort
    if effort is not None and holder is not None and holder.engine in (EngineKind.hf, EngineKind.mlx):
        message = f"{model!r} is served by {holder.engine}, which has no reasoning effort. Leave it out."
        raise field_error("data_source.sampling_params.reasoning_effort", message)


def _store_rows(
    settings: Settings, definition: Eval, name: str, data_source: DataSource, caller: Caller
) -> Dataset:
    source, config = data_source.source, definition.data_source_config
    schema = config.get("item_schema")
    with upload_folder(settings.data_dir / "uploads") as folder:
        path = folder / "rows.jsonl"
        if isinstance(source, FileIdSource):
            with _open_file(source.id) as content:
                write_rows(data_source, read_content(content), schema, path)
        elif isinstance(source, FileContentSource):
            write_rows(data_source, list_content(source), schema, path)
        else:
            metadata = config.get("metadata") or {} if config["type"] in STORED_CONFIGS else {}
            filters = {name: str(value) for name, value in metadata.items()}
            write_rows(data_source, list_stored(caller, source, filters), schema, path)
        dataset, _ = datasets.create_dataset(path, name[:MAX_JOB_NAME])
    if not dataset.trainable:
        fault = dataset.report["faults"][0]
        raise UnprocessableContent(
            f"data_source.source: Line {fault['line']}: {fault['message']}",
            fields=[{"field": "data_source.source", "message": fault["message"]}],
        )
    return dataset


def _open_file(file_id: str) -> Any:
    with read_session() as session:
        try:
            file = files.get_file(session, file_id)
        except NotFound as error:
            error.fields = [{"field": "data_source.source.id", "message": error.message}]
            raise
    path: Path = files.fetch_content(file)
    return path.open("rb")


def _make_spec(definition: Eval, name: str, data_source: DataSource, dataset: Dataset) -> JobCreate:
    metrics = [
        # Every row counts as passed, failed or errored: errors of graders do not end the run.
        {"metric": "grader", "name": f"criterion_{i}", "grader": grader, "item": ITEM, "max_error_share": 1.0}
        for i, grader in enumerate(name_models(one, get_settings()) for one in definition.testing_criteria)
    ]
    stage: dict[str, Any] = {"stage": "evaluate", "dataset": dataset.id, "metrics": metrics}
    if isinstance(data_source, SampledDataSource) and data_source.model is not None:
        stage |= data_source.sampling_params.stage_fields | {"model": {"deployment": data_source.model}}
    else:
        stage["model"] = {"field": SAMPLE}
    return JobCreate.model_validate(
        {"name": f"eval: {name}"[:MAX_JOB_NAME], "labels": {"eval": definition.id}, "stages": [stage]}
    )


def _rename_fields(error: UnprocessableContent) -> HttpError:
    """Return the error of the job with the fields of the client's request."""
    for field in error.fields or []:
        for own, given in FIELDS.items():
            if field["field"].startswith(own):
                error.message = error.message.replace(field["field"], given)
                field["field"] = given
    return error
