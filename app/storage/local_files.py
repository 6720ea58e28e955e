"""Files and folders on a local disk: durable writes, and copies that are complete or absent."""

import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

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
