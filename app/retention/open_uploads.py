"""Uploads to a bucket that were not completed: their parts are billed, but in no listing of objects."""

import time
from collections.abc import Callable, Iterator

from app.retention.report import Removal, RemovalReason
from app.storage.artifacts import ArtifactStore
from app.storage.s3.files import S3Files


def abort_uploads(
    store: ArtifactStore,
    grace_seconds: float,
    before_each: Callable[[], None],
    *,
    dry_run: bool,
    now: Callable[[], float] = time.time,
) -> Iterator[Removal]:
    """Abort the uploads to which no part was added for the grace period, and yield each."""
    if not isinstance(store.fs, S3Files):
        return
    for upload in store.fs.list_open_uploads(store.root):
        if upload.changed_at > now() - grace_seconds:
            continue
        before_each()
        if not dry_run:
            store.fs.abort_upload(upload)
        key = upload.path.removeprefix(store.root).lstrip("/")
        yield Removal(reason=RemovalReason.partial, name=key, size_bytes=upload.size_bytes)
