"""Checkpoints on their way from a run directory to the artifact store, in a thread of their own.

The program prunes its checkpoints without asking. So that a slow store is not left with none at all,
each is held by hard links until it is stored; of those that wait only the newest is, which bounds the
disk that they take.
"""

import os
import shutil
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from app.storage.artifacts import PublishedArtifact, get_store
from app.tables import Run
from trainers.runtime import run_dir as files

HELD = ".held"


@dataclass(frozen=True)
class CheckpointUpload:
    """A checkpoint that is being stored; the future answers None when the program pruned it too soon."""

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
        """Store a checkpoint after the one that is being stored now, instead of any that waits."""
        for upload in [upload for upload in self.pending if upload.stored.cancel()]:
            self.remove(upload)
        folder = self._hold(checkpoint)
        stored = self._executor.submit(_store, folder, f"{self._key}{checkpoint.step:08d}")
        self.pending.append(CheckpointUpload(checkpoint, folder, stored))

    def remove(self, upload: CheckpointUpload) -> None:
        """Forget a checkpoint that SQL knows, or never will."""
        self.pending.remove(upload)
        if self._run_dir / HELD in upload.folder.parents:
            shutil.rmtree(upload.folder, ignore_errors=True)

    def close(self) -> None:
        """Begin no further upload and wait for the one under way."""
        self._executor.shutdown(cancel_futures=True)

    def _hold(self, checkpoint: files.CheckpointRecord) -> Path:
        """Hard links to the checkpoint's files, or where there can be none, the files themselves."""
        source = self._run_dir / checkpoint.path
        held = self._run_dir / HELD / f"step-{checkpoint.step:08d}"
        try:
            shutil.copytree(source, held, copy_function=os.link)
        except OSError:
            shutil.rmtree(held, ignore_errors=True)
            return source
        return held


def _store(folder: Path, key: str) -> PublishedArtifact | None:
    try:
        published = get_store().publish_folder(folder, key)
    except FileNotFoundError:
        return None
    if _is_whole(folder):
        return published
    get_store().delete(key)
    return None


def _is_whole(folder: Path) -> bool:
    """Whether no file was pruned before it could be stored: files only vanish, so asking afterwards tells."""
    try:
        manifest = files.read_json(folder / files.MANIFEST) or {}
        return all((folder / file["path"]).is_file() for file in manifest["files"])
    except (KeyError, TypeError, ValueError):
        return False
