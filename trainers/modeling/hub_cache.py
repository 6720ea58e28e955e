"""The hub client's cache of downloaded files, and their verification by the hashes of the hub."""

import hashlib
import logging
import shutil
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from huggingface_hub import constants, hf_hub_download
from huggingface_hub.file_download import repo_folder_name
from huggingface_hub.hf_api import RepoSibling

from trainers.runtime import run_dir as files
from trainers.runtime.errors import DiskFull
from trainers.runtime.verified_files import VerifiedFiles

MANIFESTS, RECORD = "tunesmith", "tunesmith-verified-files.log"

logger = logging.getLogger("trainers")


class HubKind(StrEnum):
    """What is downloaded; the values are the hub's."""

    model = "model"
    dataset = "dataset"


@dataclass(frozen=True)
class HubSnapshot:
    """The files of one commit on this host."""

    folder: str
    commit: str


@dataclass(frozen=True)
class HubFile:
    """A file of a commit; the hub reports the SHA-256 of large files, and git's SHA-1 of the others."""

    path: str
    size_bytes: int
    sha256: str | None
    git_sha1: str | None


@dataclass(frozen=True)
class HubRepository:
    """A repository of the hub, and its folder in the cache."""

    kind: HubKind
    name: str
    part: str = ""
    """The part of a dataset that is downloaded; a manifest describes one part."""

    @property
    def storage(self) -> Path:
        return Path(constants.HF_HUB_CACHE) / str(repo_folder_name(repo_id=self.name, repo_type=self.kind))

    def manifest(self, commit: str) -> Path:
        part = hashlib.sha256(self.part.encode()).hexdigest()[:8] if self.part else "all"
        return self.storage / MANIFESTS / f"{commit}-{part}.json"

    def fetch(self, commit: str, file: str) -> Path:
        return Path(hf_hub_download(self.name, file, repo_type=self.kind, revision=commit))


def open_downloaded(repository: HubRepository, commit: str) -> HubSnapshot | None:
    """Return a commit that was downloaded before, if all of its files are still intact."""
    folder = repository.storage / "snapshots" / commit
    content = files.read_json(repository.manifest(commit))
    if content is None or not folder.is_dir():
        return None
    if (corrupt := find_corrupt(folder, [HubFile(**file) for file in content["files"]])) is not None:
        logger.warning("%s of %s is missing or damaged; downloading it again.", corrupt, repository.name)
        return None
    return HubSnapshot(str(folder), commit)


def describe_file(sibling: RepoSibling) -> HubFile:
    """Return the size and hash of a file as the hub lists it."""
    if sibling.lfs is not None:
        return HubFile(sibling.rfilename, sibling.lfs.size, sibling.lfs.sha256, None)
    return HubFile(sibling.rfilename, sibling.size or 0, None, sibling.blob_id)


def find_corrupt(folder: Path, expected: list[HubFile]) -> str | None:
    """Return the first file that is missing or differs, whose copy is removed, or None."""
    verified = VerifiedFiles(Path(constants.HF_HUB_CACHE) / RECORD)
    for file in expected:
        path = (folder / file.path).resolve()
        try:
            is_intact = path.stat().st_size == file.size_bytes and (
                verified.verify(path, file.sha256)
                if file.sha256 is not None
                else _git_sha1(path) == file.git_sha1
            )
        except FileNotFoundError:
            is_intact = False
        if not is_intact:
            path.unlink(missing_ok=True)
            return file.path
    return None


def require_space(repository: HubRepository, expected: list[HubFile]) -> None:
    """Raise DiskFull if the files that are not in the cache yet do not fit on its disk."""
    cache = Path(constants.HF_HUB_CACHE)
    cache.mkdir(parents=True, exist_ok=True)
    blobs = repository.storage / "blobs"
    needed = sum(
        file.size_bytes for file in expected if not (blobs / str(file.sha256 or file.git_sha1)).is_file()
    )
    free = shutil.disk_usage(cache).free
    if needed > free:
        raise DiskFull(
            f"{repository.name} takes {needed / 1e9:.1f} GB, but the disk of {cache} has only "
            f"{free / 1e9:.1f} GB.",
            "Free some space, or set HF_HOME to a folder on a larger disk.",
        )


def _git_sha1(path: Path) -> str:
    """Return the name of a small file's blob in git; it only detects damage, the hub's TLS is the proof."""
    content = path.read_bytes()
    return hashlib.sha1(f"blob {len(content)}\0".encode() + content, usedforsecurity=False).hexdigest()
