"""Copies of remote artifacts on this host. Each is named by its hash, and verified at every use."""

import logging
import secrets
from collections.abc import Callable
from pathlib import Path

from app.storage.local_files import cleanup_copy, discard, rename_folder
from app.storage.manifest import (
    MANIFEST,
    OTHER_HASH,
    ArtifactCorrupt,
    check_hash,
    parse_manifest,
    verify_file,
    verify_folder,
)
from app.storage.remote.protocol import StoreFiles
from trainers.runtime.verified_files import VerifiedFiles

# An empty file next to each copy; its time is that of the copy's last use.
USED_SUFFIX = ".used"

logger = logging.getLogger(__name__)


class ArtifactCache:
    """A folder with copies from the remote store `fs`; a damaged copy is fetched again."""

    def __init__(self, fs: StoreFiles, folder: Path, verified: VerifiedFiles) -> None:
        self._fs = fs
        self._folder = folder
        self._verified = verified

    def fetch_folder(self, source: str, key: str, sha256: str) -> Path:
        """Return a copy of the folder at the remote path `source`; raises as `ArtifactStore.fetch_folder`."""
        check_hash(sha256, key)
        copy = self._folder / sha256
        _record_use(copy)
        if copy.is_dir() and _is_intact(lambda: verify_folder(copy, key, sha256, self._verified)):
            return copy
        discard(copy)
        manifest = self._fs.cat_file(f"{source}/{MANIFEST}")
        staging = copy.with_name(f"{sha256}.{secrets.token_hex(4)}.part")
        with cleanup_copy(staging):
            for file in parse_manifest(manifest, key, sha256):
                path = file["path"]
                (staging / path).parent.mkdir(parents=True, exist_ok=True)
                if self._fs.download(f"{source}/{path}", staging / path) != file["sha256"]:
                    raise ArtifactCorrupt(key, f"{path} {OTHER_HASH}")
            staging.mkdir(parents=True, exist_ok=True)
            (staging / MANIFEST).write_bytes(manifest)
            rename_folder(staging, copy)
        return copy

    def fetch_file(self, source: str, key: str, sha256: str) -> Path:
        """Return a copy of the file at the remote path `source`; raises as `ArtifactStore.fetch_file`."""
        check_hash(sha256, key)
        copy = self._folder / sha256
        _record_use(copy)
        if copy.is_file() and _is_intact(lambda: verify_file(copy, key, sha256, self._verified)):
            return copy
        discard(copy)
        staging = copy.with_name(f"{sha256}.{secrets.token_hex(4)}.part")
        with cleanup_copy(staging):
            if self._fs.download(source, staging) != sha256:
                raise ArtifactCorrupt(key, f"its file {OTHER_HASH}")
            staging.replace(copy)
        return copy


def _record_use(copy: Path) -> None:
    """Mark a copy as used now. Its own times stay, since they show that it is unchanged."""
    copy.parent.mkdir(parents=True, exist_ok=True)
    copy.with_name(f"{copy.name}{USED_SUFFIX}").touch()


def _is_intact(verify: Callable[[], None]) -> bool:
    try:
        verify()
    except (ArtifactCorrupt, FileNotFoundError) as error:
        logger.warning("the copy in the cache is fetched again: %s", error)
        return False
    return True
