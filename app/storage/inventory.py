"""What the artifact store contains, by listing it: artifacts with their kind, size and age."""

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from app.scheduling.availability import CHECK_FOLDER
from app.storage.artifacts import ArtifactStore
from app.storage.remote.protocol import change_time

PARTIAL_SUFFIX = ".part"
ATTEMPT = re.compile(r"[0-9]+(-|$)")


class ArtifactKind(StrEnum):
    """The first part of an artifact's key; partial publications and unknown keys have kinds of their own."""

    datasets = "datasets"
    models = "models"
    checkpoints = "checkpoints"
    evaluations = "evaluations"
    files = "files"
    runs = "runs"
    partial = "partial"
    other = "other"


# The number of parts of an artifact's key: `models/ID`, but `checkpoints/RUN/ATTEMPT-STEP`.
KEY_PARTS = {
    ArtifactKind.datasets: 2,
    ArtifactKind.models: 2,
    ArtifactKind.checkpoints: 3,
    ArtifactKind.evaluations: 3,
    ArtifactKind.files: 2,
    ArtifactKind.runs: 3,
}


@dataclass
class StoredArtifact:
    """The files under one key; `changed_at` is the time of the newest of them."""

    kind: ArtifactKind
    key: str
    size_bytes: int = 0
    changed_at: float = 0.0

    @property
    def run_id(self) -> str:
        """The run to which a checkpoint, an evaluation or a run's file belongs."""
        return self.key.split("/")[1]

    @property
    def attempt(self) -> int:
        """The attempt of that run."""
        return int(self.key.split("/")[2].partition("-")[0])


def list_artifacts(store: ArtifactStore) -> list[StoredArtifact]:
    """Return everything that the store contains; raises OSError if it cannot be listed."""
    artifacts: dict[str, StoredArtifact] = {}
    for path, size_bytes, changed_at in _list_files_but_checks(store):
        kind, key = _parse_key(path)
        artifact = artifacts.setdefault(key, StoredArtifact(kind, key))
        artifact.size_bytes += size_bytes
        artifact.changed_at = max(artifact.changed_at, changed_at)
    return list(artifacts.values())


def list_keys(store: ArtifactStore) -> Iterator[str]:
    """Yield the key of every file."""
    return (key for key, _, _ in _list_files_but_checks(store))


def _parse_key(path: str) -> tuple[ArtifactKind, str]:
    parts = path.split("/")
    for position, part in enumerate(parts):
        if part.endswith(PARTIAL_SUFFIX):
            return ArtifactKind.partial, "/".join(parts[: position + 1])
    kind = ArtifactKind(parts[0]) if parts[0] in KEY_PARTS else ArtifactKind.other
    n_parts = KEY_PARTS.get(kind, 0)
    has_attempt = n_parts < 3 or (len(parts) > 2 and ATTEMPT.match(parts[2]) is not None)
    if kind is ArtifactKind.other or len(parts) < n_parts or not has_attempt:
        return ArtifactKind.other, path
    return kind, "/".join(parts[:n_parts])


def _list_files_but_checks(store: ArtifactStore) -> Iterator[tuple[str, int, float]]:
    """Yield the files without those that the checks of the store write and delete again."""
    return (file for file in _list_files(store) if not file[0].startswith(f"{CHECK_FOLDER}/"))


def _list_files(store: ArtifactStore) -> Iterator[tuple[str, int, float]]:
    """Yield the key, size and time of every file."""
    if store.local:
        # A third of the time of fsspec's own walk.
        for folder, _, names in os.walk(store.root):
            for name in names:
                path = Path(folder, name)
                try:
                    status = path.lstat()
                except FileNotFoundError:
                    continue
                yield path.relative_to(store.root).as_posix(), status.st_size, status.st_mtime
        return
    for path, entry in store.fs.find(store.root, detail=True).items():
        key = path.removeprefix(store.root).lstrip("/")
        # A store without times protects its files: they never become old.
        yield key, int(entry["size"]), change_time(entry) or float("inf")
