"""How an attempt ended, read from its run directory: what it made is published, then SQL is told."""

import errno
import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from sqlalchemy.exc import OperationalError
from sqlmodel import Session

from app.datasets.service import create_dataset
from app.runs import lifecycle
from app.runs.lifecycle import StaleAttempt
from app.settings import Settings
from app.storage.artifacts import get_store
from app.storage.database import read_session, transaction
from app.tables import Model, Run, RunStatus
from app.tables.base import new_id
from trainers.configs import StageKind
from trainers.runtime import run_dir as files
from trainers.runtime.error_codes import ErrorCode
from workers.hosts.lease import Lease
from workers.runs import recovery, results
from workers.runs.launch import Launch

logger = logging.getLogger(__name__)

STORE_RETRY_SECONDS = (1, 10, 60)

T = TypeVar("T")


@dataclass(frozen=True)
class RunAttempt:
    """An attempt whose program has ended."""

    run: Run
    settings: Settings
    lease: Lease
    stop_asked: bool


def complete_attempt(attempt: RunAttempt, launch: Launch, exit_status: int) -> Run:
    """Publish what the program made, write the status that its run directory speaks of, and answer the run.

    Raises StaleAttempt when the run is no longer held by this attempt.
    """
    _publish_files(launch.run_dir, attempt.run)
    result = results.read_result(attempt.run, launch.run_dir)
    if result is not None:
        return _succeed(attempt, launch, result)
    error = results.read_error(launch.run_dir)
    if error is None and not attempt.stop_asked:
        error = results.infer_error(attempt.run, launch, exit_status)
    return end_attempt(attempt, error)


def end_attempt(attempt: RunAttempt, error: dict[str, Any] | None) -> Run:
    """End an attempt without a result: with an error, or because the program was asked to stop.

    What SQL wants of the run decides what it becomes, read with the write: it may have changed since
    the worker last looked.
    """
    run, max_faults = attempt.run, attempt.settings.max_failures

    def write(session: Session) -> Run | None:
        current = session.get_one(Run, run.id)
        if error is not None and ErrorCode(error["code"]).infrastructure:
            guards = lifecycle.lease_guards(run.attempt)
            return lifecycle.give_up(session, current, error, guards, max_faults, _log(run))
        if current.status is RunStatus.cancelling:
            return _move(session, run, RunStatus.cancelled)
        if error is not None and error["code"] == ErrorCode.disk_full:
            return _move(session, run, RunStatus.paused, {"error": error}, {"error": error})
        if error is not None and error["code"] == ErrorCode.out_of_memory:
            config = recovery.halve_micro_batch(current.config)
            if config is not None and current.status is RunStatus.running:
                lifecycle.append_events(
                    session, run.id, run.attempt, [recovery.micro_batch_warning(current, config)]
                )
                return _move(session, run, RunStatus.queued, {"config": config}, {"error": error})
        if error is not None:
            return _move(session, run, RunStatus.failed, {"error": error}, {"error": error})
        if current.status is RunStatus.pausing:
            return _move(session, run, RunStatus.paused)
        return _move(session, run, RunStatus.queued, data={"reason": "the worker left"})

    return _write(attempt, write)


def _succeed(attempt: RunAttempt, launch: Launch, result: dict[str, Any]) -> Run:
    try:
        model = _stored(attempt, lambda: _publish_model(attempt.run, launch, result))
        result = _stored(attempt, lambda: _publish_datasets(attempt.run, launch, result))
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            full = recovery.disk_full_error(f"What {attempt.run.id} has made does not fit into the store.")
            return end_attempt(attempt, full)
        message = f"What the run made could not be stored: {error}."
        hint = "See whether the artifact store is up and has room."
        return end_attempt(
            attempt, {"code": ErrorCode.artifacts_unreachable, "message": message, "hint": hint}
        )
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
    with read_session() as session:
        return session.get(Model, model.id) is not None


def _write(attempt: RunAttempt, write: Callable[[Session], Run | None]) -> Run:
    """Commit the end and answer it; a database that is away is waited for as long as the lease lasts."""
    while True:
        try:
            with transaction() as session:
                ended = write(session)
                if ended is None:
                    # Still held, its status changed between being read and being moved: decide again.
                    lifecycle.append_events(session, attempt.run.id, attempt.run.attempt, [])
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
    guards, values = lifecycle.lease_guards(run.attempt), {**(values or {}), **_log(run)}
    return lifecycle.move(session, run.id, status, guards=guards, values=values, data=data)


def _stored(attempt: RunAttempt, publish: Callable[[], T]) -> T:
    """Publish what was made; a store that is away or full for a moment must not cost a training."""
    for seconds in STORE_RETRY_SECONDS:
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
    if not run.stage.produces_model:
        return None
    made = results.ProducedModel.model_validate(result["model"])
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
        dataset, _ = create_dataset(launch.run_dir / described["path"], name)
        made.append(described | {"id": dataset.id, "name": dataset.name})
    return result | {"datasets": made}


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
