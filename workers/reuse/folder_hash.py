"""The hash of a model in a folder of this host, computed once while its files do not change."""

import hashlib
import json
import logging
import os
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from trainers.runtime.verified_files import RACY_NS, hash_files

RECORD = "folder-hashes.json"
MAX_FOLDERS = 1_000

logger = logging.getLogger(__name__)


def hash_folder(folder: Path, data_dir: Path) -> str:
    """Return a hash of the names and contents of all files; raises OSError.

    It is remembered in the data directory under the identity of the files: their names, inodes, sizes and
    times of modification and of change.
    """
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    started_ns = time.time_ns()
    identity, newest_ns = _identify(folder, paths)
    record = data_dir / RECORD
    known = _read(record)
    if identity in known:
        return known[identity]
    sha256 = hash_files(folder, paths)
    if started_ns - newest_ns > RACY_NS and _identify(folder, paths)[0] == identity:
        _remember(record, known | {identity: sha256})
    return sha256


def _identify(folder: Path, paths: Sequence[Path]) -> tuple[str, int]:
    """Return a hash of the files' names and states, and the time of the last change in nanoseconds."""
    lines, newest_ns = [str(folder)], 0
    for path in paths:
        status = path.stat()
        times = status.st_mtime_ns, status.st_ctime_ns
        lines.append(f"{path} {status.st_dev} {status.st_ino} {status.st_size} {times}")
        newest_ns = max(newest_ns, *times)
    return hashlib.sha256("\n".join(lines).encode(errors="surrogateescape")).hexdigest(), newest_ns


def _read(record: Path) -> dict[str, str]:
    with suppress(OSError, ValueError):
        known = json.loads(record.read_text(encoding="utf-8"))
        return {str(identity): str(sha256) for identity, sha256 in known.items()}
    return {}


def _remember(record: Path, known: dict[str, str]) -> None:
    newest = dict(list(known.items())[-MAX_FOLDERS:])
    temporary = record.with_name(f".{record.name}.{os.getpid()}.tmp")
    try:
        temporary.write_text(json.dumps(newest), encoding="utf-8")
        temporary.replace(record)
    except OSError as error:  # A full disk: the files are read again next time.
        logger.warning("cannot remember the hash of a folder: %s", error)
