"""The rows to train on, and those that are held out of training."""

from dataclasses import dataclass
from pathlib import Path

from trainers.configs.base import DatasetPart
from trainers.data.files.jsonl import iter_rows
from trainers.data.fingerprint import prompt_text, text_digest
from trainers.data.formats import Row, detect_format
from trainers.data.splits import split_file
from trainers.runtime.errors import DatasetInvalid

# Few rows are worth more in training than in a comparison.
MAX_HELD_OUT_SHARE = 5
MIN_ROWS = 10
HELD_OUT = "held_out"


@dataclass(frozen=True)
class TrainingSplit:
    """The number of rows to train on, and the file of those that are held out."""

    n_training: int
    held_out: Path


def split_training_rows(path: Path, folder: Path, held_out_rows: int, seed: int) -> TrainingSplit:
    """Write `train.jsonl` and `held_out.jsonl`; the same file and seed give the same parts.

    Rows with equal prompts are in one part. Raises DatasetInvalid for a file of few rows.
    """
    n_rows = sum(1 for _ in iter_rows(path))
    n_held_out = min(held_out_rows, n_rows // MAX_HELD_OUT_SHARE)
    if n_rows < MIN_ROWS:
        raise DatasetInvalid(
            f"The training file has {n_rows} rows; at least {MIN_ROWS} are needed to train and to compare.",
            "Add rows to a copy of the file, and create the rescue again with it.",
        )
    try:
        try:
            report = split_file(path, folder, test=n_held_out, seed=seed, group_of=_read_prompt)
        except ValueError:
            # All users write the same, such as "Go.", and the rows differ in what the system says.
            report = split_file(path, folder, test=n_held_out, seed=seed, group_of=_read_whole_prompt)
    except ValueError as error:
        raise DatasetInvalid(
            f"The training file cannot be split: {error}", "Add rows with other prompts."
        ) from error
    held_out = (folder / f"{DatasetPart.test}.jsonl").rename(folder / f"{HELD_OUT}.jsonl")
    return TrainingSplit(report.rows[DatasetPart.train], held_out)


def _read_prompt(row: Row, *, with_system: bool = False) -> str:
    row_format = detect_format(row)
    assert row_format is not None, "the file is valid"
    return text_digest(prompt_text(row, row_format, with_system=with_system)).hex()


def _read_whole_prompt(row: Row) -> str:
    return _read_prompt(row, with_system=True)
