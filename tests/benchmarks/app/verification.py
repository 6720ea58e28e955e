"""The cost of verification: fetches of a 1 GB model against a plain read of its files.

python -m tests.benchmarks.app.verification [--gigabytes 1]
"""

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from app.storage.artifacts import ArtifactStore
from tests.benchmarks.report import format_milliseconds, print_table
from trainers.runtime.verified_files import RACY_NS

SHARDS = 4
REPEATS = 5
CHUNK_BYTES = 1 << 20


def main() -> None:
    """Print the median time of each way to read the model, and its ratio to a plain read."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--gigabytes", type=float, default=1.0)
    size_bytes = int(parser.parse_args().gigabytes * 1e9)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        model = _write_model(root / "model", size_bytes)
        record = root / "verified-files.log"
        store = ArtifactStore(f"file://{root / 'artifacts'}", root / "cache", record)
        published = store.publish_folder(model, "models/model_1")
        stored = root / "artifacts/models/model_1"
        time.sleep(RACY_NS / 1e9)

        def first_fetch() -> None:
            record.unlink(missing_ok=True)
            fresh = ArtifactStore(f"file://{root / 'artifacts'}", root / "cache", record)
            fresh.fetch_folder("models/model_1", published.sha256)

        def fetch_after_restart() -> None:
            fresh = ArtifactStore(f"file://{root / 'artifacts'}", root / "cache", record)
            fresh.fetch_folder("models/model_1", published.sha256)

        def second_fetch() -> None:
            store.fetch_folder("models/model_1", published.sha256)

        second_fetch()
        times = {
            "plain read from the disk": _median(
                lambda: _read(stored), before=lambda: _drop_from_cache(stored)
            ),
            "first fetch from the disk": _median(first_fetch, before=lambda: _drop_from_cache(stored)),
            "plain read from the page cache": _median(lambda: _read(stored)),
            "first fetch from the page cache": _median(first_fetch),
            "second fetch, in a new process": _median(fetch_after_restart),
            "second fetch": _median(second_fetch),
        }
    disk, cached = times["plain read from the disk"], times["plain read from the page cache"]
    rows = [
        [name, format_milliseconds(seconds), f"{seconds / disk:.4g}", f"{seconds / cached:.4g}"]
        for name, seconds in times.items()
    ]
    title = f"{size_bytes / 1e9:g} GB in {SHARDS} files, median of {REPEATS}"
    print_table(title, ["", "ms", "ratio to a read from the disk", "to one from the cache"], rows)


def _write_model(folder: Path, size_bytes: int) -> Path:
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    block = os.urandom(CHUNK_BYTES)
    for shard in range(SHARDS):
        with (folder / f"model-{shard:05d}.safetensors").open("wb") as file:
            for _ in range(size_bytes // SHARDS // CHUNK_BYTES):
                file.write(block)
    return folder


def _read(folder: Path) -> None:
    for path in folder.iterdir():
        with path.open("rb", buffering=0) as file:
            while file.read(CHUNK_BYTES):
                pass


def _drop_from_cache(folder: Path) -> None:
    for path in folder.iterdir():
        with path.open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def _median(work: Callable[[], object], before: Callable[[], object] = lambda: None) -> float:
    seconds = []
    for _ in range(REPEATS):
        before()
        started = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds)


if __name__ == "__main__":
    main()
