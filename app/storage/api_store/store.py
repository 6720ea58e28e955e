"""The artifact store of a host that publishes and reads through the API."""

import hashlib
from pathlib import Path
from typing import Any

from app.storage.api_store.client import ArtifactsApi
from app.storage.api_store.files import ApiFiles
from app.storage.api_store.upload import publish, send_file
from app.storage.artifacts import ArtifactStore
from app.storage.manifest import MANIFEST, encode_manifest
from app.storage.remote.errors import StoreUnreachable
from app.storage.remote.protocol import PublishedArtifact


class ApiArtifactStore(ArtifactStore):
    """Artifacts of the control plane: one request publishes a folder once all its files have arrived."""

    is_api = True

    def __init__(self, url: str, api: ArtifactsApi, cache: Path, record: Path | None = None) -> None:
        self._api = api
        super().__init__(url, cache, record, ApiFiles(api))

    def publish_folder(self, folder: Path, key: str) -> PublishedArtifact:
        """Send a folder's files, and publish them; return the manifest's hash."""
        entries: list[dict[str, Any]] = []

        def send() -> dict[str, Any]:
            entries[:] = [
                self._send_with_entry(path, folder)
                for path in sorted(folder.rglob("*"))
                if path.is_file() and path.relative_to(folder) != Path(MANIFEST)
            ]
            return {"files": entries}

        published = publish(self._api, "/folders", key, send)
        expected = hashlib.sha256(encode_manifest(entries)).hexdigest()
        if published["sha256"] != expected:
            raise StoreUnreachable(f"the API published {key} with another manifest than this worker sent")
        return PublishedArtifact(key, expected, sum(entry["size_bytes"] for entry in entries))

    def check(self, key: str) -> None:
        """Check the address and the key; the API checks its store itself."""
        self.fs.check()

    def delete(self, key: str) -> None:
        """Delete the artifact under the key, which no row may name."""
        self.fs.rm(self._path(key), recursive=True)

    def _path(self, key: str) -> str:
        assert ".." not in key.split("/") and not key.startswith("/"), key
        return key

    def _send_with_entry(self, path: Path, folder: Path) -> dict[str, Any]:
        sha256, size_bytes = send_file(self._api, path)
        return {"path": path.relative_to(folder).as_posix(), "size_bytes": size_bytes, "sha256": sha256}
