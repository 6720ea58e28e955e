"""How an attempt ended, read from its run directory: what it made is published, then SQL is told."""

import errno
import logging
import shutil
import signal
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, Field, ValidationError
from pydantic_core import from_json
from sqlalchemy.exc import OperationalError
from sqlmodel import Session

from app.artifacts import get_store
from app.datasets.service import store_file
from app.db import reading, transaction
from app.errors import RunErrorCode
from app.runs import lifecycle
from app.runs.lifecycle import StaleAttempt
from app.settings import Settings
from app.tables import Model, ModelKind, Run, RunStatus
from app.tables.base import new_id
from trainers import run_dir as files
from trainers.configs import StageKind
from workers import process, trouble
from workers.launch import Launch
from workers.lease import Lease

logger = logging.getLogger(__name__)

# A program that could not even write its error.json has probably filled the disk.
DISK_FULL_BELOW_BYTES = 1 << 20
STORE_AGAIN_SECONDS = (1, 10, 60)
# A result is a row of SQL; what is larger belongs into a file of its own.
MAX_JSON_BYTES = 8 << 20

T = TypeVar("T")


@dataclass(frozen=True)
class Attempt:
    """An attempt whose program has ended."""

    run: Run
    settings: Settings
    lease: Lease
    stop_asked: bool


class _Made(BaseModel):
    """What a program says of the model that it has made."""

    path: str
    kind: ModelKind
    template_sha256: Annotated[str, Field(max_length=64, pattern="^[0-9a-f]*$")] | None = None


class _MadeDataset(BaseModel):
    """What a program says of a dataset that it has made."""

    part: str
    path: str


class _Error(BaseModel):
    """What a program says of its failure."""

    code: RunErrorCode
    message: str
    hint: str = ""


def finish(attempt: Attempt, launch: Launch, exit_status: int) -> Run:
    """Publish what the program made, write the status that its run directory speaks of, and answer the run.

    Raises StaleAttempt when the run is no longer held by this attempt.
    """
    _publish_files(launch.run_dir, attempt.run)
    result = _result(attempt.run, launch.run_dir)
    if result is not None:
        return _succeed(attempt, launch, result)
    error = _error(launch.run_dir)
    if error is None and not attempt.stop_asked:
        error = _unexplained(attempt.run, launch, exit_status)
    return end(attempt, error)


def end(attempt: Attempt, error: dict[str, Any] | None) -> Run:
    """End an attempt without a result: with an error, or because the program was asked to stop.

    What SQL wants of the run decides what it becomes, read with the write: it may have changed since
    the worker last looked.
    """
    run, max_faults = attempt.run, attempt.settings.max_faults

    def write(session: Session) -> Run | None:
        current = session.get_one(Run, run.id)
        if error is not None and RunErrorCode(error["code"]).infrastructure:
            guards = lifecycle.held_by(run.attempt)
            return lifecycle.give_up(session, current, error, guards, max_faults, _log(run))
        if current.status is RunStatus.cancelling:
            return _move(session, run, RunStatus.cancelled)
        if error is not None and error["code"] == RunErrorCode.disk_full:
            return _move(session, run, RunStatus.paused, {"error": error}, {"error": error})
        if error is not None and error["code"] == RunErrorCode.out_of_memory:
            config = trouble.with_smaller_micro_batch(current.config)
            if config is not None and current.status is RunStatus.running:
                lifecycle.record(session, run.id, run.attempt, [trouble.micro_batch_halved(current, config)])
                return _move(session, run, RunStatus.queued, {"config": config}, {"error": error})
        if error is not None:
            return _move(session, run, RunStatus.failed, {"error": error}, {"error": error})
        if current.status is RunStatus.pausing:
            return _move(session, run, RunStatus.paused)
        return _move(session, run, RunStatus.queued, data={"reason": "the worker left"})

    return _write(attempt, write)


def _succeed(attempt: Attempt, launch: Launch, result: dict[str, Any]) -> Run:
    try:
        model = _stored(attempt, lambda: _publish_model(attempt.run, launch, result))
        result = _stored(attempt, lambda: _publish_datasets(attempt.run, launch, result))
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            full = trouble.disk_full(f"What {attempt.run.id} has made does not fit into the store.")
            return end(attempt, full)
        message = f"What the run made could not be stored: {error}."
        hint = "See whether the artifact store is up and has room."
        return end(attempt, {"code": RunErrorCode.artifacts_unreachable, "message": message, "hint": hint})
    made = {"model_id": model.id} if model else {}

    def succeed(session: Session) -> Run | None:
        if model is not None:
            session.add(model)
            session.flush()
        return _move(session, attempt.run, RunStatus.succeeded, {"result": result, **made}, made)

    try:
        return _write(attempt, succeed)
    except StaleAttempt:
        if model is not None and not _is_known(model):
            get_store().delete(model.artifact)
        raise


def _is_known(model: Model) -> bool:
    """Whether the end was committed after all, and only the database's answer was lost."""
    with reading() as session:
        return session.get(Model, model.id) is not None


def _write(attempt: Attempt, write: Callable[[Session], Run | None]) -> Run:
    """Commit the end and answer it; a database that is away is waited for as long as the lease lasts."""
    while True:
        try:
            with transaction() as session:
                ended = write(session)
                if ended is None:
                    # Still held, its status changed between being read and being moved: decide again.
                    lifecycle.record(session, attempt.run.id, attempt.run.attempt, [])
        except OperationalError as error:
            logger.warning("cannot write the end: %s", error.orig, extra={"run_id": attempt.run.id})
            if attempt.lease.lost.wait(1):
                raise StaleAttempt(
                    f"attempt {attempt.run.attempt} lost {attempt.run.id} while it waited"
                ) from error
        else:
            if ended is not None:
                logger.info("ended", extra={"run_id": ended.id, "status": ended.status, "error": ended.error})
                return ended


def _move(
    session: Session,
    run: Run,
    status: RunStatus,
    values: dict[str, Any] | None = None,
    data: dict[str, Any] | None = None,
) -> Run | None:
    guards, values = lifecycle.held_by(run.attempt), {**(values or {}), **_log(run)}
    return lifecycle.move(session, run.id, status, guards=guards, values=values, data=data)


def _stored(attempt: Attempt, publish: Callable[[], T]) -> T:
    """Publish what was made; a store that is away or full for a moment must not cost a training."""
    for seconds in STORE_AGAIN_SECONDS:
        try:
            return publish()
        except OSError as error:
            logger.warning("could not store the output: %s", error, extra={"run_id": attempt.run.id})
            if attempt.lease.lost.wait(seconds):
                raise StaleAttempt(
                    f"attempt {attempt.run.attempt} lost {attempt.run.id} while it waited"
                ) from error
    return publish()


def _publish_model(run: Run, launch: Launch, result: dict[str, Any]) -> Model | None:
    if not run.stage.makes_a_model:
        return None
    made = _Made.model_validate(result["model"])
    assert launch.base is not None
    model_id = new_id("model")
    published = get_store().publish_folder(launch.run_dir / made.path, f"models/{model_id}")
    return Model(
        id=model_id,
        name=run.name,
        kind=made.kind,
        base=launch.base.origin,
        parent_id=launch.base.model_id,
        dataset_id=launch.dataset_id,
        run_id=run.id,
        artifact=published.key,
        sha256=published.sha256,
        size_bytes=published.size_bytes,
        template_sha256=made.template_sha256,
    )


def _publish_datasets(run: Run, launch: Launch, result: dict[str, Any]) -> dict[str, Any]:
    """The result with the registry's id beside each dataset that the program has made."""
    if run.stage is not StageKind.prepare:
        return result
    made = []
    for described in result.get("datasets", []):
        name = f"{run.name}-{described['part']}"
        dataset, _ = store_file(launch.run_dir / described["path"], name)
        made.append(described | {"id": dataset.id, "name": dataset.name})
    return result | {"datasets": made}


def _result(run: Run, run_dir: Path) -> dict[str, Any] | None:
    """The program's result, if it is one that can be stored: the program is not trusted."""
    result = _read(run_dir / files.RESULT)
    if result is None:
        return None
    try:
        folders = [_Made.model_validate(result.get("model")).path] if run.stage.makes_a_model else []
        paths = [_MadeDataset.model_validate(made).path for made in result.get("datasets", [])]
    except (ValidationError, TypeError) as error:
        logger.warning("the result is none: %s", error, extra={"run_id": run.id})
        return None
    inside = all((run_dir / path).resolve().is_relative_to(run_dir.resolve()) for path in folders + paths)
    there = all((run_dir / path).is_dir() for path in folders) and all(
        (run_dir / path).is_file() for path in paths
    )
    return result if inside and there else None


def _error(run_dir: Path) -> dict[str, Any] | None:
    told = _read(run_dir / files.ERROR)
    try:
        return _Error.model_validate(told).model_dump() if told is not None else None
    except ValidationError:
        return None


def _read(path: Path) -> dict[str, Any] | None:
    """A file of JSON that both databases can hold, else None."""
    if not path.is_file() or path.stat().st_size > MAX_JSON_BYTES:
        return None
    try:
        value = from_json(path.read_bytes(), allow_inf_nan=False)
    except ValueError as error:
        logger.warning("%s cannot be read: %s", path, error)
        return None
    return _without_nul(value) if isinstance(value, dict) else None


def _without_nul(value: Any) -> Any:
    """PostgreSQL's JSON holds no NUL."""
    if isinstance(value, str):
        return value.replace("\0", "\ufffd")
    if isinstance(value, list):
        return [_without_nul(item) for item in value]
    if isinstance(value, dict):
        return {_without_nul(name): _without_nul(item) for name, item in value.items()}
    return value


def _unexplained(run: Run, launch: Launch, exit_status: int) -> dict[str, Any]:
    if shutil.disk_usage(launch.run_dir).free < DISK_FULL_BELOW_BYTES:
        return trouble.disk_full(
            f"The disk with the worker's data directory is full: the program of {run.id} could not go on."
        )
    if exit_status == process.KILLED + signal.SIGKILL and trouble.kernel_kills() > launch.kernel_kills:
        return trouble.killed_for_memory(run)
    if exit_status > process.KILLED:
        message = f"The program was killed by signal {exit_status - process.KILLED}."
        hint = "A 9 is often the kernel's out-of-memory killer: use a smaller micro_batch_size or max_length."
        return {"code": RunErrorCode.program_killed, "message": message, "hint": hint}
    message = f"The program ended with status {exit_status} and left neither a result nor an error."
    return {
        "code": RunErrorCode.program_without_result,
        "message": message,
        "hint": "Read the end of the log.",
    }


def _publish_files(run_dir: Path, run: Run) -> None:
    """Keep the log, and what else the program wrote beside its folders."""
    for path in run_dir.iterdir():
        if path.is_file() and not path.name.startswith("."):
            try:
                get_store().publish_file(path, _file_key(run, path.name))
            except OSError as error:
                logger.warning("could not keep %s: %s", path.name, error, extra={"run_id": run.id})


def _log(run: Run) -> dict[str, Any]:
    return {"log_artifact": _file_key(run, files.LOG)}


def _file_key(run: Run, name: str) -> str:
    return f"runs/{run.id}/{run.attempt}/{name}"
