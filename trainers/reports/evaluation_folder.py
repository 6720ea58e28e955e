"""The folder `evaluation` of a run directory, which a worker publishes.

result.json    the result
rows.jsonl     a line for each row, with each model's responses and values
index.jsonl    the position of each row in that file, and its values
rows.parquet   the rows as a table, for other programs
report.html    the report, and
report.md      the same as Markdown
"""

import shutil
from pathlib import Path

from trainers.evaluation.results import EvaluationResult
from trainers.evaluation.row_index import INDEX, ROWS, write_index
from trainers.reports.content import read_content
from trainers.reports.documents import write_reports
from trainers.reports.parquet import PARQUET, write_parquet
from trainers.runtime import run_dir as files
from trainers.runtime.redaction import redact_file


def write_evaluation_folder(run_dir: Path, result: EvaluationResult) -> None:
    """Write the folder from the result and the rows of a run directory; one that exists is replaced."""

    def fill(folder: Path) -> None:
        rows = folder / ROWS
        _link(run_dir / result.rows, rows)
        # Now, because the index contains positions in this file.
        redact_file(rows)
        files.write_json(folder / files.RESULT, result.model_dump(mode="json"))
        write_index(rows, folder / INDEX)
        write_parquet(rows, result, folder / PARQUET)
        write_reports(folder, read_content(folder, result))

    files.publish_folder(run_dir / files.EVALUATION, fill)


def _link(source: Path, target: Path) -> None:
    """Link a file that never changes again, or copy it where the file system has no links."""
    try:
        target.hardlink_to(source)
    except OSError:
        shutil.copyfile(source, target)
