"""Manifests of published folders, and the check of stored bytes against them."""

import hashlib
import json
import os
import re
import stat
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, Self

from app.http.errors import InternalServerError
from trainers.runtime.error_codes import ErrorCode
from trainers.runtime.verified_files import VerifiedFiles

MANIFEST = ".manifest.json"
OTHER_HASH = "has another SHA-256 than when it was published"
HASH = re.compile(r"[0-9a-f]{64}", re.ASCII)
# hashlib releases the interpreter's lock: files of one folder are read side by side.
MAX_READERS = min(4, os.cpu_count() or 1)


class ArtifactCorrupt(InternalServerError):
    """A file of an artifact is missing or differs from its manifest."""

    code = ErrorCode.artifact_corrupt

    def __init__(self, key: str, reason: str) -> None:
        super().__init__(
            f"The artifact {key} is damaged: {reason}.",
            hint="Restore it from a backup, or make it again. `python -m app verify` checks the whole store.",
        )


def encode_manifest(files: list[dict[str, Any]]) -> bytes:
    """Return the content of a manifest: the same files give the same bytes."""
    return json.dumps({"files": files}, sort_keys=True).encode()


def parse_manifest(manifest: bytes, key: str, sha256: str) -> list[dict[str, Any]]:
    """Return the files of a manifest with this hash; raises ArtifactCorrupt."""
    if hashlib.sha256(manifest).hexdigest() != sha256:
        raise ArtifactCorrupt(key, f"{MANIFEST} {OTHER_HASH}")
    files: list[dict[str, Any]] = json.loads(manifest)["files"]
    for file in files:
        # A host that can write to the bucket and to rows could otherwise write files on other hosts.
        if not _is_relative(str(file["path"])):
            raise ArtifactCorrupt(key, f"{str(file['path'])[:100]!r} is not the path of a file in it")
    return files


def check_hash(sha256: str, key: str) -> None:
    """Raise ArtifactCorrupt unless it is a SHA-256 in hexadecimal: it names the copy in the cache."""
    if HASH.fullmatch(sha256) is None:
        raise ArtifactCorrupt(key, f"{sha256[:100]!r} is not a SHA-256")


def _is_relative(path: str) -> bool:
    parts = path.split("/")
    return "\0" not in path and ".." not in parts and PurePosixPath(path).parts == tuple(parts)


def verify_file(file: Path, key: str, sha256: str, verified: VerifiedFiles) -> None:
    """Check a published file against its hash; raises ArtifactCorrupt or FileNotFoundError."""
    if not verified.verify(file, sha256):
        raise ArtifactCorrupt(key, f"its file {OTHER_HASH}")


def verify_folder(folder: Path, key: str, sha256: str, verified: VerifiedFiles) -> None:
    """Check every file of a published folder against its manifest; raises ArtifactCorrupt."""
    try:
        manifest = (folder / MANIFEST).read_bytes()
    except FileNotFoundError as error:
        raise ArtifactCorrupt(key, f"{MANIFEST} is missing") from error
    files = parse_manifest(manifest, key, sha256)
    listed = {file["path"] for file in files} | {MANIFEST}
    found = set(_list_files(folder))
    if added := found - listed:
        raise ArtifactCorrupt(key, f"{min(added)} is not in its manifest")
    if missing := listed - found:
        raise ArtifactCorrupt(key, f"{min(missing)} is missing")

    def check(file: dict[str, Any]) -> None:
        path = folder / file["path"]
        status = path.lstat()
        if not stat.S_ISREG(status.st_mode):
            raise ArtifactCorrupt(key, f"{file['path']} is not a regular file")
        if status.st_size != file["size_bytes"] or not verified.verify(path, file["sha256"]):
            raise ArtifactCorrupt(key, f"{file['path']} {OTHER_HASH}")

    with ThreadPoolExecutor(MAX_READERS, thread_name_prefix="verify") as executor:
        list(executor.map(check, files))


class VerifyingReader:
    """A remote file that raises ArtifactCorrupt at its end if its bytes had another hash."""

    def __init__(self, file: BinaryIO, key: str, sha256: str) -> None:
        self._file, self._key, self._sha256 = file, key, sha256
        self._digest = hashlib.sha256()

    def read(self, size: int = -1) -> bytes:
        """Read as a file does; raises ArtifactCorrupt at the end of a damaged one."""
        chunk = self._file.read(size)
        self._digest.update(chunk)
        if (not chunk or size < 0) and self._digest.hexdigest() != self._sha256:
            raise ArtifactCorrupt(self._key, f"its file {OTHER_HASH}")
        return chunk

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._file.close()


def _list_files(folder: Path) -> Iterator[str]:
    """Yield the relative paths of all files; a link counts as a file, also one to a folder."""
    for root, folders, names in os.walk(folder):
        links = [name for name in folders if (Path(root) / name).is_symlink()]
        for name in [*names, *links]:
            yield (Path(root) / name).relative_to(folder).as_posix()
