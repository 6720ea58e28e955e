"""A Parquet file, which a limited child process converts."""

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Final

from trainers.data.conversion import parquet_program
from trainers.data.conversion.conversion import Conversion, SourceFormat, too_large_fault
from trainers.data.faults import Fault, FaultCode

MAX_MEMORY_BYTES: Final = 1 << 30
MAX_CPU_SECONDS: Final = 900
# For a child that does not run at all: its own time is limited by its use of the CPU.
TIMEOUT_SECONDS: Final = 4 * MAX_CPU_SECONDS


def convert_parquet(source: Path, target: Path, max_bytes: int) -> Conversion:
    """Convert the file; whatever it contains, it costs no more than the limits."""
    limits = map(str, (max_bytes, MAX_MEMORY_BYTES, MAX_CPU_SECONDS))
    command = [sys.executable, "-I", str(Path(parquet_program.__file__)), str(source), str(target), *limits]
    try:
        # Without an environment: a file that takes over the reader finds no secret there.
        ended = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, env={}, timeout=TIMEOUT_SECONDS
        )
    except subprocess.TimeoutExpired:
        return _failed({}, FaultCode.parquet_unreadable, f"reading it takes more than {TIMEOUT_SECONDS:,} s")
    row_faults: dict[int, Fault] = {}
    for line in ended.stdout.splitlines():
        found = json.loads(line)
        if "code" in found:
            if found["code"] == FaultCode.converted_too_large:
                return Conversion(SourceFormat.parquet, row_faults, too_large_fault(max_bytes))
            return _failed(row_faults, FaultCode(found["code"]), found["message"])
        message = f"Row {found['row']} of the Parquet file {found['message']}."
        row_faults[found["row"]] = Fault(code=FaultCode.unsupported_content, message=message)
    if ended.returncode == -signal.SIGXCPU:
        return _failed(row_faults, FaultCode.parquet_unreadable, f"it takes more than {MAX_CPU_SECONDS} s")
    if ended.returncode:
        return _failed(row_faults, FaultCode.parquet_unreadable, "its contents end the program that reads it")
    return Conversion(SourceFormat.parquet, row_faults)


def _failed(row_faults: dict[int, Fault], code: FaultCode, why: str) -> Conversion:
    message = f"The Parquet file cannot be converted: {why}. Write it again, or upload JSON Lines."
    return Conversion(SourceFormat.parquet, row_faults, Fault(code=code, message=message))
