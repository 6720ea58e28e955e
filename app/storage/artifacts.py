"""The artifact store: immutable files and folders, each published once under a key.

Order of publication: files, then the manifest with their hashes, then (on a local disk) the rename to
the final name, then the row. Readers start from rows, so they never see a partial artifact. A row contains
the hash of its file or manifest, and every fetch verifies the bytes against it, on a local disk too.
"""

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, cast

import fsspec

from app.storage.cache import ArtifactCache
from app.storage.local_files import CHUNK_BYTES, copy_file, link_file, publish_link, staged, write_file
from app.storage.manifest import (
    MANIFEST,
    OTHER_HASH,
    ArtifactCorrupt,
    VerifyingReader,
    encode_manifest,
    parse_manifest,
    verify_file,
    verify_folder,
)
from app.storage.remote.errors import ArtifactExists
from app.storage.remote.fsspec_files import FsspecFiles
from app.storage.remote.protocol import PublishedArtifact, StoredEntry, StoreFiles, change_time
from trainers.runtime.verified_files import VerifiedFiles, hash_file


class ArtifactStore:
    """Artifacts in a bucket or any file system that fsspec supports; `cache` is for copies of remote ones.

    `files` are those of a store that fsspec does not open.
    """

    is_api = False

    def __init__(
        self, url: str, cache: Path, record: Path | None = None, files: StoreFiles | None = None
    ) -> None:
        self.fs: Any = files
        self.local = False
        self.root = url.partition("://")[2].rstrip("/")
        if files is None:
            fs, root = fsspec.url_to_fs(url)
            self.root = root.rstrip("/")
            self.local = "file" in fs.protocol
            self.fs = fs if self.local else FsspecFiles(fs)
        self._verified = VerifiedFiles(record)
        self._cache = ArtifactCache(self.fs, cache, self._verified)

    def publish_folder(self, folder: Path, key: str) -> PublishedArtifact:
        """Publish a folder's files with a manifest of their hashes; return the manifest's hash."""
        with self._publication(key) as staging:
            files = [
                self._put_with_entry(path, folder, staging)
                for path in sorted(folder.rglob("*"))
                if path.is_file() and path.relative_to(folder) != Path(MANIFEST)
            ]
            return self._publish_manifest(files, key, staging)

    def publish_file(self, path: Path, key: str, *, replace: bool = False) -> None:
        """Publish one file. A log of a run grows, and a damaged file is restored: those replace what exists.

        Raises ArtifactExists if the key has other content and `replace` is false.
        """
        if self.local and not replace and (found := Path(self._path(key))).exists():
            if hash_file(found) != hash_file(path):
                raise ArtifactExists(key)
            return
        with self._publication(key) as staging:
            self._put(path, staging, replace=replace)

    def publish_staged_file(self, staged: Path, key: str, *, replace: bool) -> None:
        """Publish a verified file as `publish_file`, on a local disk by a link."""
        if not self.local:
            self.publish_file(staged, key, replace=replace)
        elif replace:
            with self._publication(key) as destination:
                link_file(staged, Path(destination))
        else:
            publish_link(staged, Path(self._path(key)), key)

    def publish_staged_folder(self, files: list[tuple[dict[str, Any], Path]], key: str) -> None:
        """Publish verified files with their manifest entries as a folder; on a local disk by links."""
        with self._publication(key) as staging:
            for entry, staged in files:
                destination = f"{staging}/{entry['path']}"
                if self.local:
                    link_file(staged, Path(destination))
                else:
                    self.fs.upload(staged, destination)
            self._publish_manifest([entry for entry, _ in files], key, staging)

    def fetch_folder(self, key: str, sha256: str) -> Path:
        """Return the folder on this host, verified against its manifest.

        A remote folder is copied into the cache; a copy that was damaged there is copied again.

        Raises:
            ArtifactCorrupt: A file is missing, was added, or has another hash.
            FileNotFoundError: Nothing is published under the key.
        """
        if self.local:
            folder = Path(self._path(key))
            if not folder.is_dir():
                raise FileNotFoundError(f"nothing is published under {key}")
            verify_folder(folder, key, sha256, self._verified)
            return folder
        return self._cache.fetch_folder(self._path(key), key, sha256)

    def fetch_file(self, key: str, sha256: str) -> Path:
        """Return the file on this host, verified against its hash; as `fetch_folder` otherwise.

        Raises:
            ArtifactCorrupt: The hash differs.
            FileNotFoundError: Nothing is published under the key.
        """
        if self.local:
            file = Path(self._path(key))
            verify_file(file, key, sha256, self._verified)
            return file
        return self._cache.fetch_file(self._path(key), key, sha256)

    def open(self, key: str, sha256: str | None = None) -> BinaryIO:
        """Open a published file for reading.

        With a hash, a local file is verified first; a remote one raises ArtifactCorrupt at its end. The files
        of a run, such as its log, have no recorded hash.
        """
        if sha256 is not None and self.local:
            return self.fetch_file(key, sha256).open("rb")
        file = cast(BinaryIO, self.fs.open(self._path(key), "rb"))
        return file if sha256 is None else cast(BinaryIO, VerifyingReader(file, key, sha256))

    def size_of(self, key: str) -> int:
        """Return the size of a published file; raises FileNotFoundError."""
        return int(self.fs.size(self._path(key)))

    def local_path(self, key: str) -> Path | None:
        """Return the path of an artifact on this host, or None in a remote store."""
        return Path(self._path(key)) if self.local else None

    def verify_folder(self, key: str, sha256: str) -> None:
        """Read every byte of a published folder, also of files that were verified before.

        Raises:
            ArtifactCorrupt: A file is missing, was added, or has another hash.
            FileNotFoundError: Nothing is published under the key.
        """
        if not self.exists(key):
            raise FileNotFoundError(key)
        if self.local:
            verify_folder(Path(self._path(key)), key, sha256, VerifiedFiles(None))
            return
        for file in parse_manifest(self.fs.cat_file(f"{self._path(key)}/{MANIFEST}"), key, sha256):
            self._read(f"{key}/{file['path']}", file["sha256"])

    def verify_file(self, key: str, sha256: str) -> None:
        """Read every byte of a published file; raises as `verify_folder`."""
        if self.local:
            verify_file(Path(self._path(key)), key, sha256, VerifiedFiles(None))
        else:
            self._read(key, sha256)

    def import_file(self, path: Path, key: str, sha256: str) -> None:
        """Copy a file of a backup to its key, unless it was copied before.

        Raises:
            ArtifactCorrupt: The bytes that were written have another hash.
        """
        destination = Path(self._path(key))
        if self.local and destination.is_file() and hash_file(destination) == sha256:
            return
        with self._publication(key) as staging:
            written, _ = self._put(path, staging, replace=True)
            if written != sha256:
                if not self.local:
                    self.delete(key)
                raise ArtifactCorrupt(key, f"its file {OTHER_HASH}")

    def publish_bytes(self, content: bytes, key: str) -> None:
        """Publish a small file with this content; it replaces one that exists."""
        with self._publication(key) as staging:
            self._write(content, staging)

    def publish_subset(self, source: str, key: str, files: list[dict[str, Any]]) -> PublishedArtifact:
        """Publish some files of a published folder, given by their manifest entries, under a second key.

        On a local disk the files are hard links; in a remote store they are copied there.
        """
        with self._publication(key) as staging:
            for file in files:
                self._copy(f"{self._path(source)}/{file['path']}", f"{staging}/{file['path']}")
            return self._publish_manifest(files, key, staging)

    def read_manifest(self, key: str, sha256: str) -> list[dict[str, Any]]:
        """Return the entries of a folder's manifest; raises ArtifactCorrupt or FileNotFoundError."""
        return parse_manifest(self.fs.cat_file(f"{self._path(key)}/{MANIFEST}"), key, sha256)

    def list_folder(self, key: str) -> list[StoredEntry]:
        """Return the files and folders directly under a key; none if it does not exist."""
        try:
            found = self.fs.ls(self._path(key), detail=True, refresh=True)
        except FileNotFoundError:
            return []
        return [
            StoredEntry(f"{key}/{PurePosixPath(entry['name']).name}", change_time(entry)) for entry in found
        ]

    def check(self, key: str) -> None:
        """Write, read and delete a small file under this key; raises OSError."""
        path, content = self._path(key), os.urandom(8)
        if self.local:
            Path(path).parent.mkdir(parents=True, exist_ok=True)
        self.fs.pipe_file(path, content)
        if self.fs.cat_file(path) != content:
            raise OSError(f"{path} does not contain what was written")
        self.fs.rm_file(path)

    def exists(self, key: str) -> bool:
        """Return whether something is published under the key."""
        return bool(self.fs.exists(self._path(key)))

    def delete(self, key: str) -> None:
        """Delete the artifact under the key, if it exists."""
        path = self._path(key)
        if self.fs.exists(path):
            self.fs.rm(path, recursive=True)

    @contextmanager
    def _publication(self, key: str) -> Iterator[str]:
        """Yield the path to write to; on a local disk, the artifact gets its name once it is complete."""
        destination = self._path(key)
        if not self.local:
            yield destination
            return
        with staged(Path(destination)) as staging:
            yield str(staging)

    def _publish_manifest(self, files: list[dict[str, Any]], key: str, staging: str) -> PublishedArtifact:
        manifest = encode_manifest(files)
        self._write(manifest, f"{staging}/{MANIFEST}")
        size_bytes = sum(file["size_bytes"] for file in files)
        return PublishedArtifact(key, hashlib.sha256(manifest).hexdigest(), size_bytes)

    def _path(self, key: str) -> str:
        parts = PurePosixPath(key).parts
        assert parts and ".." not in parts and not key.startswith("/"), key
        return f"{self.root}/{key}"

    def _put_with_entry(self, path: Path, folder: Path, staging: str) -> dict[str, Any]:
        """Publish one file of a folder, and return its entry in the manifest."""
        relative = path.relative_to(folder).as_posix()
        sha256, size_bytes = self._put(path, f"{staging}/{relative}")
        return {"path": relative, "size_bytes": size_bytes, "sha256": sha256}

    def _put(self, source: Path, destination: str, *, replace: bool = False) -> tuple[str, int]:
        """Copy a file, and return the hash and size of the bytes that were written."""
        if not self.local:
            return self.fs.upload(source, destination, replace=replace), source.stat().st_size
        return copy_file(source, Path(destination))

    def _copy(self, source: str, destination: str) -> None:
        if self.local:
            link_file(Path(source), Path(destination))
        else:
            self.fs.cp_file(source, destination)

    def _write(self, content: bytes, destination: str) -> None:
        if self.local:
            write_file(content, Path(destination))
        else:
            self.fs.pipe_file(destination, content)

    def _read(self, key: str, sha256: str) -> None:
        """Read a remote file to its end; raises ArtifactCorrupt."""
        with VerifyingReader(self.fs.open(self._path(key), "rb"), key, sha256) as file:
            while file.read(CHUNK_BYTES):
                pass
