"""Upload of checkpoints from a run directory to the artifact store, in a thread of its own.

The program deletes its older checkpoints at any time. So that a slow store does not end up without any,
each checkpoint is kept by hard links until it is stored. Of those that wait, only the newest is kept, which
bounds the disk space.
"""

import os
import shutil
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from app.storage.artifacts import PublishedArtifact, get_store
from app.tables import Run
from trainers.runtime import run_dir as files

LINK_FOLDER = ".held"


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
        self._key = f"checkpoints/{run.id}/{run.attempt}-"
        self._run_dir = run_dir
        self._executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix="upload")

    def add(self, checkpoint: files.CheckpointRecord) -> None:
        """Store a checkpoint after the current upload, and drop the ones that are waiting."""
        for upload in [upload for upload in self.pending if upload.stored.cancel()]:
            self.remove(upload)
        folder = self._link_files(checkpoint)
        stored = self._executor.submit(_store_checkpoint, folder, f"{self._key}{checkpoint.step:08d}")
        self.pending.append(CheckpointUpload(checkpoint, folder, stored))

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
