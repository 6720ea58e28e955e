"""The conversion of a Parquet file in a process of its own, whose memory, time and output are limited.

`python -I parquet_program.py SOURCE TARGET MAX_BYTES MAX_MEMORY_BYTES MAX_CPU_SECONDS`

A file states the sizes of its parts itself, and a small one can expand to any size, so the limits are the
kernel's. Each line on standard output is a JSON object: the fault of a row, or the one that ended the
conversion. The program imports nothing of ours: it runs without our packages on its path.
"""

import json
import math
import os
import resource
import sys
from pathlib import Path
from typing import Any

# On Linux: the pages of memory of this process. Elsewhere only its time and its output are limited.
STATM = Path("/proc/self/statm")
BATCH_BYTES = 16 << 20
MAX_BATCH_ROWS = 128
MAX_FAULTY_ROWS = 1000
MAX_LINE_BYTES = 16 << 20
EMPTY_LINE = b"{}\n"


def main() -> None:
    """Convert the file; a fault is printed, and the status is 0 in any case that has an explanation."""
    source, target = sys.argv[1:3]
    max_bytes, max_memory_bytes, max_cpu_seconds = map(int, sys.argv[3:])
    resource.setrlimit(resource.RLIMIT_CPU, (max_cpu_seconds, max_cpu_seconds))
    # The program itself stops before the limit, after a whole line.
    resource.setrlimit(resource.RLIMIT_FSIZE, (max_bytes + MAX_LINE_BYTES, max_bytes + MAX_LINE_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    # Each pool of allocations reserves address space of its own.
    os.environ["ARROW_DEFAULT_MEMORY_POOL"] = "system"
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        _print(code="parquet_unreadable", message="this service lacks pyarrow, which reads Parquet files")
        return
    pyarrow.set_cpu_count(1)
    pyarrow.set_io_thread_count(1)
    # After the import, whose libraries need address space and not memory.
    if STATM.exists():
        limit = int(STATM.read_text().split()[0]) * resource.getpagesize() + max_memory_bytes
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    try:
        _convert(parquet.ParquetFile(source, buffer_size=1 << 20, pre_buffer=False), target, max_bytes)
    except MemoryError:
        message = (
            f"a part of it needs more than {max_memory_bytes >> 20} MiB of memory; write smaller row groups"
        )
        _print(code="parquet_unreadable", message=message)
    except OSError as error:
        if error.errno is None:
            _print(code="parquet_unreadable", message=str(error).splitlines()[0][:300])
        else:
            _print(code="converted_too_large", message="")
    except (pyarrow.ArrowException, ValueError, OverflowError) as error:
        _print(code="parquet_unreadable", message=(str(error).splitlines() or ["no message"])[0][:300])


def _convert(file: Any, target: str, max_bytes: int) -> None:
    names = file.schema_arrow.names
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        _print(code="invalid_header", message=f"it has two columns with the name {twice!r}")
        return
    n_faults = 0
    number = 0
    with Path(target).open("wb") as out:
        for batch in file.iter_batches(batch_size=_batch_rows(file), use_threads=False):
            for row in batch.to_pylist():
                number += 1
                fault = _write(row, out)
                if out.tell() > max_bytes:
                    _print(code="converted_too_large", message="")
                    return
                if fault:
                    n_faults += 1
                    _print(row=number, message=fault)
                if n_faults >= MAX_FAULTY_ROWS:
                    _print(
                        code="parquet_unreadable",
                        message=f"{n_faults} of its first {number} rows are unusable",
                    )
                    return
            del batch


def _batch_rows(file: Any) -> int:
    """Return the rows that fit into a batch, by the sizes that the file states."""
    groups = [file.metadata.row_group(index) for index in range(file.metadata.num_row_groups)]
    largest = max((group.total_byte_size / max(1, group.num_rows) for group in groups), default=1)
    return max(1, min(MAX_BATCH_ROWS, int(BATCH_BYTES / max(1, largest))))


def _write(row: dict[str, Any], out: Any) -> str:
    """Write a row and return why that is impossible, if so."""
    fault = ""
    try:
        line = json.dumps(_clean(row), ensure_ascii=False, allow_nan=False, default=_as_text).encode() + b"\n"
        if len(line) > MAX_LINE_BYTES:
            fault = f"has more than {MAX_LINE_BYTES:,} bytes: split it"
    except UnicodeError:
        fault = "contains bytes that are not text: drop the column that contains them"
    out.write(EMPTY_LINE if fault else line)
    return fault


def _clean(value: Any) -> Any:
    """Return a value without the fields that are null or not a number: a table has all fields in all rows."""
    if isinstance(value, dict):
        return {name: _clean(part) for name, part in value.items() if not _is_missing(part)}
    if isinstance(value, list):
        return [None if _is_missing(part) else _clean(part) for part in value]
    return value


def _is_missing(value: Any) -> bool:
    return value is None or (isinstance(value, float) and not math.isfinite(value))


def _as_text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


def _print(**values: Any) -> None:
    sys.stdout.write(json.dumps(values) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
