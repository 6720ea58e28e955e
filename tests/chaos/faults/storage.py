"""Faults of disks: the embedded queue's files, a locked SQLite, a full disk, an absent artifact store."""

import contextlib
import errno
import os
import random
import shutil
import sqlite3
import time
from pathlib import Path

from tests.chaos.faults.fault import EMBEDDED, Fault, require_mounts
from tests.chaos.platforms import Platform, mounted

LOCK_SECONDS = (1.0, 8.0)
FULL_SECONDS = (1.0, 6.0)
AWAY_SECONDS = (1.0, 5.0)
CHUNK_BYTES = 1 << 20


def delete_notifications(platform: Platform, choose: random.Random) -> bool:
    """Delete all messages of the embedded queue."""
    messages: list[Path] = []
    with contextlib.suppress(FileNotFoundError):  # Another fault has removed the folder meanwhile.
        messages += (platform.data_dir / "queue" / "messages").glob("*.msg")
    for message in messages:
        message.unlink(missing_ok=True)
    return bool(messages)


def remove_queue(platform: Platform, choose: random.Random) -> bool:
    """Remove the folder of the embedded queue."""
    shutil.rmtree(platform.data_dir / "queue", ignore_errors=True)
    return True


def empty_queue_files(platform: Platform, choose: random.Random) -> bool:
    """Empty the files of the embedded queue, as a full disk does that interrupts their writing."""
    found: list[Path] = []
    # A worker has received a message meanwhile, or another fault has removed the folder.
    with contextlib.suppress(FileNotFoundError):
        found += [path for path in (platform.data_dir / "queue").rglob("*") if path.is_file()]
    for path in found:
        with contextlib.suppress(FileNotFoundError):
            os.truncate(path, 0)
    return bool(found)


def lock_database(platform: Platform, choose: random.Random) -> bool:
    """Hold SQLite's write lock."""
    database = sqlite3.connect(platform.data_dir / "tunesmith.db", timeout=5, isolation_level=None)
    try:
        database.execute("BEGIN IMMEDIATE")
        time.sleep(choose.uniform(*LOCK_SECONDS))
        database.execute("ROLLBACK")
    except sqlite3.OperationalError:  # A suspended process holds the lock.
        return False
    finally:
        database.close()
    return True


def fill_disk(platform: Platform, choose: random.Random) -> bool:
    """Fill the disk with a file, and delete it."""
    filler = platform.data_dir / "filler"
    try:
        with filler.open("wb", buffering=0) as file:
            while file.write(b"\0" * CHUNK_BYTES):
                pass
    except OSError as error:
        assert error.errno == errno.ENOSPC, error
        time.sleep(choose.uniform(*FULL_SECONDS))
    finally:
        filler.unlink(missing_ok=True)
    return True


def hide_store(platform: Platform, choose: random.Random) -> bool:
    """Cover the artifact store with an empty read-only file system, as a network share that is away."""
    if not platform.store.is_dir():
        return False
    with mounted(platform.store, "ro,size=4k"):
        time.sleep(choose.uniform(*AWAY_SECONDS))
    return True


def explain_missing_disk(platform: Platform) -> str | None:
    """Explain that there is no disk that may be filled."""
    return None if platform.has_small_disk else "a small disk to fill cannot be mounted"


FAULTS = [
    Fault("notifications deleted", delete_notifications, 6, EMBEDDED),
    Fault("queue removed", remove_queue, 3, EMBEDDED),
    Fault("queue files emptied", empty_queue_files, 5, EMBEDDED),
    Fault("SQLite locked", lock_database, 4, EMBEDDED, "sqlite"),
    Fault("disk full", fill_disk, 5, EMBEDDED, "disk", explain_missing_disk),
    Fault("artifact store unreachable", hide_store, 4, resource="store", explain_missing=require_mounts),
]
