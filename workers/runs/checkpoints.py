"""Upload of checkpoints from a run directory to the artifact store, in a thread of its own, and their rows.

The program deletes its older checkpoints at any time. So that a slow store does not end up without any,
each checkpoint is kept by hard links until it is stored. Of those that wait, only the newest is kept, which
bounds the disk space; with `save_every_epoch`, as many as the stage keeps.
"""

import logging
import os
import shutil
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from sqlmodel import Session, col, select

from app.runs import lifecycle
from app.runs.attempt_outcome import NewEvent
from app.storage.database import transaction
from app.storage.opening import get_store
from app.storage.remote.protocol import PublishedArtifact
from app.tables import Checkpoint, EventType, Run
from trainers.configs import AnyStage, FullTuning, TrainingConfig
from trainers.runtime import run_dir as files
from trainers.runtime.error_codes import ErrorCode

LINK_FOLDER = ".held"
# A slow disk, such as one over a network.
SAVE_BYTES_PER_SECOND = 100e6
# Of a base in 16 bits: its weights and two moments in fp32; the same of an adapter with a rank of about 100.
FULL_SHARE, ADAPTER_SHARE = 6.0, 0.2
# Only a program that hangs is waited for so long.
MAX_ESTIMATED_SECONDS = 1800.0

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class CheckpointUpload:
    """A checkpoint that is being stored; `stored` is None if the program deleted its files too early."""

    checkpoint: files.CheckpointRecord
    folder: Path
    stored: Future[PublishedArtifact | None]


class CheckpointUploads:
    """The checkpoints of one attempt that are not in SQL yet, oldest first."""

    def __init__(self, run: Run, run_dir: Path) -> None:
        self.pending: list[CheckpointUpload] = []
        self._run = run
        self._key = f"checkpoints/{run.id}/{run.attempt}-"
        self._run_dir = run_dir
        self._max_waiting = _max_waiting(run)
        self._executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix="upload")

    def add(self, checkpoint: files.CheckpointRecord) -> None:
        """Store a checkpoint after the current upload, and drop the ones that wait and are not results."""
        for upload in self.pending[: -self._max_waiting or None]:
            if upload.stored.cancel():
                self.remove(upload)
        folder = self._link_files(checkpoint)
        stored = self._executor.submit(_store_checkpoint, folder, f"{self._key}{checkpoint.step:08d}")
        self.pending.append(CheckpointUpload(checkpoint, folder, stored))

    def record_stored(self, warnings: list[NewEvent], *, wait: bool) -> None:
        """Write the rows of stored checkpoints, and add a warning for each that could not be stored.

        With `wait`, those that are still being uploaded are waited for.
        """
        for upload in list(self.pending):
            if not wait and not upload.stored.done():
                return
            try:
                published = upload.stored.result()
            except OSError as error:
                # After a crash this costs work, but the run itself can continue.
                message = f"A checkpoint could not be stored: {error}. The run continues without it."
                warnings.append(NewEvent.warning(ErrorCode.artifacts_unreachable, message))
                published = None
            if published is not None:
                _record_checkpoint(self._run, upload.checkpoint, published)
            self.remove(upload)

    def remove(self, upload: CheckpointUpload) -> None:
        """Remove a checkpoint that is in SQL, or that will not be stored."""
        self.pending.remove(upload)
        if self._run_dir / LINK_FOLDER in upload.folder.parents:
            shutil.rmtree(upload.folder, ignore_errors=True)

    def close(self) -> None:
        """Wait for the current upload, and start no other."""
        self._executor.shutdown(cancel_futures=True)

    def _link_files(self, checkpoint: files.CheckpointRecord) -> Path:
        """Return a folder of hard links, or the checkpoint itself where the file system has none."""
        source = self._run_dir / checkpoint.path
        links = self._run_dir / LINK_FOLDER / f"step-{checkpoint.step:08d}"
        try:
            shutil.copytree(source, links, copy_function=os.link)
        except OSError:
            shutil.rmtree(links, ignore_errors=True)
            return source
        return links


def estimate_checkpoint_bytes(run_dir: Path, config: AnyStage, base: str | None) -> float:
    """Return the size of the first checkpoint of an attempt; 0 for a stage that does not train.

    That is the size of the checkpoint from which the attempt resumes, or it follows from the base's weights.
    """
    if not isinstance(config, TrainingConfig):
        return 0.0
    size_bytes: float = max((saved.size_bytes for saved in files.checkpoints(run_dir)), default=0)
    if not size_bytes and base is not None:
        share = FULL_SHARE if isinstance(config.tuning, FullTuning) else ADAPTER_SHARE
        size_bytes = share * sum(path.stat().st_size for path in Path(base).glob("*.safetensors"))
    return size_bytes


def estimate_save_seconds(checkpoint_bytes: float) -> float:
    """Return how long a checkpoint of this size may take."""
    return min(checkpoint_bytes / SAVE_BYTES_PER_SECOND, MAX_ESTIMATED_SECONDS)


def _max_waiting(run: Run) -> int:
    """Return how many checkpoints may wait when another one comes: results of the run, as it keeps them."""
    config = run.stage_config()
    if isinstance(config, TrainingConfig) and config.save_every_epoch:
        return config.keep_checkpoints - 1
    return 0


def _store_checkpoint(folder: Path, key: str) -> PublishedArtifact | None:
    try:
        published = get_store().publish_folder(folder, key)
    except FileNotFoundError:
        return None
    if _is_complete(folder):
        return published
    get_store().delete(key)
    return None


def _is_complete(folder: Path) -> bool:
    """Return whether all files exist. Files only disappear, so a check after the copy suffices."""
    try:
        manifest = files.read_json(folder / files.MANIFEST) or {}
        return all((folder / file["path"]).is_file() for file in manifest["files"])
    except (KeyError, TypeError, ValueError):
        return False


def _record_checkpoint(run: Run, checkpoint: files.CheckpointRecord, published: PublishedArtifact) -> None:
    """Write the row of a stored checkpoint, and delete those that it supersedes.

    Once written, a second call has no effect: the first one's commit may have lost its response.
    """
    with transaction() as session:
        if _is_recorded(session, run, checkpoint):
            return
        data = {"step": checkpoint.step, "size_bytes": published.size_bytes}
        event = NewEvent(EventType.checkpoint, data, checkpoint.step)
        # The limit counts failures without progress, and a checkpoint is progress.
        lifecycle.append_events(session, run.id, run.attempt, [event], {"failure_count": 0})
        session.add(
            Checkpoint(
                run_id=run.id,
                attempt=run.attempt,
                step=checkpoint.step,
                artifact=published.key,
                sha256=published.sha256,
                size_bytes=published.size_bytes,
            )
        )
        superseded = _delete_superseded(session, run)
    for artifact in superseded:
        try:
            get_store().delete(artifact)
        except Exception as error:
            # The new checkpoint is committed: what fails after that must not end the attempt.
            logger.warning("could not remove %s: %s", artifact, error, extra={"run_id": run.id})


def _is_recorded(session: Session, run: Run, checkpoint: files.CheckpointRecord) -> bool:
    statement = select(Checkpoint.id).where(
        Checkpoint.run_id == run.id, Checkpoint.attempt == run.attempt, Checkpoint.step == checkpoint.step
    )
    return session.exec(statement).first() is not None


def _delete_superseded(session: Session, run: Run) -> list[str]:
    """Delete the rows of all but the newest `keep_checkpoints` checkpoints, and return their artifacts."""
    config = run.stage_config()
    n_kept = config.keep_checkpoints if isinstance(config, TrainingConfig) else 1
    newest = select(Checkpoint).where(col(Checkpoint.run_id) == run.id)
    newest = newest.order_by(col(Checkpoint.step).desc(), col(Checkpoint.attempt).desc())
    superseded = session.exec(newest.offset(n_kept)).all()
    for checkpoint in superseded:
        session.delete(checkpoint)
    return [checkpoint.artifact for checkpoint in superseded]
