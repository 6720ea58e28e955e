"""How an attempt ended, read from its run directory: what it made is published, then SQL is told."""

import logging
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlalchemy.exc import OperationalError
from sqlmodel import Session

from app.artifacts import get_store
from app.db import transaction
from app.errors import RunErrorCode
from app.runs import lifecycle
from app.runs.lifecycle import StaleAttempt
from app.settings import Settings
from app.tables import Model, ModelKind, Run, RunStatus
from app.tables.base import new_id
from trainers import run_dir as files
from trainers.configs import StageKind
from workers import process
from workers.launch import Launch
from workers.lease import Lease

logger = logging.getLogger(__name__)

# A program that could not even write its error.json has probably filled the disk.
DISK_FULL_BELOW_BYTES = 1 << 20


@dataclass(frozen=True)
class Attempt:
    """An attempt whose program has ended."""

    run: Run
    settings: Settings
    lease: Lease
    status: RunStatus
    """What SQL last wanted of the run."""
    stop_asked: bool


def finish(attempt: Attempt, launch: Launch, exit_status: int) -> None:
    """Publish what the program made and write the status that its run directory speaks of.

    Raises StaleAttempt when the run is no longer held by this attempt.
    """
    _publish_files(launch.run_dir, attempt.run)
    result = files.read_result(launch.run_dir)
    error = files.read_error(launch.run_dir)
    if result is not None:
        _succeed(attempt, launch, result)
    elif attempt.status is RunStatus.cancelling:
        _end(attempt, RunStatus.cancelled)
    elif attempt.status is RunStatus.pausing and error is None:
        _end(attempt, RunStatus.paused)
    elif attempt.stop_asked and error is None:
        _end(attempt, RunStatus.queued, data={"reason": "the worker left"})
    else:
        end_with_error(attempt, error or _unexplained(attempt.run, launch.run_dir, exit_status))


def end_with_error(attempt: Attempt, error: dict[str, Any]) -> None:
    """Fail the run, or queue it again if the machine was at fault."""
    if not RunErrorCode(error["code"]).infrastructure:
        _end(attempt, RunStatus.failed, {"error": error}, {"error": error})
        return

    def give_up(session: Session) -> Run | None:
        run = session.get_one(Run, attempt.run.id)
        guards = lifecycle.held_by(attempt.run.attempt)
        return lifecycle.give_up(session, run, error, guards, attempt.settings.max_faults)

    _write(attempt, give_up)


def _succeed(attempt: Attempt, launch: Launch, result: dict[str, Any]) -> None:
    try:
        model = _publish_model(attempt.run, launch, result)
    except OSError as error:
        message = f"The model could not be stored: {error}."
        hint = "See whether the artifact store is up and has room."
        end_with_error(
            attempt, {"code": RunErrorCode.artifacts_unreachable, "message": message, "hint": hint}
        )
        return
    made = {"model_id": model.id} if model else {}

    def succeed(session: Session) -> Run | None:
        if model is not None:
            session.add(model)
            session.flush()
        return _move(session, attempt.run, RunStatus.succeeded, {"result": result, **made}, made)

    try:
        _write(attempt, succeed)
    except StaleAttempt:
        if model is not None:
            get_store().delete(model.artifact)
        raise


def _end(
    attempt: Attempt,
    status: RunStatus,
    values: dict[str, Any] | None = None,
    data: dict[str, Any] | None = None,
) -> None:
    _write(attempt, lambda session: _move(session, attempt.run, status, values or {}, data or {}))


def _write(attempt: Attempt, write: Callable[[Session], Run | None]) -> None:
    """Commit the end; a database that is away is waited for as long as the lease lasts."""
    while True:
        try:
            with transaction() as session:
                ended = write(session)
                if ended is None:
                    raise StaleAttempt(f"attempt {attempt.run.attempt} no longer holds {attempt.run.id}")
        except OperationalError as error:
            logger.warning("cannot write the end: %s", error.orig, extra={"run_id": attempt.run.id})
            if attempt.lease.lost.wait(1):
                raise StaleAttempt(
                    f"attempt {attempt.run.attempt} lost {attempt.run.id} while it waited"
                ) from error
        else:
            logger.info("ended", extra={"run_id": ended.id, "status": ended.status, "error": ended.error})
            return


def _move(
    session: Session, run: Run, status: RunStatus, values: dict[str, Any], data: dict[str, Any]
) -> Run | None:
    values = {**values, "log_artifact": _file_key(run, files.LOG)}
    return lifecycle.move(
        session, run.id, status, guards=lifecycle.held_by(run.attempt), values=values, data=data
    )


def _publish_model(run: Run, launch: Launch, result: dict[str, Any]) -> Model | None:
    made = result.get("model")
    if run.stage is not StageKind.sft or made is None:
        return None
    assert launch.base is not None
    model_id = new_id("model")
    published = get_store().publish_folder(launch.run_dir / made["path"], f"models/{model_id}")
    return Model(
        id=model_id,
        name=run.name,
        kind=ModelKind(made["kind"]),
        base=launch.base.origin,
        parent_id=launch.base.model_id,
        dataset_id=launch.dataset_id,
        run_id=run.id,
        artifact=published.key,
        sha256=published.sha256,
        size_bytes=published.size_bytes,
        template_sha256=made["template_sha256"],
    )


def _unexplained(run: Run, run_dir: Path, exit_status: int) -> dict[str, Any]:
    if shutil.disk_usage(run_dir).free < DISK_FULL_BELOW_BYTES:
        message = (
            f"The disk with the worker's data directory is full: the program of {run.id} could not go on."
        )
        hint = "Free some space, then retry the job: it goes on from its last checkpoint."
        return {"code": RunErrorCode.disk_full, "message": message, "hint": hint}
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


def _file_key(run: Run, name: str) -> str:
    return f"runs/{run.id}/{run.attempt}/{name}"
