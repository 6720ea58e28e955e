"""Files and folders on a local disk: durable writes, and copies that are complete or absent."""

import hashlib
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from app.storage.remote.errors import ArtifactExists
from trainers.runtime.verified_files import hash_file

CHUNK_BYTES = 1 << 20


def discard(copy: Path) -> None:
    """Remove a copy from the cache; another process that reads it keeps what it has opened."""
    if copy.is_dir():
        removed = copy.with_name(f"{copy.name}.{secrets.token_hex(4)}.part")
        with suppress(FileNotFoundError):
            copy.rename(removed)
        shutil.rmtree(removed, ignore_errors=True)
    else:
        copy.unlink(missing_ok=True)


@contextmanager
def cleanup_copy(staging: Path) -> Iterator[None]:
    """Remove a copy that was not completed."""
    try:
        yield
    finally:
        if staging.is_dir():
            shutil.rmtree(staging, ignore_errors=True)
        staging.unlink(missing_ok=True)


def fsync_file(file: Any) -> None:
    """Write a file's buffers to the disk."""
    file.flush()
    os.fsync(file.fileno())


def fsync_folder(folder: Path) -> None:
    """Make renames within a folder durable."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def staged(destination: Path) -> Iterator[Path]:
    """Yield the path of a file or folder to write, which gets its name once it is complete.

    A failure removes the partial one, which would keep a full disk full.
    """
    staging = destination.with_name(f"{destination.name}.{secrets.token_hex(4)}.part")
    try:
        yield staging
        if staging.is_dir():
            rename_folder(staging, destination)
        else:
            staging.replace(destination)
            fsync_folder(destination.parent)
    except BaseException:
        discard(staging)
        raise


def copy_file(source: Path, destination: Path) -> tuple[str, int]:
    """Copy a file to the disk, and return the hash and size of the bytes that were written."""
    destination.parent.mkdir(parents=True, exist_ok=True)
    digest = hashlib.sha256()
    with source.open("rb") as read, destination.open("wb") as write:
        while chunk := read.read(CHUNK_BYTES):
            digest.update(chunk)
            write.write(chunk)
        fsync_file(write)
        return digest.hexdigest(), write.tell()


def link_file(source: Path, destination: Path) -> None:
    """Give a file a second name, or copy it where the file system has no hard links."""
    destination.parent.mkdir(parents=True, exist_ok=True)
    try:
        destination.hardlink_to(source)
    except OSError:
        copy_file(source, destination)


def publish_link(source: Path, destination: Path, key: str) -> None:
    """Give a complete file its final name; raises ArtifactExists if another file has it."""
    destination.parent.mkdir(parents=True, exist_ok=True)
    try:
        destination.hardlink_to(source)
    except FileExistsError:
        if hash_file(destination) != hash_file(source):
            raise ArtifactExists(key) from None
    except OSError:
        if destination.exists():
            raise ArtifactExists(key) from None
        with staged(destination) as copy:
            copy_file(source, copy)
    fsync_folder(destination.parent)


def write_file(content: bytes, destination: Path) -> None:
    """Write a file to the disk."""
    destination.parent.mkdir(parents=True, exist_ok=True)
    with destination.open("wb") as write:
        write.write(content)
        fsync_file(write)


def rename_folder(staging: Path, destination: Path) -> None:
    """Move a complete folder to its final name.

    A folder that another process published first has the same content.
    """
    for folder in [path for path in staging.rglob("*") if path.is_dir()]:
        fsync_folder(folder)
    try:
        staging.rename(destination)
    except OSError:
        if not destination.is_dir():
            raise
        shutil.rmtree(staging)
    fsync_folder(destination.parent)
