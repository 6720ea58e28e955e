"""Verification of the whole store: every byte that a row names, and artifacts that no row names.

A fetch does not read a file again that has not changed since this host last verified it. This does, and so
it also finds bits that rotted on the disk.
"""

import errno
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import StrEnum

from sqlmodel import col, select

from app.storage.artifacts import ArtifactStore
from app.storage.database import read_session
from app.storage.manifest import ArtifactCorrupt
from app.tables import Checkpoint, Comparison, Dataset, Evaluation, File, Model, Run, UploadPart

# An artifact is published before its row is committed, and a folder on S3 file by file.
UNKNOWN_AFTER_SECONDS = 3600.0
# What a failing disk reports for one file, and what a file of another kind does: others can still be read.
DAMAGE_ERRNOS = {errno.EIO, errno.EISDIR, errno.ENOTDIR, errno.ELOOP}
DATASETS, MODELS, CHECKPOINTS, EVALUATIONS, RUNS = "datasets", "models", "checkpoints", "evaluations", "runs"

Report = Callable[["VerifyProgress"], None]


class FaultKind(StrEnum):
    """What is wrong with an artifact."""

    damaged = "damaged"
    missing = "missing"
    unknown = "unknown"


@dataclass(frozen=True)
class StoreFault:
    """An artifact that differs from its row, or has none."""

    kind: FaultKind
    key: str
    message: str


@dataclass(frozen=True)
class VerifyProgress:
    """How much has been verified."""

    n_artifacts: int
    total_artifacts: int
    n_bytes: int
    total_bytes: int


@dataclass(frozen=True)
class NamedArtifact:
    """An artifact that a row names."""

    owner: str
    key: str
    sha256: str
    size_bytes: int
    is_folder: bool


def verify_store(store: ArtifactStore, report: Report) -> Iterator[StoreFault]:
    """Yield the faults of the whole store; raises OSError if it cannot be read."""
    # Listed before the rows are read: what is published meanwhile has its row by then.
    stored = list(_list_stored(store))
    named = list_named_artifacts()
    total_bytes, n_bytes = sum(artifact.size_bytes for artifact in named), 0
    for count, artifact in enumerate(named):
        report(VerifyProgress(count, len(named), n_bytes, total_bytes))
        fault = _verify_artifact(store, artifact)
        # A run deletes its older checkpoints at any time.
        if fault is not None and artifact in list_named_artifacts():
            yield fault
        n_bytes += artifact.size_bytes
    report(VerifyProgress(len(named), len(named), n_bytes, total_bytes))
    known = {artifact.key for artifact in named} | _list_deleted_keys()
    known |= {f"{RUNS}/{run_id}" for run_id in _list_run_ids()}
    for key in stored:
        if key not in known:
            yield StoreFault(FaultKind.unknown, key, "No row of the database names it.")


def list_named_artifacts() -> list[NamedArtifact]:
    """Return every artifact whose hash a row contains."""
    with read_session() as session:
        named = []
        for table in (Dataset, Model, Checkpoint):
            rows = select(table.id, table.artifact, table.sha256, table.size_bytes)
            if table is Dataset or table is Model:
                rows = rows.where(col(table.deleted_at).is_(None))
            named += [NamedArtifact(*row, is_folder=table is not Dataset) for row in session.exec(rows)]
        # The rows of other files are datasets.
        contents = select(File).where(col(File.artifact).is_not(None))
        for file in (*session.exec(contents), *session.exec(select(UploadPart))):
            assert file.artifact is not None and file.sha256 is not None, "its bytes are kept"
            named.append(NamedArtifact(file.id, file.artifact, file.sha256, file.size_bytes, is_folder=False))
        # The evaluations of a run share an artifact.
        for name in (Evaluation, Comparison):
            distinct = select(name.run_id, name.artifact, name.sha256, name.size_bytes).distinct()
            named += [NamedArtifact(*row, is_folder=True) for row in session.exec(distinct)]
    return named


def _list_deleted_keys() -> set[str]:
    """Return the keys of deleted datasets and models, whose files the next collection removes."""
    with read_session() as session:
        return {
            key
            for table in (Dataset, Model)
            for key in session.exec(select(table.artifact).where(col(table.deleted_at).is_not(None)))
        }


def _list_run_ids() -> list[str]:
    with read_session() as session:
        return list(session.exec(select(Run.id)))


def _verify_artifact(store: ArtifactStore, artifact: NamedArtifact) -> StoreFault | None:
    try:
        if artifact.is_folder:
            store.verify_folder(artifact.key, artifact.sha256)
        else:
            store.verify_file(artifact.key, artifact.sha256)
    except ArtifactCorrupt as error:
        return StoreFault(FaultKind.damaged, artifact.key, f"{artifact.owner}: {error.message}")
    except FileNotFoundError:
        message = f"{artifact.owner}: its files are not in the store."
        return StoreFault(FaultKind.missing, artifact.key, message)
    except OSError as error:
        if error.errno not in DAMAGE_ERRNOS:
            raise
        message = f"{artifact.owner}: a file cannot be read: {error.strerror}."
        return StoreFault(FaultKind.damaged, artifact.key, message)
    return None


def _list_stored(store: ArtifactStore) -> Iterator[str]:
    """Yield the key of each artifact that is old enough to have a row."""
    newest = time.time() - UNKNOWN_AFTER_SECONDS
    of_runs = [entry.key for kind in (CHECKPOINTS, EVALUATIONS) for entry in store.list_folder(kind)]
    folders = [DATASETS, MODELS, RUNS, *of_runs]
    for folder in folders:
        for entry in store.list_folder(folder):
            if entry.changed_at is None or entry.changed_at < newest:
                yield entry.key
