"""Creating, starting and reading rescues."""

from collections.abc import Sequence
from typing import Any

from sqlalchemy import select
from sqlmodel import Session, col

from app.files import service as files
from app.fine_tuning import service as fine_tuning
from app.fine_tuning.bases import resolve_base
from app.fine_tuning.hyperparameters import FineTuningMethod
from app.fine_tuning.spec import FineTuningSpec
from app.http.errors import Conflict, InUse, NotFound, field_error
from app.http.paging import PageQuery, paginate_newest_first
from app.jobs import actions
from app.jobs import service as jobs
from app.jobs.schemas import JobCreate
from app.rescues.plan import RECORD, estimate_cost, make_later_stages
from app.rescues.schemas import RescueCreate, RescueStart
from app.settings import Settings
from app.storage.database import read_session, transaction
from app.tables import Dataset, FineTuningJob, Rescue, Run, RunStatus
from trainers.configs import FetchConfig
from trainers.openai_account.fine_tuned_models import FineTunedModel
from trainers.runtime.error_codes import ErrorCode

TRAINING_FILE, VALIDATION_FILE, TRAIN, TEST = "training_file", "validation_file", "train", "test"
MAX_SUFFIX, MAX_METADATA = 40, 512


class RescueNotFound(NotFound):
    """No rescue has this id."""

    code = ErrorCode.rescue_not_found


class RescueNotReady(Conflict):
    """The rescue cannot be started now."""

    code = ErrorCode.rescue_not_ready


def create_rescue(settings: Settings, body: RescueCreate, created_by: str) -> str:
    """Commit a rescue with the job that fetches its files; return its id.

    Raises UnprocessableContent for a dataset that does not exist.
    """
    with transaction() as session:
        rescue = Rescue(fine_tuned_model=body.fine_tuned_model, created_by=created_by)
        session.add(rescue)
        session.flush()
        stage = FetchConfig(rescue=rescue.id, **body.model_dump())
        spec = JobCreate(name=rescue.id.replace("_", "-"), stages=[stage])
        job, _ = jobs.create_job(session, settings, spec, created_by, None)
        rescue.fetch_job_id = job.id
    return rescue.id


def get_rescue(session: Session, rescue_id: str) -> Rescue:
    """Return a rescue; raises RescueNotFound."""
    rescue = session.get(Rescue, rescue_id)
    if rescue is None:
        raise RescueNotFound(
            f"There is no rescue {rescue_id!r}.", hint="List the rescues with GET /api/v1/rescues."
        )
    return rescue


def list_rescues(session: Session, paging: PageQuery) -> tuple[Sequence[Rescue], str | None]:
    """Return a page of rescues, newest first."""
    return paginate_newest_first(session, select(Rescue), col(Rescue.id), paging)


def list_started(session: Session, fine_tuned_model: str) -> Sequence[Rescue]:
    """Return the rescues of a model that have been started, newest first."""
    of_model = col(Rescue.fine_tuned_model) == fine_tuned_model, col(Rescue.job_id).is_not(None)
    return session.scalars(select(Rescue).where(*of_model).order_by(col(Rescue.id).desc())).all()


def list_job_runs(session: Session, job_id: str | None) -> Sequence[Run]:
    """Return the runs of a job in order; none for a job that was deleted."""
    return jobs.list_runs(session, job_id) if job_id is not None else []


def delete_rescue(session: Session, rescue_id: str) -> None:
    """Delete a rescue whose jobs have ended; they, their datasets and the new model stay.

    Raises RescueNotFound and InUse.
    """
    rescue = get_rescue(session, rescue_id)
    runs = [*list_job_runs(session, rescue.fetch_job_id), *list_job_runs(session, rescue.job_id)]
    if unfinished := [run.job_id for run in runs if not run.status.finished]:
        raise InUse(
            f"The job {unfinished[0]} of {rescue_id} has not ended.",
            hint=f"Cancel it first: POST /api/v1/jobs/{unfinished[0]}/cancel.",
            used_by=unfinished[:1],
        )
    session.delete(rescue)


def start_rescue(settings: Settings, rescue_id: str, body: RescueStart, created_by: str) -> None:
    """Commit the job that trains, records and compares; continue one whose recording has failed.

    Raises:
        RescueNotFound: There is no such rescue.
        RescueNotReady: Its files are not here yet, or its job has not failed at recording.
        UnprocessableContent: The expected cost is above `max_cost`, or a field names nothing.
    """
    with read_session() as session:
        rescue = get_rescue(session, rescue_id)
        if rescue.fine_tuning_job_id is not None:
            job_id = rescue.job_id
        else:
            fetched = _get_fetched(session, rescue)
            base = resolve_base(session, settings, body.base or str(fetched["source"]["model"]))
            job_id = None
    if rescue.fine_tuning_job_id is not None:
        _continue(str(job_id), body, created_by)
        return
    estimate = estimate_cost(settings, fetched, body)
    if estimate.cost is None:
        raise field_error("input_price", f"The prices of {fetched['source']['model']} are unknown: set them.")
    if estimate.cost > body.max_cost:
        raise field_error(
            "max_cost",
            f"The responses are expected to cost {estimate.cost:.2f} USD, which is above {body.max_cost:g}.",
        )
    datasets = {each["part"]: each["id"] for each in fetched["datasets"]}
    stages = make_later_stages(rescue_id, fetched, datasets[TEST], body, estimate, base.engine)
    own_files = _name_files(rescue_id, fetched, datasets)
    source = FineTunedModel.model_validate(fetched["source"])
    spec = FineTuningSpec(
        model=body.base or source.model,
        training_file=own_files[TRAIN],
        validation_file=own_files.get(VALIDATION_FILE),
        method=FineTuningMethod(source.method_type),
        grader=source.method_config.get("grader"),
        suffix=_read_suffix(source.fine_tuned_model),
        metadata={"rescue": rescue_id, "fine_tuned_model": source.fine_tuned_model[:MAX_METADATA]},
        training=body.training,
        later_stages=stages,
        queue=body.training_queue,
    )
    fine_tuning.create_job(
        settings, spec, created_by, lambda session, id: _record_start(session, rescue_id, id, body)
    )


def _get_fetched(session: Session, rescue: Rescue) -> dict[str, Any]:
    """Return the result of the job that fetched the files; raises RescueNotReady."""
    runs = list_job_runs(session, rescue.fetch_job_id)
    if not runs or runs[0].status is not RunStatus.succeeded or runs[0].result is None:
        status = runs[0].status if runs else "deleted"
        raise RescueNotReady(
            f"The files of {rescue.id} are not here: the job {rescue.fetch_job_id} is {status}.",
            hint=f"Wait until it has succeeded, or see its error: GET /api/v1/rescues/{rescue.id}.",
        )
    return runs[0].result


def _name_files(rescue_id: str, fetched: dict[str, Any], datasets: dict[str, str]) -> dict[str, str]:
    """Return the ids of files with the purpose fine-tune for the fetched datasets, which are created once."""
    with transaction() as session:
        rescue = session.get_one(Rescue, rescue_id, with_for_update=True)
        if not rescue.files:
            found = {}
            for role in (TRAINING_FILE, VALIDATION_FILE, TRAIN):
                if role in datasets:
                    dataset = session.get_one(Dataset, datasets[role])
                    name = fetched["files"].get(role, {}).get("filename") or f"{rescue_id}-{role}.jsonl"
                    found[role] = files.name_dataset(session, dataset, str(name)).id
            rescue.files = found
        return dict(rescue.files)


def _record_start(session: Session, rescue_id: str, fine_tuning_job_id: str, body: RescueStart) -> None:
    rescue = session.get_one(Rescue, rescue_id, with_for_update=True, populate_existing=True)
    if rescue.fine_tuning_job_id is not None:
        raise RescueNotReady(f"The rescue {rescue_id} has been started by another request.")
    rescue.fine_tuning_job_id = fine_tuning_job_id
    rescue.job_id = session.get_one(FineTuningJob, fine_tuning_job_id).job_id
    rescue.start = body.model_dump(mode="json")


def _continue(job_id: str, body: RescueStart, created_by: str) -> None:
    """Let a recording that has failed continue with another bound of the cost."""
    with transaction() as session:
        run = next((run for run in list_job_runs(session, job_id) if run.name == RECORD), None)
        if run is None or run.status is not RunStatus.failed:
            raise RescueNotReady(
                f"The rescue has been started: its job {job_id} has no recording that failed.",
                hint=f"See GET /api/v1/jobs/{job_id}.",
            )
        run.config = run.config | {"max_cost": body.max_cost, "requests_per_minute": body.requests_per_minute}
        session.flush()
        actions.retry(session, job_id, created_by)


def _read_suffix(fine_tuned_model: str) -> str:
    """Return the suffix of `ft:base:organization:suffix:id`, or a word in its place."""
    parts = fine_tuned_model.split(":")
    return (parts[3] if len(parts) > 4 and parts[3] else "rescue")[:MAX_SUFFIX]
