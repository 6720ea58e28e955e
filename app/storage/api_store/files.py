"""Published artifacts as files that are read through the API; a download survives a broken connection."""

import hashlib
import io
import time
from pathlib import Path
from typing import Any, BinaryIO, cast
from urllib.parse import quote

from app.storage.api_store.client import WAIT_SECONDS, ArtifactsApi, UploadRejected, file_path
from app.storage.api_store.upload import publish, send_file
from app.storage.local_files import CHUNK_BYTES
from app.storage.manifest import MANIFEST
from app.storage.remote.errors import StoreCredentialsRefused, StoreUnreachable


class ApiFiles:
    """The files of the control plane's store as far as a worker needs them; paths are keys."""

    def __init__(self, api: ArtifactsApi) -> None:
        self._api = api

    def upload(self, source: Path, destination: str, *, replace: bool = False) -> str:
        """Publish a file; only the files of a run, such as its log, replace what exists."""

        def send() -> dict[str, Any]:
            sha256, size_bytes = send_file(self._api, source)
            return {"sha256": sha256, "size_bytes": size_bytes}

        return str(publish(self._api, "/files", destination, send)["sha256"])

    def download(self, source: str, destination: Path) -> str:
        """Write a file to a local path, and return the SHA-256 of the bytes that arrived."""
        digest, n_bytes, n_failures = hashlib.sha256(), 0, 0
        with destination.open("wb") as file:
            while True:
                try:
                    with self._api.stream(file_path(source), n_bytes) as response:
                        for chunk in response.iter_bytes(CHUNK_BYTES):
                            file.write(chunk)
                            digest.update(chunk)
                            n_bytes += len(chunk)
                            n_failures = 0
                    return digest.hexdigest()
                except StoreCredentialsRefused:
                    raise
                except StoreUnreachable:
                    if n_failures == len(WAIT_SECONDS):
                        raise
                    time.sleep(WAIT_SECONDS[n_failures])
                    n_failures += 1

    def open(self, path: str, mode: str = "rb") -> BinaryIO:
        """Open a file whose content fits into memory: manifests, and logs of runs."""
        assert mode == "rb", mode
        return cast(BinaryIO, io.BytesIO(self.cat_file(path)))

    def cat_file(self, path: str) -> bytes:
        """Return the content of a small file."""
        return self._api.request("GET", file_path(path)).content

    def size(self, path: str) -> int:
        """Return the size of a file in bytes."""
        return int(self._api.request("HEAD", file_path(path)).headers["content-length"])

    def exists(self, path: str) -> bool:
        """Return whether a file or a folder is published under the key."""
        for name in (path, f"{path}/{MANIFEST}"):
            try:
                self.size(name)
            except FileNotFoundError:
                continue
            except UploadRejected:
                # The key of a folder is not that of a file, and the other way round.
                continue
            return True
        return False

    def rm(self, path: str, *, recursive: bool = False) -> None:
        """Delete an artifact that no row names."""
        assert recursive or path, path
        self._api.request("DELETE", f"/{quote(path)}")

    def check(self) -> None:
        """Raise what is wrong with the address or the key."""
        self._api.check()

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        raise OSError(f"the artifact store of this host is the API, which does not offer {name!r} to workers")
