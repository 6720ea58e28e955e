"""Checks of a host's memory and disks."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psutil

from app.settings import Settings
from workers.doctor.check_result import CheckResult

GIBIBYTE = 1 << 30
MEBIBYTE = 1 << 20
MIN_MEMORY_BYTES = 2 * GIBIBYTE
# Below the first bound a checkpoint or a download of a small model fails, below the second a large one's.
MIN_DISK_BYTES, GOOD_DISK_BYTES = GIBIBYTE, 20 * GIBIBYTE
# Processes of one run exchange tensors through shared memory. Docker's default of 64 MiB is too small.
SHARED_MEMORY = Path("/dev/shm")  # noqa: S108 — this folder is what is checked
MIN_SHARED_BYTES, GOOD_SHARED_BYTES = 32 * MEBIBYTE, 512 * MEBIBYTE
CGROUP_LIMIT, CGROUP_USE = Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current")


def check_capacity(settings: Settings) -> Iterator[CheckResult]:
    """Yield the checks of memory, the data directory, the cache of models, and shared memory."""
    yield _check_memory()
    yield check_disk(
        "data directory",
        settings.data_dir,
        "Free space there, or set TUNESMITH_DATA_DIR to a folder on a larger disk.",
    )
    cache = Path(os.environ.get("HF_HOME") or Path.home() / ".cache" / "huggingface")
    yield check_disk("model cache", cache, "Free space there, or set HF_HOME to a folder on a larger disk.")
    if SHARED_MEMORY.is_dir():
        fix = "Free it, or start the container with `--shm-size 8g`; stages on several devices need it."
        yield check_disk("shared memory", SHARED_MEMORY, fix, MIN_SHARED_BYTES, GOOD_SHARED_BYTES)


def _check_memory() -> CheckResult:
    memory = psutil.virtual_memory()
    total, available = int(memory.total), int(memory.available)
    limit = CGROUP_LIMIT.read_text().strip() if CGROUP_LIMIT.is_file() else "max"
    if limit.isdigit() and int(limit) < total:
        total = int(limit)
        available = min(available, total - int(CGROUP_USE.read_text()))
    found = f"{_format(available)} of {_format(total)} available"
    if available < MIN_MEMORY_BYTES:
        fix = "Stop other programs, or raise the limit of the container: training needs gigabytes."
        return CheckResult.warning("memory", found, fix)
    return CheckResult.ok("memory", found)


def check_disk(
    name: str,
    folder: Path,
    fix: str,
    min_bytes: int = MIN_DISK_BYTES,
    good_bytes: int = GOOD_DISK_BYTES,
) -> CheckResult:
    """Return the check of a folder's free space, and of writing there; the folder is created if missing."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(folder).free
        if free < min_bytes:
            return CheckResult.error(name, f"{folder}: only {_format(free)} free", fix)
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(b"check")
    except OSError as error:
        return CheckResult.error(name, f"{folder} cannot be written: {error.strerror}", fix)
    found = f"{folder}: {_format(free)} free"
    return CheckResult.warning(name, found, fix) if free < good_bytes else CheckResult.ok(name, found)


def _format(n_bytes: int) -> str:
    if n_bytes < GIBIBYTE:
        return f"{n_bytes / MEBIBYTE:.0f} MiB"
    return f"{n_bytes / GIBIBYTE:.1f} GiB"
