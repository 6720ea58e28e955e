"""Fine-tuning jobs: created and read as the jobs that carry them out."""

import math
import re
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError
from sqlalchemy import select
from sqlmodel import Session, col

from app.files import service as files
from app.fine_tuning.bases import TrainedBase, resolve_base
from app.fine_tuning.hyperparameters import ChosenHyperparameters, choose_hyperparameters
from app.fine_tuning.names import make_model_name, new_job_id
from app.fine_tuning.spec import FineTuningSpec
from app.graders.service import read_grader
from app.http.errors import HttpError, NotFound, UnprocessableContent, field_error
from app.http.paging import CursorQuery, paginate_by_id
from app.idempotency.creation import Record, ignore_creation
from app.jobs import service as jobs
from app.jobs.schemas import JobCreate
from app.settings import Settings
from app.storage.database import json_text, read_session, transaction
from app.tables import Dataset, FilePurpose, FineTuningJob, Run
from trainers.configs import parse_stage
from trainers.configs.training import TrainingConfig
from trainers.runtime.error_codes import ErrorCode

KEPT_CHECKPOINTS = 3
# A step-wise log of more steps would fill the database, and no curve shows more points.
MAX_LOGGED_STEPS = 1000
LABEL = "fine_tuning_job"
MAX_JOB_NAME = 200  # The folder of a base may have a longer name.
GRADER_FIELD = "method.reinforcement.grader"
# The parameters of a request that become these fields of the stage.
PARAMETERS = {
    "base": "model",
    "dataset": "training_file",
    "validation_dataset": "validation_file",
    "seed": "seed",
    "rewards": GRADER_FIELD,
    "epochs": "n_epochs",
    "batch_size": "batch_size",
    "learning_rate": "learning_rate_multiplier",
    "beta": "beta",
}
REINFORCEMENT_PARAMETERS = {
    "num_generations": "compute_multiplier",
    "validate_every_steps": "eval_interval",
    "max_validation_rows": "eval_samples",
}
HYPERPARAMETERS = ("epochs", "batch_size", "learning_rate", "beta", *REINFORCEMENT_PARAMETERS)
# Fields of the stage that follow from OpenAI's checkpoints and events.
FIXED_FIELDS = ("log_every_steps", "save_every_epoch", "keep_checkpoints")


class FineTuningJobNotFound(NotFound):
    """No fine-tuning job has this id."""

    code = ErrorCode.job_not_found


class TrainingFileUnusable(UnprocessableContent):
    """A file of a fine-tuning job does not exist, or has no rows to train on."""

    code = ErrorCode.file_not_found


@dataclass(frozen=True)
class FineTuningState:
    """A fine-tuning job, and the run that trains its model."""

    job: FineTuningJob
    run: Run


@dataclass(frozen=True)
class _Plan:
    base: TrainedBase
    hyperparameters: ChosenHyperparameters
    seed: int
    stage: dict[str, Any]


def create_job(
    settings: Settings, spec: FineTuningSpec, created_by: str, record: Record = ignore_creation
) -> str:
    """Commit a fine-tuning job with the job that carries it out; return its id. See `RepeatableRequest`.

    Raises BaseUnknown, TrainingFileUnusable, and the errors of a job with the names of OpenAI's parameters.
    """
    with read_session() as session:
        plan = _make_plan(session, settings, spec, created_by)
    job_id = new_job_id()
    name = make_model_name(plan.base.name, settings.organization, spec.suffix, job_id)
    try:
        create = JobCreate.model_validate(
            {
                "name": name[:MAX_JOB_NAME],
                "labels": {LABEL: job_id},
                # The later stages name their own: not all of them need the hardware of the training.
                "stages": [{"queue": spec.queue, **plan.stage}, *spec.later_stages],
            }
        )
        with transaction() as session:
            job, _ = jobs.create_job(session, settings, create, created_by, None)
            session.add(_make_row(settings, spec, plan, job_id, job.id, name))
            record(session, job_id)
    except HttpError as error:
        raise _name_parameters(error, spec) from error
    return job_id


def get_state(session: Session, fine_tuning_job_id: str) -> FineTuningState:
    """Return a fine-tuning job; raises FineTuningJobNotFound."""
    job = session.get(FineTuningJob, fine_tuning_job_id)
    if job is None:
        raise FineTuningJobNotFound(
            f"There is no fine-tuning job {fine_tuning_job_id!r}.",
            hint="List the jobs with GET /v1/fine_tuning/jobs.",
        )
    return FineTuningState(job, jobs.list_runs(session, job.job_id)[0])


def list_states(
    session: Session, cursor: CursorQuery, metadata: Mapping[str, str], *, without_metadata: bool
) -> tuple[list[FineTuningState], bool]:
    """Return a page of fine-tuning jobs with these metadata, and whether more follow."""
    statement = select(FineTuningJob)
    for key, value in metadata.items():
        statement = statement.where(json_text(col(FineTuningJob.client_metadata), key) == value)
    if without_metadata:
        statement = statement.where(col(FineTuningJob.client_metadata) == {})
    found, has_more = paginate_by_id(session, statement, col(FineTuningJob.id), cursor)
    runs = {run.job_id: run for run in _list_first_runs(session, [job.job_id for job in found])}
    return [FineTuningState(job, runs[job.job_id]) for job in found], has_more


def _make_plan(session: Session, settings: Settings, spec: FineTuningSpec, created_by: str) -> _Plan:
    base = resolve_base(session, settings, spec.model)
    _refuse_other_parameters(spec, {**base.training, **spec.training})
    dataset = _find_rows(session, spec.training_file, "training_file")
    fields = {
        **base.training,
        **spec.training,
        "stage": spec.method.stage,
        "base": base.reference,
        "dataset": dataset.id,
    }
    if spec.validation_file is not None:
        fields["validation_dataset"] = _find_rows(session, spec.validation_file, "validation_file").id
    if spec.grader is not None:
        grader = read_grader(session, spec.grader, settings, created_by, GRADER_FIELD)
        fields["rewards"] = [{"kind": "grader", "grader": grader.model_dump(mode="json")}]
    rows = max(1, dataset.row_count)
    chosen = choose_hyperparameters(spec.method, spec.hyperparameters, rows, _parse(fields, spec))
    seed = secrets.randbelow(2**31) if spec.seed is None else spec.seed
    steps = math.ceil(rows / chosen.values["batch_size"]) * int(chosen.values["n_epochs"])
    stage = {
        **fields,
        **chosen.fields,
        "seed": seed,
        "log_every_steps": max(1, steps // MAX_LOGGED_STEPS),
        "save_every_epoch": True,
        "keep_checkpoints": KEPT_CHECKPOINTS,
    }
    if spec.method.stage in ("sft", "dpo"):
        # As OpenAI: the model is that of the last step, and earlier ones have names of their own.
        stage["keep_best"] = False
    _parse(stage, spec)
    return _Plan(base, chosen, seed, stage)


def _refuse_other_parameters(spec: FineTuningSpec, training: Mapping[str, Any]) -> None:
    """Raise UnprocessableContent for a field of the stage that is fixed or has a parameter of its own."""
    fixed = {*FIXED_FIELDS, *(("keep_best",) if spec.method.stage in ("sft", "dpo") else ())}
    parameters = _list_parameters(spec)
    # The learning rate is that of multiplier 1; a beta of GRPO is another one than DPO's.
    free = {"learning_rate"} if spec.method.stage == "dpo" else {"learning_rate", "beta"}
    for name in training:
        if name in fixed:
            raise field_error(f"training.{name}", "It is the same for all fine-tuning jobs: leave it out.")
        if name in {"stage", *parameters} - free:
            parameter = _name_parameter(name, spec) if name in parameters else "method.type"
            raise field_error(f"training.{name}", f"Set {parameter} instead.")


def _parse(stage: dict[str, Any], spec: FineTuningSpec) -> TrainingConfig:
    """Validate a stage; the errors name the request's parameters."""
    try:
        config = parse_stage(stage)
    except ValidationError as error:
        faults = [
            {"field": _name_field(found["loc"][1:]), "message": found["msg"]} for found in error.errors()
        ]
        raise _name_parameters(
            UnprocessableContent(f"{faults[0]['field']}: {faults[0]['message']}", fields=faults), spec
        ) from error
    assert isinstance(config, TrainingConfig), "every method is a training stage"
    return config


def _name_field(location: Sequence[int | str]) -> str:
    # An error of several fields together has no location.
    return ".".join(["stages", "0", *map(str, location)]) if location else "training"


def _find_rows(session: Session, file_id: str, field: str) -> Dataset:
    """Return the dataset of a file for training; raises TrainingFileUnusable naming the field."""
    try:
        file = files.get_file(session, file_id)
    except files.FileNotFound as error:
        raise _unusable(field, error.message, "Upload it with purpose='fine-tune'.") from error
    dataset = files.get_dataset(session, file)
    if file.purpose is not FilePurpose.fine_tune or dataset is None or dataset.deleted_at is not None:
        message = f"The file {file_id} has the purpose {file.purpose} and no rows to train on."
        raise _unusable(field, message, "Upload it with purpose='fine-tune'.")
    return dataset


def _unusable(field: str, message: str, hint: str) -> TrainingFileUnusable:
    return TrainingFileUnusable(message, hint=hint, fields=[{"field": field, "message": message}])


def _make_row(
    settings: Settings, spec: FineTuningSpec, plan: _Plan, id: str, job_id: str, name: str
) -> FineTuningJob:
    config: dict[str, Any] = {"hyperparameters": plan.hyperparameters.values}
    if spec.grader is not None:
        config["grader"] = spec.grader
    return FineTuningJob(
        id=id,
        job_id=job_id,
        model=spec.model,
        base=plan.base.reference,
        base_name=plan.base.name,
        training_file=spec.training_file,
        validation_file=spec.validation_file,
        suffix=spec.suffix,
        seed=plan.seed,
        method={"type": spec.method, spec.method.value: config},
        explanation=plan.hyperparameters.explanation,
        integrations=spec.integrations,
        client_metadata=spec.metadata,
        engine=plan.base.engine.model_dump(mode="json"),
        organization=settings.organization,
        fine_tuned_model=name,
    )


def _name_parameters(error: HttpError, spec: FineTuningSpec) -> HttpError:
    """Replace the paths of our stage in an error by the parameters of the request that they come from."""

    def rename(match: re.Match[str]) -> str:
        field = match[1].partition(".")[0]
        return _name_parameter(field, spec) if field in _list_parameters(spec) else f"training.{match[1]}"

    def replace(text: str) -> str:
        return re.sub(r"stages\.0\.([A-Za-z0-9_.]*[A-Za-z0-9_])", rename, text)

    error.message = replace(error.message)
    error.fields = error.fields and [
        {name: replace(text) if isinstance(text, str) else text for name, text in field.items()}
        for field in error.fields
    ]
    return error


def _name_parameter(field: str, spec: FineTuningSpec) -> str:
    name = _list_parameters(spec)[field]
    return f"method.{spec.method}.hyperparameters.{name}" if field in HYPERPARAMETERS else name


def _list_parameters(spec: FineTuningSpec) -> dict[str, str]:
    """Return the parameters of the request's method, by the field of the stage that each becomes."""
    return PARAMETERS | (REINFORCEMENT_PARAMETERS if spec.method.stage == "grpo" else {})


def _list_first_runs(session: Session, job_ids: Sequence[str]) -> Sequence[Run]:
    return session.scalars(select(Run).where(col(Run.job_id).in_(job_ids), col(Run.position) == 0)).all()
