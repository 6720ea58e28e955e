"""The files of a run: its log, its events, and what its result names, such as predictions."""

from pathlib import PurePosixPath

from app.downloads.response import Download
from app.downloads.stored_files import read_stored
from app.http.errors import NotFound
from app.runs.schemas import RunFilesView, RunFileView
from app.runs.service import get_run
from app.storage.database import read_session
from app.storage.opening import get_store
from trainers.runtime.error_codes import ErrorCode

TEXT = "text/plain; charset=utf-8"


class FileNotPublished(NotFound):
    """The run has no such file; files are published when an attempt ends."""

    code = ErrorCode.file_not_published


def list_files(run_id: str) -> RunFilesView:
    """Return the published files of the run's last attempt; raises RunNotFound or FileNotPublished."""
    store, folder = get_store(), _find_folder(run_id, "files")
    names = sorted(PurePosixPath(entry.key).name for entry in store.list_folder(folder))
    return RunFilesView(
        items=[RunFileView(name=name, size_bytes=store.size_of(f"{folder}/{name}")) for name in names]
    )


def find_file(run_id: str, name: str) -> Download:
    """Return a published file of the run's last attempt to send; raises RunNotFound or FileNotPublished."""
    key = f"{_find_folder(run_id, f'the file {name}')}/{name}"
    try:
        size_bytes = get_store().size_of(key)
    except FileNotFoundError as error:
        raise FileNotPublished(
            f"{run_id} has no file {name}.", hint=f"GET /api/v1/runs/{run_id}/files lists its files."
        ) from error
    attempt = PurePosixPath(key).parent.name
    return Download(
        filename=f"{run_id}-{name}",
        media_type=TEXT,
        size_bytes=size_bytes,
        # The file of an attempt never changes; its hash is not recorded.
        etag=f'"{run_id}-{attempt}-{size_bytes}"',
        open=lambda part: read_stored(key, None, part),
    )


def _find_folder(run_id: str, wanted: str) -> str:
    """Return the key of the folder with the files of the run's last attempt, in a session of its own."""
    with read_session() as session:
        run = get_run(session, run_id)
    if run.log_artifact is not None:
        return str(PurePosixPath(run.log_artifact).parent)
    if run.status.finished:
        raise FileNotPublished(
            f"The files of {run_id} were not published, or were deleted to bound the disk space of old runs.",
            hint="TUNESMITH_MAX_RUN_FILES_BYTES is the limit. The metrics of the run are kept.",
        )
    raise FileNotPublished(
        f"{run_id} has not published {wanted}: files are published when an attempt ends.",
        hint=f"GET /api/v1/runs/{run_id}/logs lists its log lines so far.",
    )
