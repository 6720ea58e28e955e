"""Creating, reading and cancelling batches."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta

from sqlalchemy import select
from sqlmodel import Session, col

from app.batches import lifecycle
from app.files import service as files
from app.http.errors import Conflict, NotFound, field_error
from app.http.paging import CursorQuery, paginate_by_id
from app.idempotency.creation import Record, ignore_creation
from app.jobs import service as jobs
from app.jobs.schemas import JobCreate
from app.settings import Settings
from app.storage.database import transaction
from app.tables import Batch, BatchStatus, File, FilePurpose, Run
from trainers.configs import BatchConfig, BatchEndpoint
from trainers.configs.stages.serving.batch import MAX_BATCH_BYTES
from trainers.runtime.error_codes import ErrorCode

WINDOW_SECONDS = {"24h": 24 * 3600}
# The statuses in which a batch can be cancelled.
CANCELLABLE = tuple(
    status for status in BatchStatus if not status.finished and status is not BatchStatus.cancelling
)


class BatchNotFound(NotFound):
    """No batch has this id."""

    code = ErrorCode.batch_not_found


class BatchFinished(Conflict):
    """The batch has ended."""

    code = ErrorCode.batch_finished


@dataclass(frozen=True)
class BatchRequest:
    """What a client asks for."""

    input_file_id: str
    endpoint: BatchEndpoint
    completion_window: str
    metadata: dict[str, str] | None = None
    output_expires_seconds: int | None = None


def create_batch(
    settings: Settings, request: BatchRequest, created_by: str, record: Record = ignore_creation
) -> str:
    """Commit a batch with its job, and return its id.

    `record` is called in the transaction, with the id. Raises UnprocessableContent for a file that is
    missing, too large or for another purpose.
    """
    with transaction() as session:
        _check_file(session, request.input_file_id)
        batch = Batch(
            endpoint=request.endpoint,
            input_file_id=request.input_file_id,
            completion_window=request.completion_window,
            output_expires_seconds=request.output_expires_seconds,
            client_metadata=request.metadata,
        )
        batch.expires_at = batch.created_at + timedelta(seconds=WINDOW_SECONDS[request.completion_window])
        session.add(batch)
        session.flush()
        config = BatchConfig(
            batch=batch.id, endpoint=request.endpoint, concurrency=settings.batch_concurrency
        )
        spec = JobCreate(name=batch.id.replace("_", "-"), stages=[config])
        job, _ = jobs.create_job(session, settings, spec, created_by, None)
        batch.job_id = job.id
        batch.run_id = session.scalars(select(col(Run.id)).where(col(Run.job_id) == job.id)).one()
        record(session, batch.id)
    return batch.id


def get_batch(session: Session, batch_id: str) -> Batch:
    """Return a batch; raises BatchNotFound."""
    batch = session.get(Batch, batch_id)
    if batch is None:
        raise BatchNotFound(f"There is no batch {batch_id!r}.", hint="List the batches with GET /v1/batches.")
    return batch


def list_batches(session: Session, cursor: CursorQuery) -> tuple[Sequence[Batch], bool]:
    """Return a page of batches, and whether more follow."""
    return paginate_by_id(session, select(Batch), col(Batch.id), cursor)


def cancel_batch(batch_id: str) -> Batch:
    """Cancel a batch; a second call changes nothing. Raises BatchNotFound and BatchFinished."""
    with transaction() as session:
        batch = lifecycle.lock(session, batch_id) or get_batch(session, batch_id)
        if batch.status.finished and batch.status is not BatchStatus.cancelled:
            raise BatchFinished(f"The batch {batch_id} is {batch.status}, so it cannot be cancelled.")
        if batch.status in CANCELLABLE:
            lifecycle.request_cancel(session, batch)
    return batch


def _check_file(session: Session, file_id: str) -> File:
    try:
        file = files.get_file(session, file_id)
    except files.FileNotFound as error:
        raise field_error("input_file_id", error.message) from None
    if file.purpose is not FilePurpose.batch or file.artifact is None:
        raise field_error(
            "input_file_id",
            f"The file {file_id} has the purpose {file.purpose}; upload it with purpose=batch.",
        )
    if file.size_bytes > MAX_BATCH_BYTES:
        raise field_error(
            "input_file_id", f"The file has {file.size_bytes} bytes; at most {MAX_BATCH_BYTES} are allowed."
        )
    return file
