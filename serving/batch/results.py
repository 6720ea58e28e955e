"""The files of a batch's result, from its journal."""

import os
from pathlib import Path

from serving.batch.files import ERRORS, OUTPUT, RESULT_FOLDER
from serving.batch.journal import is_success, read_lines


def write_results(journal: Path, run_dir: Path) -> None:
    """Write the successful responses to one file and the others to another; both exist, perhaps empty."""
    folder = run_dir / RESULT_FOLDER
    folder.mkdir(exist_ok=True)
    with (folder / OUTPUT).open("wb") as output, (folder / ERRORS).open("wb") as errors:
        for line in read_lines(journal):
            (output if is_success(line) else errors).write(line)
        for file in (output, errors):
            file.flush()
            os.fsync(file.fileno())
