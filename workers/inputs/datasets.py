"""The datasets and the sources of runs on this host.

A source is a data set of the hub, or files under an allowed root. The result is the absolute path of each
file, so that no program resolves a name again.
"""

from collections.abc import Callable
from pathlib import Path

from sqlmodel import Session, col, select

from app.settings import Settings
from app.storage.database import read_session
from app.storage.opening import get_store
from app.tables import Dataset, Run
from trainers.configs import DatasetRef
from trainers.configs.sources import HUB_DATASET, HubSource, Source
from workers.inputs.errors import InputDatasetNotFound, InputRefused
from workers.inputs.hub_download import HubDownloadFailed, download_dataset


def fetch_dataset(dataset: Dataset) -> Path:
    """Return the path of the dataset's file on this host; raises OSError or ArtifactCorrupt."""
    return get_store().fetch_file(dataset.artifact, dataset.sha256)


def find_dataset(job_id: str, reference: DatasetRef) -> Dataset:
    """Return the dataset of the registry, or the part that an earlier stage of the job has produced."""
    with read_session() as session:
        if isinstance(reference, str):
            return _get_dataset(session, reference)
        by_name = select(Run).where(col(Run.job_id) == job_id, col(Run.name) == reference.stage)
        result = session.exec(by_name).one().result
        assert result is not None, f"stage {reference.stage} of {job_id} has succeeded"
        dataset_id = next((d["id"] for d in result["datasets"] if d["part"] == reference.part), None)
        if dataset_id is None:
            raise InputDatasetNotFound(
                f"Stage {reference.stage!r} produced no part {reference.part!r}: no row was assigned to it.",
                "Request a larger part in its `split`, or add rows.",
            )
        return _get_dataset(session, dataset_id)


def _get_dataset(session: Session, dataset_id: str) -> Dataset:
    dataset = session.get(Dataset, dataset_id)
    if dataset is None or dataset.deleted_at is not None:
        raise InputDatasetNotFound(
            f"The dataset {dataset_id} {'does not exist' if dataset is None else 'was deleted'}.",
            "Upload the same file again, which restores a deleted dataset, or submit a job with another one.",
        )
    return dataset


def fetch_source(source: Source, settings: Settings, should_stop: Callable[[], bool]) -> Source:
    """Return the source with absolute paths; one of the hub is downloaded and becomes a folder.

    Raises InputDatasetNotFound, InputRefused, and LaunchStopped when `should_stop` returned True.
    """
    if isinstance(source, HubSource) and not source.paths:
        if not HUB_DATASET.fullmatch(source.name):
            raise InputDatasetNotFound(
                f"The source {source.name!r} is not the id of a data set on the hub.",
                "Write `name` or `org/name`, or the path of a folder.",
            )
        try:
            snapshot = download_dataset(source, settings, should_stop)
        except HubDownloadFailed as error:
            raise InputRefused(error) from error
        return source.model_copy(update={"name": str(snapshot.folder), "revision": snapshot.commit})
    return source.with_paths({path: str(_resolve_path(path, settings)) for path in source.paths})


def _resolve_path(path: str, settings: Settings) -> Path:
    """Return the real path of a file or folder under a root; a relative path is relative to the roots."""
    named = Path(path).expanduser()
    candidates = [named] if named.is_absolute() else [root / named for root in settings.dataset_roots]
    existing = [real for candidate in candidates if (real := candidate.resolve()).exists()]
    allowed = [real for real in existing if any(real.is_relative_to(root) for root in settings.dataset_roots)]
    if not allowed:
        reason = "is not in a folder that this worker may read" if existing else "does not exist on this host"
        raise InputDatasetNotFound(
            f"The source {path} {reason}.",
            "Move it into a folder of TUNESMITH_DATASET_ROOTS on the worker, or add its folder there.",
        )
    return allowed[0]
