"""Uploads to the API: by the hash of the content, so that one continues after a kill and for another key."""

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from app.storage.api_store.client import ArtifactsApi, UploadRejected
from app.storage.remote.errors import ArtifactExists, StoreUnreachable
from trainers.runtime.error_codes import ErrorCode
from trainers.runtime.verified_files import hash_file

CHUNK_BYTES = 8 << 20
# A file may change between its hash and its bytes once; a disk that does so again is damaged.
MAX_RESTARTS = 1
# Another worker may publish, and so remove, a file that both have sent.
MAX_PUBLICATIONS = 3


class SentFileMissing(OSError):
    """A file that was sent is no longer there."""


def send_file(api: ArtifactsApi, source: Path) -> tuple[str, int]:
    """Send what has not arrived of a file; return its hash and size. It is not published yet.

    Raises:
        OSError: The API is away, refuses the file, or receives other bytes than were hashed.
    """
    for restart in range(MAX_RESTARTS + 1):
        sha256, size_bytes = hash_file(source), source.stat().st_size
        try:
            _send(api, source, sha256, size_bytes)
        except UploadRejected as error:
            if error.code == ErrorCode.upload_hash_differs and restart < MAX_RESTARTS:
                continue
            raise
        break
    return sha256, size_bytes


def publish(
    api: ArtifactsApi, path: str, key: str, send_files: Callable[[], dict[str, Any]]
) -> dict[str, Any]:
    """Send files, and publish them with the fields that `send_files` returns; return the artifact.

    Raises:
        ArtifactExists: The key has other content.
        OSError: As `send_file`.
    """
    for _ in range(MAX_PUBLICATIONS - 1):
        with contextlib.suppress(SentFileMissing):
            return _publish(api, path, key, send_files())
    return _publish(api, path, key, send_files())


def _publish(api: ArtifactsApi, path: str, key: str, fields: dict[str, Any]) -> dict[str, Any]:
    try:
        published: dict[str, Any] = api.request("POST", path, json={"key": key, **fields}).json()
    except UploadRejected as error:
        if error.code == ErrorCode.artifact_exists:
            raise ArtifactExists(key) from error
        if error.code == ErrorCode.upload_missing:
            raise SentFileMissing(str(error)) from error
        raise
    return published


def _send(api: ArtifactsApi, source: Path, sha256: str, size_bytes: int) -> None:
    path = f"/uploads/{sha256}"
    progress: dict[str, Any] = {"received_bytes": 0, "is_complete": False, "max_chunk_bytes": CHUNK_BYTES}
    if size_bytes > CHUNK_BYTES:
        progress = api.request("GET", path).json()
    with source.open("rb") as file:
        while not progress["is_complete"]:
            offset = progress["received_bytes"]
            file.seek(offset)
            chunk = file.read(min(CHUNK_BYTES, progress["max_chunk_bytes"]))
            if not chunk and offset < size_bytes:
                raise StoreUnreachable(f"{source.name} became shorter while it was uploaded")
            query = {"offset_bytes": offset, "size_bytes": size_bytes}
            try:
                sent = api.request("PATCH", path, params=query, content=chunk).json()
            except UploadRejected as error:
                if error.code != ErrorCode.upload_offset_differs:
                    raise
                # Bytes of a request arrived whose response did not, or another worker sent some.
                sent = api.request("GET", path).json()
            progress = sent
