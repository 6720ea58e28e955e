"""Files that arrive in parts: named by the hash of their content, invisible until they are published.

The state of an upload is its file, whose size is the number of bytes that have arrived. So an upload
continues after a crash of either side, from another process, and under another key. The collector removes
what nobody continues or publishes.
"""

import contextlib
import fcntl
import os
import shutil
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import BinaryIO

from starlette.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect

from app.artifacts.quota import VERIFIED_SUFFIX, check_quota, mark_owner
from app.artifacts.schemas import UploadProgress
from app.http.errors import Conflict, PayloadTooLarge, ServiceUnavailable, UnprocessableContent, field_error
from app.http.unavailable import StorageFull
from app.settings import Settings
from app.storage.inventory import PARTIAL_SUFFIX
from app.storage.local_files import fsync_file, fsync_folder
from app.storage.opening import get_store
from trainers.runtime.error_codes import ErrorCode
from trainers.runtime.verified_files import hash_file

FOLDER = "uploads"
MAX_CHUNK_BYTES = 32 << 20
# An upload that received nothing for this long no longer counts as one in progress.
ACTIVE_SECONDS = 600.0


class UploadOffsetDiffers(Conflict):
    """The bytes do not follow those that have arrived."""

    code = ErrorCode.upload_offset_differs


class UploadBusy(Conflict):
    """Another request is sending bytes of the same content."""

    code = ErrorCode.upload_busy
    headers = {"Retry-After": "1"}  # noqa: RUF012 — read only, like the other attributes


class UploadHashDiffers(UnprocessableContent):
    """The bytes that arrived have another hash than the upload is named by."""

    code = ErrorCode.upload_hash_differs


class TooManyArtifactUploads(ServiceUnavailable):
    """As many uploads are in progress as the setting allows."""

    code = ErrorCode.too_many_uploads


def get_progress(settings: Settings, sha256: str) -> UploadProgress:
    """Return what has arrived; nothing for an upload that has not begun."""
    partial, verified = _paths(settings, sha256)
    is_complete = verified.is_file()
    try:
        n_bytes = (verified if is_complete else partial).stat().st_size
    except FileNotFoundError:
        n_bytes = 0
    return UploadProgress(
        sha256=sha256, received_bytes=n_bytes, is_complete=is_complete, max_chunk_bytes=MAX_CHUNK_BYTES
    )


async def append(
    settings: Settings,
    key_id: str,
    sha256: str,
    offset_bytes: int,
    size_bytes: int,
    chunks: AsyncIterator[bytes],
) -> UploadProgress:
    """Add bytes that a key sends to an upload, and verify it when the last one has arrived.

    Bytes that arrive before the client disconnects are kept.

    Raises:
        UploadOffsetDiffers: The bytes do not follow those that have arrived.
        UploadBusy: Another request adds bytes.
        PayloadTooLarge: The file or the body is larger than allowed.
        UploadHashDiffers: The content has another hash; it is discarded.
        UploadQuotaReached: The key has as much unpublished as it may.
        TooManyArtifactUploads, StorageFull: There is no room for another upload.
    """
    check_size(settings, size_bytes)
    partial, verified = _paths(settings, sha256)
    if await run_in_threadpool(verified.is_file):
        await run_in_threadpool(os.utime, verified)
        # Who keeps the file from being collected has it counted, too.
        await run_in_threadpool(mark_owner, settings, key_id, sha256)
        return get_progress(settings, sha256)
    with await run_in_threadpool(_open_locked, settings, key_id, sha256, size_bytes) as file:
        received = os.fstat(file.fileno()).st_size
        if received != offset_bytes:
            raise UploadOffsetDiffers(
                f"{received} bytes have arrived, but these begin at {offset_bytes}.",
                hint=f"GET /api/v1/artifacts/uploads/{sha256} returns where to continue.",
            )
        allowed = min(size_bytes - received, MAX_CHUNK_BYTES)
        # The bytes before a disconnection count; nobody receives this response.
        with contextlib.suppress(ClientDisconnect):
            async for chunk in chunks:
                allowed -= len(chunk)
                if allowed < 0:
                    raise PayloadTooLarge(
                        f"The body has more bytes than are missing, or more than {MAX_CHUNK_BYTES}.",
                        hint="Send at most `max_chunk_bytes` in a request.",
                    )
                await run_in_threadpool(file.write, chunk)
        await run_in_threadpool(file.flush)
        if os.fstat(file.fileno()).st_size == size_bytes:
            await run_in_threadpool(_verify, file, partial, verified, sha256)
    return get_progress(settings, sha256)


def check_size(settings: Settings, size_bytes: int) -> None:
    """Raise PayloadTooLarge for a file over the limit."""
    if size_bytes > settings.max_artifact_bytes:
        raise PayloadTooLarge(
            f"size_bytes: The file is larger than {settings.max_artifact_bytes} bytes.",
            hint="Raise TUNESMITH_MAX_ARTIFACT_BYTES for the API.",
            fields=[{"field": "size_bytes", "message": "It is too large."}],
        )


def find_verified(settings: Settings, sha256: str, size_bytes: int) -> Path | None:
    """Return the file of a complete upload, or None; raises UnprocessableContent for another size."""
    _, verified = _paths(settings, sha256)
    try:
        found = verified.stat().st_size
        os.utime(verified)
    except FileNotFoundError:
        return None
    if found != size_bytes:
        raise field_error("size_bytes", f"The content with the hash {sha256} has {found} bytes.")
    return verified


def staging_folder(settings: Settings) -> Path:
    """Return the folder of uploads: in a local store, so that they are published by a link."""
    store = get_store()
    return (Path(store.root) if store.local else settings.data_dir) / FOLDER


def _paths(settings: Settings, sha256: str) -> tuple[Path, Path]:
    folder = staging_folder(settings)
    return folder / f"{sha256}{PARTIAL_SUFFIX}", folder / f"{sha256}{VERIFIED_SUFFIX}"


def _open_locked(settings: Settings, key_id: str, sha256: str, size_bytes: int) -> BinaryIO:
    """Open the file of an upload for appending; one request at a time has it, over all processes."""
    partial, _ = _paths(settings, sha256)
    partial.parent.mkdir(parents=True, exist_ok=True)
    # A later request may announce another size than the first, and other uploads fill the disk as well.
    found = _stat(partial)
    missing_bytes = size_bytes - (found.st_size if found else 0)
    _check_disk(settings, missing_bytes)
    check_quota(settings, partial.parent, key_id, missing_bytes)
    if found is None:
        _check_number(settings)
    file = partial.open("ab")
    mark_owner(settings, key_id, sha256)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # It was completed or removed between the two calls.
        if not partial.exists() or not os.path.samestat(os.fstat(file.fileno()), partial.stat()):
            raise BlockingIOError
    except BlockingIOError as error:
        file.close()
        raise UploadBusy(
            "Another request is sending this content.", hint="Repeat the request in a second."
        ) from error
    return file


def _stat(path: Path) -> os.stat_result | None:
    """Return the state of a file, or None if it does not exist: another request may complete it."""
    try:
        return path.stat()
    except FileNotFoundError:
        return None


def _check_disk(settings: Settings, missing_bytes: int) -> None:
    if shutil.disk_usage(staging_folder(settings)).free < missing_bytes + settings.reserved_disk_bytes:
        raise StorageFull(
            f"The disk of the artifact store has no room for {missing_bytes} more bytes: "
            f"{settings.reserved_disk_bytes} must stay free.",
            hint="Free space on it: GET /api/v1/storage shows what uses it. TUNESMITH_RESERVED_DISK_BYTES "
            "sets what stays free.",
        )


def _check_number(settings: Settings) -> None:
    newest = time.time() - ACTIVE_SECONDS
    active = [
        path
        for path in staging_folder(settings).glob(f"*{PARTIAL_SUFFIX}")
        if not path.name.endswith(VERIFIED_SUFFIX) and (found := _stat(path)) and found.st_mtime > newest
    ]
    if len(active) >= settings.max_artifact_uploads:
        raise TooManyArtifactUploads(
            f"{len(active)} uploads are in progress.",
            hint="Repeat the request later, or raise TUNESMITH_MAX_ARTIFACT_UPLOADS.",
        )


def _verify(file: BinaryIO, partial: Path, verified: Path, sha256: str) -> None:
    fsync_file(file)
    if hash_file(partial) != sha256:
        partial.unlink()
        raise UploadHashDiffers(
            f"The bytes that arrived do not have the hash {sha256}; they were discarded.",
            hint="Send the file again from its start.",
        )
    partial.rename(verified)
    fsync_folder(verified.parent)
