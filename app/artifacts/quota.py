"""A bound on what one API key has sent and not published, so that it does not fill the disk for all others.

A marker named by the hash, in a folder of the key in the data directory, records who has sent bytes of an
upload. It is removed once the upload is published, and collected when nobody continues it.
"""

import os
import time
from dataclasses import dataclass
from pathlib import Path

from app.artifacts.schemas import MAX_FILES
from app.http.errors import ServiceUnavailable
from app.settings import Settings
from app.storage.inventory import PARTIAL_SUFFIX
from trainers.runtime.error_codes import ErrorCode

FOLDER = "upload-owners"
VERIFIED_SUFFIX = ".verified" + PARTIAL_SUFFIX
LOCAL_OWNER = "local"
# Those of two of the largest folders.
MAX_STAGED_FILES = 2 * MAX_FILES
# A measurement lists the key's files: it is repeated after this time, and takes at most this share of it.
MEASURE_SECONDS = 5.0
MEASURE_SHARE = 0.1


class UploadQuotaReached(ServiceUnavailable):
    """The key has as much unpublished as a setting allows."""

    code = ErrorCode.upload_quota_reached


@dataclass(frozen=True)
class StagedUse:
    """The files that a key has sent and not published, and until when this is recent enough."""

    n_files: int
    n_bytes: int
    valid_until: float


_measured: dict[Path, StagedUse] = {}


def mark_owner(settings: Settings, key_id: str, sha256: str) -> None:
    """Record that a key sends bytes of an upload."""
    marker = _folder(settings, key_id) / f"{sha256}{PARTIAL_SUFFIX}"
    marker.parent.mkdir(parents=True, exist_ok=True)
    marker.touch()


def check_quota(settings: Settings, uploads: Path, key_id: str, missing_bytes: int) -> None:
    """Raise UploadQuotaReached if a key may not send this many more bytes."""
    folder = _folder(settings, key_id)
    use = _measured.get(folder)
    if use is None or use.valid_until <= time.monotonic():
        use = _measured[folder] = _measure(uploads, folder)
    if use.n_files >= MAX_STAGED_FILES:
        raise UploadQuotaReached(
            f"{use.n_files} files that this API key has sent are not published, of at most "
            f"{MAX_STAGED_FILES}.",
            hint="Publish them. What nobody continues is removed after TUNESMITH_GC_GRACE_SECONDS.",
        )
    if use.n_bytes + missing_bytes > settings.max_staged_bytes_per_key:
        raise UploadQuotaReached(
            f"This API key has sent {use.n_bytes} bytes that are not published; with {missing_bytes} more "
            f"they exceed {settings.max_staged_bytes_per_key}.",
            hint="Publish them, wait until unfinished ones are removed (TUNESMITH_GC_GRACE_SECONDS), or "
            "raise TUNESMITH_MAX_STAGED_BYTES_PER_KEY for the API.",
        )


def _folder(settings: Settings, key_id: str) -> Path:
    return settings.data_dir / FOLDER / (key_id or LOCAL_OWNER)


def _measure(uploads: Path, folder: Path) -> StagedUse:
    """Count a key's files, and remove the markers of those that are published or collected."""
    started = time.monotonic()
    n_files = n_bytes = 0
    for marker in os.scandir(folder) if folder.is_dir() else ():
        sha256 = marker.name.removesuffix(PARTIAL_SUFFIX)
        size_bytes = _size(uploads / f"{sha256}{PARTIAL_SUFFIX}", uploads / f"{sha256}{VERIFIED_SUFFIX}")
        if size_bytes is None:
            Path(marker.path).unlink(missing_ok=True)
        else:
            n_files, n_bytes = n_files + 1, n_bytes + size_bytes
    seconds = time.monotonic() - started
    return StagedUse(n_files, n_bytes, time.monotonic() + max(MEASURE_SECONDS, seconds / MEASURE_SHARE))


def _size(*paths: Path) -> int | None:
    """Return the size of the first file that exists."""
    for path in paths:
        try:
            return path.stat().st_size
        except FileNotFoundError:
            continue
    return None
