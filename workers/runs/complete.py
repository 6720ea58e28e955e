"""Completion of an attempt: its output is published first, then its status is written."""

import errno
import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from sqlmodel import Session

from app.datasets.service import create_dataset
from app.runs import lifecycle
from app.runs.attempt_outcome import AttemptOutcome
from app.runs.lifecycle import StaleAttempt
from app.scheduling.incidents import describe_error
from app.settings import Settings
from app.storage.database import DATABASE_UNAVAILABLE, read_session, transaction
from app.storage.opening import get_store
from app.tables import Model, ModelKind, Run, RunStatus
from app.tables.base import new_id
from trainers.configs.stage_table import Product
from trainers.runtime import run_dir as files
from trainers.runtime.error_codes import ErrorCode
from trainers.runtime.errors import TunesmithError
from trainers.runtime.redaction import redact_file
from workers.batches.outputs import publish_batch
from workers.exports.upload import HubPushFailed, complete_export
from workers.hosts.lease import Lease
from workers.hosts.resource_limits import ExceededLimit
from workers.hosts.stage_limits import explain_limit
from workers.inputs.store_gate import StoreGate
from workers.nodes.leader import GroupLeader
from workers.outputs.evaluations import publish_evaluation
from workers.outputs.fine_tuned import publish_fine_tuned
from workers.outputs.selection import find_selected_model
from workers.runs import recovery, results
from workers.runs.launch import Launch

logger = logging.getLogger(__name__)

# A store that is unavailable for a moment must not cost a finished training run.
STORE_RETRY_SECONDS = (1, 10, 60)
TEXT_SUFFIXES = {".txt", ".log", ".json", ".jsonl"}

T = TypeVar("T")


class ArtifactStoreFull(TunesmithError):
    code = ErrorCode.disk_full


class OutputNotStored(TunesmithError):
    code = ErrorCode.artifacts_unreachable


@dataclass(frozen=True)
class RunAttempt:
    """An attempt whose program has ended."""

    run: Run
    settings: Settings
    lease: Lease
    stop_requested: bool
    exceeded_limit: ExceededLimit | None = None
    store_gate: StoreGate | None = None
    group: GroupLeader | None = None
    """The other hosts of the run, if there are any."""
    checkpoint_bytes: float = 0.0
    """The expected size of the first checkpoint."""


def complete_attempt(attempt: RunAttempt, launch: Launch, exit_status: int) -> Run:
    """Publish the program's output, write the run's new status, and return the run.

    Raises StaleAttempt if this attempt no longer holds the run.
    """
    publish_files(launch.run_dir, attempt.run)
    if attempt.group is not None:
        attempt.group.wait_for_ends(attempt.lease)
    result = results.read_result(attempt.run, launch.run_dir)
    if result is not None:
        try:
            result = complete_export(attempt.run, attempt.settings, launch, result, attempt.lease.lost.is_set)
        except HubPushFailed as error:
            return end_attempt(attempt, error)
        return _succeed(attempt, launch, result)
    failure = _find_error(attempt, launch, exit_status)
    return end_attempt(attempt, failure, recomputes_all=results.recomputes_all(launch.run_dir))


def _find_error(attempt: RunAttempt, launch: Launch, exit_status: int) -> TunesmithError | None:
    """Return why the program, or that of another host, has left no result; None if it was asked to stop."""
    own = _find_own_error(attempt, launch, exit_status)
    if attempt.group is None or attempt.stop_requested:
        return own
    return attempt.group.find_cause(own)


def _find_own_error(attempt: RunAttempt, launch: Launch, exit_status: int) -> TunesmithError | None:
    """Return why a program has left no result; None if it was asked to stop and reported no error."""
    if attempt.exceeded_limit is not None and not attempt.stop_requested:
        return explain_limit(attempt.run, launch.config, attempt.exceeded_limit)
    reported = results.read_error(launch.run_dir)
    if attempt.stop_requested or (reported is not None and reported.code is not ErrorCode.rank_lost):
        return reported
    return results.infer_error(attempt.run, launch, exit_status, reported)


def end_attempt(attempt: RunAttempt, error: TunesmithError | None, *, recomputes_all: bool = False) -> Run:
    """End an attempt without a result: because of an error, or because its program was asked to stop.

    `recomputes_all` is whether the program recomputed all activations.
    """
    run = attempt.run
    if error is not None and error.code is ErrorCode.artifacts_unreachable and attempt.store_gate is not None:
        attempt.store_gate.close(error)

    def write(session: Session) -> Run | None:
        current = session.get_one(Run, run.id)
        end = AttemptOutcome(error, reason="the worker is shutting down" if error is None else None)
        if end.code is ErrorCode.disk_full:
            needed_bytes = recovery.estimate_needed_bytes(session, current, attempt.checkpoint_bytes)
            end = AttemptOutcome(error, needed_disk_bytes=needed_bytes)
        if end.code is ErrorCode.out_of_memory:
            assert error is not None
            end = recovery.reduce_memory(error, current.config, recomputes_all)
        guards, max_failures = lifecycle.lease_guards(run.attempt), attempt.settings.max_failures
        return lifecycle.end_attempt(session, run.id, end, guards, max_failures, _log_column(run))

    return _commit_end(attempt, write)


def publish_files(run_dir: Path, run: Run, node_rank: int = 0) -> None:
    """Publish the log and the other files at the top of the run directory, without secrets.

    Of a host that does not lead the run, only the log and the errors of its processes.
    """
    names = {path: path.name for path in run_dir.iterdir()}
    if node_rank:
        names = {path: path.name for path in files.list_errors(run_dir)}
        names[run_dir / files.LOG] = f"log-node-{node_rank}.txt"
    for path, name in names.items():
        # A link could lead to any file of this host.
        if path.is_file() and not path.is_symlink() and not path.name.startswith("."):
            try:
                if path.suffix in TEXT_SUFFIXES:
                    redact_file(path)
                get_store().publish_file(path, _file_key(run, name), replace=True)
            except OSError as error:
                logger.warning("could not publish %s: %s", path.name, error, extra={"run_id": run.id})


def _succeed(attempt: RunAttempt, launch: Launch, result: dict[str, Any]) -> Run:
    run = attempt.run
    try:
        models = _retry_storing(attempt, lambda: _publish_models(run, launch, result))
        model = models[-1] if models else None
        result = _retry_storing(attempt, lambda: _publish_datasets(run, launch, result))
        evaluation = _retry_storing(attempt, lambda: publish_evaluation(run, launch, result))
        fine_tuned = _retry_storing(attempt, lambda: publish_fine_tuned(run, launch.run_dir, model))
        batch = _retry_storing(attempt, lambda: publish_batch(run, launch, result))
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            message = f"The output of {run.id} does not fit into the artifact store."
            return end_attempt(attempt, ArtifactStoreFull(message, recovery.DISK_FULL_HINT))
        return end_attempt(
            attempt,
            OutputNotStored(
                f"The output of {run.id} could not be stored: {error}.",
                "Check that the artifact store is up and has free space.",
            ),
        )
    produced = {"model_id": model.id} if model else find_selected_model(run, result)

    def write(session: Session) -> Run | None:
        session.add_all(models)
        session.flush()
        ended = lifecycle.move(
            session,
            run.id,
            RunStatus.succeeded,
            guards=lifecycle.lease_guards(run.attempt),
            values={"result": result, **produced, **_log_column(run)},
            data=produced,
        )
        if ended is not None:
            evaluation.add_to(session)
            if fine_tuned is not None:
                fine_tuned.add_to(session, attempt.settings)
            batch.add_to(session)
        return ended

    try:
        return _commit_end(attempt, write)
    except StaleAttempt:
        if model is not None and not _is_committed(model):
            for stored in models:
                get_store().delete(stored.artifact)
        raise


def _is_committed(model: Model) -> bool:
    """Return whether the end was committed after all, and only the database's response was lost."""
    with read_session() as session:
        return session.get(Model, model.id) is not None


def _commit_end(attempt: RunAttempt, write: Callable[[Session], Run | None]) -> Run:
    """Commit the end and return the run; while the lease lasts, wait for a database that is unavailable."""
    run = attempt.run
    while True:
        try:
            with transaction() as session:
                ended = write(session)
                if ended is None:
                    # The attempt still holds the run, or this raises StaleAttempt. In the first case the
                    # status changed between the read and the UPDATE: decide again.
                    lifecycle.append_events(session, run.id, run.attempt, [])
        except DATABASE_UNAVAILABLE as error:
            logger.warning(
                "cannot write the end of the run: %s", describe_error(error), extra={"run_id": run.id}
            )
            if attempt.lease.lost.wait(1):
                raise StaleAttempt(
                    f"attempt {run.attempt} lost {run.id} while it waited for the database"
                ) from error
        else:
            if ended is not None:
                logger.info("ended", extra={"run_id": ended.id, "status": ended.status, "error": ended.error})
                return ended


def _retry_storing(attempt: RunAttempt, publish: Callable[[], T]) -> T:
    for seconds in STORE_RETRY_SECONDS:
        try:
            return publish()
        except OSError as error:
            logger.warning("could not store the output: %s", error, extra={"run_id": attempt.run.id})
            if attempt.lease.lost.wait(seconds):
                raise StaleAttempt(
                    f"attempt {attempt.run.attempt} lost {attempt.run.id} while it waited for the store"
                ) from error
    return publish()


def _publish_models(run: Run, launch: Launch, result: dict[str, Any]) -> list[Model]:
    """Publish the run's model, after the base of its adapter if the run has produced that too."""
    if run.stage.stage.product is not Product.model:
        return []
    produced = results.ProducedModel.model_validate(result["model"])
    assert launch.base is not None
    name = run.full_name or run.name
    if produced.base_path is None:
        return [_publish_model(run, launch, produced, name, launch.base.origin)]
    whole = results.ProducedModel(
        path=produced.base_path, kind=ModelKind.base, template_sha256=produced.template_sha256
    )
    base = _publish_model(run, launch, whole, f"{name}-base", launch.base.origin)
    return [base, _publish_model(run, launch, produced, name, base.id)]


def _publish_model(run: Run, launch: Launch, produced: results.ProducedModel, name: str, base: str) -> Model:
    assert launch.base is not None
    model_id = new_id("model")
    if produced.kind is ModelKind.adapter:
        results.name_adapter_base(launch.run_dir / produced.path, base)
    published = get_store().publish_folder(launch.run_dir / produced.path, f"models/{model_id}")
    return Model(
        id=model_id,
        name=name,
        kind=produced.kind,
        base=base,
        parent_id=launch.base.model_id,
        dataset_id=launch.dataset_id,
        run_id=run.id,
        artifact=published.key,
        sha256=published.sha256,
        size_bytes=published.size_bytes,
        template_sha256=produced.template_sha256,
    )


def _publish_datasets(run: Run, launch: Launch, result: dict[str, Any]) -> dict[str, Any]:
    """Return the result with the registry's id and name of each dataset that the program has produced."""
    if run.stage.stage.product is not Product.datasets:
        return result
    datasets = []
    for produced in result.get("datasets", []):
        name = results.name_part(run, produced["part"])
        dataset, _ = create_dataset(launch.run_dir / produced["path"], name)
        datasets.append(produced | {"id": dataset.id, "name": dataset.name})
    return result | {"datasets": datasets}


def _log_column(run: Run) -> dict[str, Any]:
    return {"log_artifact": _file_key(run, files.LOG)}


def _file_key(run: Run, name: str) -> str:
    return f"runs/{run.id}/{run.attempt}/{name}"
