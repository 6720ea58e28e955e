"""Publication of uploaded files, reading of published ones, and deletion of what no row names."""

import hashlib
from pathlib import Path

from app.artifacts.keys import ArtifactKey, check_file_key, check_member, parse_key
from app.artifacts.schemas import ArtifactView, FileCreate, FolderCreate
from app.artifacts.staging import find_verified
from app.downloads.response import Download
from app.downloads.stored_files import read_stored
from app.http.errors import Conflict, InUse, NotFound, field_error
from app.retention.garbage import list_named
from app.settings import Settings
from app.storage.database import read_session
from app.storage.inventory import ArtifactKind, StoredArtifact
from app.storage.manifest import MANIFEST, ArtifactCorrupt, encode_manifest
from app.storage.opening import get_store
from app.storage.remote.errors import ArtifactExists
from trainers.runtime.error_codes import ErrorCode

# Enough to name what is missing; the client uploads it and repeats the request.
MAX_SHOWN_FILES = 100


class ArtifactNotFound(NotFound):
    """Nothing is published under the key."""

    code = ErrorCode.artifact_not_found


class ArtifactPublished(Conflict):
    """Another artifact is published under the key."""

    code = ErrorCode.artifact_exists


class UploadMissing(Conflict):
    """A file that is to be published has not arrived."""

    code = ErrorCode.upload_missing


def find_file(key: str) -> Download:
    """Return a published file to send; raises ArtifactNotFound."""
    check_file_key(key)
    try:
        path = get_store().local_path(key)
        if path is not None and not path.is_file():
            raise FileNotFoundError(key)
        size_bytes = get_store().size_of(key)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise ArtifactNotFound(
            f"Nothing is published under {key!r}.", hint="The row that names it may have been deleted."
        ) from error
    return Download(
        # The name in the store may have characters that a header cannot contain.
        filename="artifact",
        media_type="application/octet-stream",
        size_bytes=size_bytes,
        # What is published under a key stays the same; only a run's log grows.
        etag=f'"{hashlib.sha256(f"{key}:{size_bytes}".encode()).hexdigest()[:32]}"',
        # The worker has the hash from a row, and verifies the bytes.
        open=lambda part: read_stored(key, None, part),
    )


def publish_file(settings: Settings, body: FileCreate) -> ArtifactView:
    """Publish an uploaded file; a repetition changes nothing.

    Raises:
        UploadMissing: Its bytes have not arrived.
        ArtifactPublished: The key has other content. The files of a run are replaced, since logs grow.
    """
    key = parse_key(body.key)
    if key.kind in (ArtifactKind.models, ArtifactKind.checkpoints, ArtifactKind.evaluations):
        raise field_error("key", f"The {key.kind} are folders.")
    view = ArtifactView(key=key.text, sha256=body.sha256, size_bytes=body.size_bytes)
    staged = find_verified(settings, body.sha256, body.size_bytes)
    if staged is None:
        if _has_content(key, body.sha256):
            return view
        raise _missing([body.sha256])
    try:
        get_store().publish_staged_file(staged, key.text, replace=key.kind is ArtifactKind.runs)
    except ArtifactExists as error:
        raise _published(key) from error
    except FileNotFoundError as error:
        # Another request has published the same content, and removed its upload.
        raise _missing([body.sha256]) from error
    staged.unlink(missing_ok=True)
    return view


def publish_folder(settings: Settings, body: FolderCreate) -> ArtifactView:
    """Publish uploaded files as a folder; a repetition changes nothing.

    Raises:
        UploadMissing: The bytes of a file have not arrived.
        ArtifactPublished: The key has other content.
    """
    key = parse_key(body.key)
    if key.kind in (ArtifactKind.datasets, ArtifactKind.files, ArtifactKind.runs):
        raise field_error("key", f"The {key.kind} are files.")
    entries = [
        {"path": check_member(file.path), "size_bytes": file.size_bytes, "sha256": file.sha256}
        for file in body.files
    ]
    _check_tree([str(entry["path"]) for entry in entries])
    sha256 = hashlib.sha256(encode_manifest(entries)).hexdigest()
    view = ArtifactView(key=key.text, sha256=sha256, size_bytes=sum(file.size_bytes for file in body.files))
    if _is_published(key, sha256):
        return view
    staged: dict[str, Path] = {}
    for file in body.files:
        if (path := find_verified(settings, file.sha256, file.size_bytes)) is not None:
            staged[file.sha256] = path
    if missing := [file.sha256 for file in body.files if file.sha256 not in staged]:
        raise _missing(missing)
    try:
        get_store().publish_staged_folder([(one, staged[str(one["sha256"])]) for one in entries], key.text)
    except FileNotFoundError as error:
        # Another request has published the same content, and removed its upload.
        raise _missing([sha256 for sha256, path in staged.items() if not path.exists()]) from error
    # Of two writers, the store keeps the first.
    if not _is_published(key, sha256):
        raise _published(key)
    for path in staged.values():
        path.unlink(missing_ok=True)
    return view


def delete_artifact(key_text: str) -> None:
    """Delete an artifact that no row names; raises InUse. A second deletion changes nothing."""
    key = parse_key(key_text)
    if key.kind is ArtifactKind.runs:
        raise field_error("key", "The files of a run are deleted with it.")
    with read_session() as session:
        is_named = bool(list_named(session, [StoredArtifact(key.kind, key.text)]))
    if is_named:
        raise InUse(f"A row names the artifact {key.text}.", hint="Delete that object instead.")
    get_store().delete(key.text)


def _has_content(key: ArtifactKey, sha256: str) -> bool:
    """Return whether this file is published: the response to its publication may have been lost."""
    try:
        get_store().verify_file(key.text, sha256)
    except (ArtifactCorrupt, FileNotFoundError):
        return False
    return True


def _is_published(key: ArtifactKey, sha256: str) -> bool:
    """Return whether this folder is published; raises ArtifactPublished if another one is."""
    try:
        with get_store().open(f"{key.text}/{MANIFEST}") as file:
            found = hashlib.sha256(file.read()).hexdigest()
    except (FileNotFoundError, NotADirectoryError):
        return False
    if found != sha256:
        raise _published(key)
    return True


def _check_tree(paths: list[str]) -> None:
    """Raise UnprocessableContent for a path that occurs twice, or that is the folder of another one."""
    files = set(paths)
    if len(files) != len(paths):
        raise field_error("files", "A path occurs twice.")
    for path in paths:
        parents = path.split("/")[:-1]
        if any("/".join(parents[: depth + 1]) in files for depth in range(len(parents))):
            raise field_error("files", f"{path[:100]!r} is below another file.")


def _published(key: ArtifactKey) -> ArtifactPublished:
    return ArtifactPublished(
        f"Another artifact is published under {key.text}, and is not replaced.",
        hint="Publish under a new key: keys are never used twice.",
    )


def _missing(hashes: list[str]) -> UploadMissing:
    shown = ", ".join(hashes[:MAX_SHOWN_FILES])
    return UploadMissing(
        f"{len(hashes)} of the files have not arrived: {shown}.",
        hint="Upload them with PATCH /api/v1/artifacts/uploads/{sha256}, then send this request again.",
    )
