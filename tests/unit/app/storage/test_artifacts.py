"""Goal: no byte that differs from what was published leaves the store.

Method: a store is published to, then its files are changed on the disk in every way that a check by name,
size or time would miss, and fetched again.
"""

import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from app.storage.artifacts import ArtifactStore
from app.storage.manifest import ArtifactCorrupt
from trainers.runtime.verified_files import RACY_NS, VerifiedFiles, hash_file


@pytest.fixture(params=["file", "memory"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> ArtifactStore:
    """Return a store on a local disk, and one that is fetched from over a network."""
    root = tmp_path / "artifacts" if request.param == "file" else f"/{tmp_path.name}"
    return ArtifactStore(f"{request.param}://{root}", tmp_path / "cache")


@pytest.fixture
def local(tmp_path: Path) -> ArtifactStore:
    return ArtifactStore(f"file://{tmp_path / 'artifacts'}", tmp_path / "cache")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a folder to publish, with a file in a subfolder."""
    source = tmp_path / "source"
    (source / "parts").mkdir(parents=True)
    (source / "config.json").write_text("{}")
    (source / "parts" / "weights").write_bytes(bytes(range(256)) * 40)
    return source


def change_bytes(path: Path) -> None:
    """Change bytes in the middle of a file, and restore its size and modification time."""
    times = path.stat()
    with path.open("r+b") as file:
        file.seek(1000)
        file.write(b"\xff" * 20)
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))


def replace_by_link(folder: Path) -> None:
    (folder / "config.json").rename(folder.parent / "config.json")
    (folder / "config.json").symlink_to(folder.parent / "config.json")


def test_a_published_folder_is_fetched_with_its_content(store: ArtifactStore, folder: Path) -> None:
    published = store.publish_folder(folder, "models/m")
    fetched = store.fetch_folder("models/m", published.sha256)
    assert (fetched / "parts" / "weights").read_bytes() == (folder / "parts" / "weights").read_bytes()
    assert published.size_bytes == 2 + 256 * 40


def test_changed_weights_are_not_fetched_although_size_and_time_are_the_same(
    local: ArtifactStore, folder: Path, tmp_path: Path
) -> None:
    published = local.publish_folder(folder, "models/m")
    local.fetch_folder("models/m", published.sha256)
    change_bytes(tmp_path / "artifacts/models/m/parts/weights")
    with pytest.raises(ArtifactCorrupt, match=r"models/m.*parts/weights") as caught:
        local.fetch_folder("models/m", published.sha256)
    assert caught.value.code == "artifact_corrupt" and "app verify" in (caught.value.hint or "")


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda path: (path / "config.json").unlink(), "config.json is missing"),
        (lambda path: (path / "model.bin").write_text("x"), "model.bin is not in its manifest"),
        (lambda path: (path / "config.json").write_text("[]"), "config.json"),
        (lambda path: (path / ".manifest.json").write_text('{"files": []}'), ".manifest.json"),
        (replace_by_link, "config.json is not a regular file"),
    ],
)
def test_a_folder_that_differs_from_its_manifest_is_not_fetched(
    local: ArtifactStore, folder: Path, tmp_path: Path, damage: Callable[[Path], object], reason: str
) -> None:
    published = local.publish_folder(folder, "models/m")
    damage(tmp_path / "artifacts/models/m")
    with pytest.raises(ArtifactCorrupt, match=reason):
        local.fetch_folder("models/m", published.sha256)


def test_a_changed_file_is_neither_fetched_nor_read(store: ArtifactStore, tmp_path: Path) -> None:
    source = tmp_path / "rows"
    source.write_bytes(b"rows" * 1000)
    sha256 = hash_file(source)
    source.write_bytes(b"ROWS" * 1000)
    store.publish_file(source, "datasets/d")
    with pytest.raises(ArtifactCorrupt, match="datasets/d"):
        store.fetch_file("datasets/d", sha256)
    with pytest.raises(ArtifactCorrupt, match="datasets/d"):
        store.open("datasets/d", sha256).read()


def test_a_damaged_copy_in_the_cache_is_fetched_again(folder: Path, tmp_path: Path) -> None:
    store = ArtifactStore(f"memory://{tmp_path.name}", tmp_path / "cache")
    published = store.publish_folder(folder, "models/m")
    copy = store.fetch_folder("models/m", published.sha256) / "parts" / "weights"
    change_bytes(copy)
    assert store.fetch_folder("models/m", published.sha256) == copy.parent.parent
    assert copy.read_bytes() == (folder / "parts" / "weights").read_bytes()


def test_a_missing_artifact_is_no_corrupt_one(store: ArtifactStore) -> None:
    with pytest.raises(FileNotFoundError):
        store.fetch_folder("models/none", "0" * 64)
    with pytest.raises(FileNotFoundError):
        store.fetch_file("datasets/none", "0" * 64)


@pytest.fixture
def reads() -> list[Path]:
    return []


@pytest.fixture
def count_reads(reads: list[Path]) -> Callable[[Path], str]:
    """Return a hash function that records which files it reads."""

    def count(path: Path) -> str:
        reads.append(path)
        return hash_file(path)

    return count


def test_a_verified_file_is_read_once_on_this_host_until_it_changes(
    tmp_path: Path, reads: list[Path], count_reads: Callable[[Path], str]
) -> None:
    path, record = tmp_path / "weights", tmp_path / "verified.log"
    path.write_bytes(b"x" * 100)
    sha256, settled = hash_file(path), time.time_ns() + RACY_NS
    assert VerifiedFiles(record).verify(path, sha256, now_ns=lambda: settled)
    later = VerifiedFiles(record, hash_file=count_reads)
    assert later.verify(path, sha256) and reads == []
    change_bytes(path)
    assert not later.verify(path, sha256) and reads == [path]


def test_a_file_that_was_just_written_is_read_again(
    tmp_path: Path, reads: list[Path], count_reads: Callable[[Path], str]
) -> None:
    # It may be changed once more within the same tick of the clock, which no timestamp would show.
    path = tmp_path / "weights"
    path.write_bytes(b"x")
    files = VerifiedFiles(None, hash_file=count_reads)
    for _ in range(2):
        assert files.verify(path, hash_file(path), now_ns=lambda: path.stat().st_ctime_ns + RACY_NS // 2)
    assert reads == [path, path]


def test_a_torn_or_foreign_record_costs_a_read_and_nothing_else(tmp_path: Path) -> None:
    path, record = tmp_path / "weights", tmp_path / "verified.log"
    path.write_bytes(b"x")
    settled = time.time_ns() + RACY_NS
    record.write_bytes(b"\xff\x00 torn")
    assert VerifiedFiles(record).verify(path, hash_file(path), now_ns=lambda: settled)
    assert VerifiedFiles(record).verify(path, hash_file(path), now_ns=lambda: settled)
