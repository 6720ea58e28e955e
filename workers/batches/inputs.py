"""The input of a batch on this host, and the models that exist when it starts."""

from pathlib import Path

from sqlmodel import Session

from app.files import service as files
from app.storage.database import read_session
from app.storage.opening import get_store
from app.tables import Batch, Run
from serving.batch.files import CONTROL, Control, write_replaced
from trainers.configs import BatchConfig
from trainers.runtime.error_codes import ErrorCode
from workers.batches.key_limits import find_creator, list_allowed_routes
from workers.inputs.errors import LaunchError


class BatchMissing(LaunchError):
    code = ErrorCode.batch_not_found


class BatchFileMissing(LaunchError):
    code = ErrorCode.file_not_found


def prepare_batch(run: Run, config: BatchConfig, run_dir: Path) -> BatchConfig:
    """Fetch the input file and write the first control file; return the config that names both.

    Raises BatchMissing and BatchFileMissing, and OSError or ArtifactCorrupt if the file cannot be read.
    """
    with read_session() as session:
        batch = _get_batch(session, run, config)
        try:
            file = files.get_file(session, batch.input_file_id)
        except files.FileNotFound as error:
            raise BatchFileMissing(error.message, "Upload the file again and create a new batch.") from error
        names = [route.name for route in list_allowed_routes(session, find_creator(session, batch))]
    assert file.artifact is not None and file.sha256 is not None, "the API checks that it is no dataset"
    path = get_store().fetch_file(file.artifact, file.sha256)
    validated = batch.in_progress_at is not None
    control = Control(known_models=names, validated=validated, expires_at=find_expiry(batch))
    write_replaced(run_dir / CONTROL, control)
    # Nothing in the job's spec names a file or an address.
    return config.model_copy(update={"input": str(path), "engines": {}})


def find_expiry(batch: Batch) -> float | None:
    """Return the Unix time at which a batch expires."""
    return batch.expires_at.timestamp() if batch.expires_at is not None else None


def _get_batch(session: Session, run: Run, config: BatchConfig) -> Batch:
    batch = session.get(Batch, config.batch) if config.batch is not None else None
    if batch is None or batch.run_id != run.id:
        raise BatchMissing(
            f"There is no batch {config.batch!r} for {run.id}.", "Create a batch with POST /v1/batches."
        )
    return batch
