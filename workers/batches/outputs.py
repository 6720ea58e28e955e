"""The files of a batch's result: published first, and committed together with the end of its run."""

from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

from sqlmodel import Session

from app.batches import lifecycle
from app.files.service import publish_content
from app.storage.database import read_session
from app.tables import Batch, BatchStatus, File, FilePurpose, Run
from serving.batch.files import ERRORS, OUTPUT, RESULT_FOLDER, STATE, BatchState
from trainers.configs import Product
from workers.batches.follower import progress_columns
from workers.runs.launch import Launch


@dataclass(frozen=True)
class ProducedBatch:
    """Rows that the end of the run must commit."""

    batch_id: str = ""
    outcome: BatchStatus = BatchStatus.completed
    files: list[File] = field(default_factory=list)
    columns: dict[str, Any] = field(default_factory=dict)

    def add_to(self, session: Session) -> None:
        """Add the files, and end the batch."""
        if self.batch_id:
            session.add_all(self.files)
            session.flush()
            lifecycle.finish(session, self.batch_id, self.outcome, self.columns)


def publish_batch(run: Run, launch: Launch, result: dict[str, Any]) -> ProducedBatch:
    """Publish the responses and the errors of a batch, each only if there are any; return their rows."""
    if run.stage.stage.product is not Product.batch:
        return ProducedBatch()
    batch_id = run.config["batch"]
    with read_session() as session:
        batch = session.get_one(Batch, batch_id)
    state = BatchState.model_validate_json((launch.run_dir / STATE).read_bytes())
    columns, rows = progress_columns(state), list[File]()
    for column, name in (("output_file_id", OUTPUT), ("error_file_id", ERRORS)):
        path = launch.run_dir / RESULT_FOLDER / name
        if path.stat().st_size == 0:
            continue
        file = File(
            filename=f"{batch_id}_{name}", purpose=FilePurpose.batch_output, size_bytes=path.stat().st_size
        )
        if batch.output_expires_seconds is not None:
            file.expires_at = file.created_at + timedelta(seconds=batch.output_expires_seconds)
        file.artifact, file.sha256 = publish_content(path)
        columns[column] = file.id
        rows.append(file)
    return ProducedBatch(batch_id, BatchStatus(result["outcome"]), rows, columns)
